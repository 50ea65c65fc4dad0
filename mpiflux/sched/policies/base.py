"""What a policy is: it walks the queue and says what is to start; it never touches resources itself."""

from __future__ import annotations

import abc
import heapq
from collections.abc import Iterator
from typing import ClassVar, Protocol, cast

from mpiflux.model.jobspec import PolicySpec
from mpiflux.sched.catalog import Catalog
from mpiflux.sched.profile import Reservation
from mpiflux.sched.queue import Entry, WorkQueue


class Machine(Protocol):
    """What a policy may ask of what is below its scheduler: executors, or other schedulers."""

    catalog: Catalog
    """``catalog.group(entry.chunk.group)`` is the job group of an entry: its request, time limit, priority, name."""

    def start(self, entry: Entry) -> int:
        """Start as many jobs from the front of ``entry`` as fit now and delay no reservation; how many that was.

        ``queue.take(entry, n)`` must follow. A refusal costs next to nothing when nothing has changed.
        """


class Planner(Machine, Protocol):
    """The machine of a scheduler that has executors: it knows when running jobs must have ended."""

    def at(self, now: float) -> None:
        """Tell the time, before anything else is asked; :func:`planner` does."""

    def limit(self, entry: Entry) -> float:
        """Seconds after which a job of ``entry`` is ended; :data:`mpiflux.sched.profile.UNLIMITED` without a limit."""

    def reserve(self, entry: Entry) -> Reservation | None:
        """Hold a place for one job of ``entry``: the earliest, beside everything that is held already. It is held,
        also in later calls of ``schedule``, until it is released. None when there can be none."""

    def release(self, reservation: Reservation) -> None:
        """Hold a place no longer."""

    def improve(self, entry: Entry, reservation: Reservation) -> Reservation | None:
        """Hold an earlier place for a job of ``entry`` instead, if there is one now; else ``reservation`` goes on to
        be held. None when it is lost with its node. It costs nothing when nothing became free unexpectedly."""

    def start_reserved(self, entry: Entry, reservation: Reservation) -> int:
        """Start the first job of ``entry`` in the place held for it, and release that; with it may start jobs of a
        few milliseconds that follow it there. How many: ``queue.take(entry, n)`` must follow. 0, and nothing is
        changed, when the place is not due or is still in use."""


def planner(machine: Machine, now: float) -> Planner | None:
    """The machine as one that can hold places; None where other schedulers are below: their policies can."""
    if not hasattr(machine, "reserve"):
        return None
    plan = cast(Planner, machine)  # asking whether it has every method takes as long as placing a job
    plan.at(now)
    return plan


class Policy(abc.ABC):
    """The base of every policy, a user's own too.

    It is made once for each scheduler, with the ``policy`` mapping of the workflow file, and asked again after every
    change of the queue or of resources. It must be a function of its arguments and of its own state only: no clock,
    no randomness, so that a simulation shows what a run will do.
    """

    name: ClassVar[str] = ""
    options: ClassVar[tuple[str, ...]] = ()
    """Names of the options that it takes; others are refused before it is made."""

    def __init__(self, spec: PolicySpec | None = None) -> None:
        """Read ``spec.options``; :func:`integer_option` and :func:`number_option` help. Raises PolicyError."""
        self.spec = spec or PolicySpec(self.name)

    @abc.abstractmethod
    def schedule(self, queue: WorkQueue, machine: Machine, now: float) -> None:
        """Start what may start: ``queue.take(entry, machine.start(entry))``, entry by entry.

        ``now`` is in seconds and never goes back. The entry at hand may be taken while the queue is walked.
        """


class PolicyError(ValueError):
    """A policy's name or options are wrong."""


def integer_option(spec: PolicySpec, name: str, default: int, least: int) -> int:
    """A whole-number option of a policy. Raises PolicyError."""
    value = spec.options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise PolicyError(f"policy {spec.name}: {name} must be a whole number of at least {least}, not {value!r}")
    return value


def number_option(spec: PolicySpec, name: str, default: float, least: float = 0.0) -> float:
    """A number option of a policy. Raises PolicyError."""
    value = spec.options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < float("inf"):
        raise PolicyError(f"policy {spec.name}: {name} must be a number of at least {least:g}, not {value!r}")
    return float(value)


def by_age(queue: WorkQueue, points: float) -> Iterator[Entry]:
    """Entries as if each had ``points`` of urgency more for every hour in the queue; the entry at hand may be taken.

    Entries of one urgency stay in order of arrival, so only the first of each is compared.
    """
    def key(entry: Entry) -> tuple[float, int]:
        return entry.arrived * points / 3600 - entry.lane.priority, -entry.lane.priority

    heads = [(key(entry), entry) for entry in queue.fronts()]
    heapq.heapify(heads)
    while heads:
        entry = heads[0][1]
        following = queue.after(entry)
        if following is not None and following.lane is entry.lane:
            heapq.heapreplace(heads, (key(following), following))
        else:
            heapq.heappop(heads)
        yield entry
