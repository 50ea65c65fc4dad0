"""What a policy is: it walks the queue and says which entries are to start; it never touches resources itself."""

from __future__ import annotations

from typing import ClassVar, Protocol

from mpiflux.model.jobspec import PolicySpec
from mpiflux.sched.queue import Entry, WorkQueue


class Machine(Protocol):
    """What a policy may ask of the resources below its scheduler."""

    def start(self, entry: Entry) -> int:
        """Start as many jobs from the front of ``entry`` as fit now; how many that was."""


class Policy(Protocol):
    """Order of starting. A policy is asked again after every change of queue or resources."""

    name: ClassVar[str]

    def schedule(self, queue: WorkQueue, machine: Machine, now: float) -> None:
        """Start what may start: ``queue.take(entry, machine.start(entry))``, entry by entry."""


class PolicyError(ValueError):
    """A policy's name or options are wrong."""


def integer_option(spec: PolicySpec, name: str, default: int, least: int) -> int:
    """A whole-number option of a policy. Raises PolicyError."""
    value = spec.options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise PolicyError(f"policy {spec.name}: {name} must be a whole number of at least {least}, not {value!r}")
    return value
