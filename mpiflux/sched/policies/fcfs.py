"""First come, first served, looking a bounded way past a blocked head (the paper's queue depth)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from mpiflux.model.jobspec import PolicySpec
from mpiflux.sched.policies.base import Machine, Policy, integer_option, number_option, planner
from mpiflux.sched.profile import Reservation
from mpiflux.sched.queue import Entry, WorkQueue

_FIRST = 8
"""Of so many blocked entries it is remembered since when they wait: the head may not always be the same one."""


class Fcfs(Policy):
    """Higher urgency first, then first come, first served.

    ``queue_depth``: how many entries that do not fit it looks at; 1 starts strictly in order. Jobs of a group that
    were queued together are one entry, as they all fit or none does.

    ``patience``: seconds after which a head that others are passing gets a reservation: from then on only what does
    not delay it may pass. So no job starves, and for a short wait nobody pays.
    """

    name: ClassVar[str] = "fcfs"
    options: ClassVar[tuple[str, ...]] = ("queue_depth", "patience")
    default_depth: ClassVar[int] = 32
    default_patience: ClassVar[float] = 60.0

    def __init__(self, spec: PolicySpec | None = None) -> None:
        spec = spec or PolicySpec(self.name)
        self.queue_depth = integer_option(spec, "queue_depth", self.default_depth, 1)
        self.patience = number_option(spec, "patience", self.default_patience)
        self._held: Reservation | None = None
        self._since: dict[int, float] = {}
        """Since when a group has had nothing started although it was looked at."""

    def order(self, queue: WorkQueue) -> Iterable[Entry]:
        """The queue in the order in which jobs should start."""
        return queue

    def schedule(self, queue: WorkQueue, machine: Machine, now: float) -> None:
        plan = planner(machine, now)
        if plan is not None and self._held is not None:
            plan.release(self._held)
        self._held = None
        since: dict[int, float] = {}
        blocked = 0
        for entry in self.order(queue):
            started = machine.start(entry)
            if started:
                jobs, group = len(entry), entry.chunk.group
                queue.take(entry, started)
                self._since[group] = now
                if started == jobs:
                    continue
            blocked += 1
            if blocked <= _FIRST:
                group = entry.chunk.group
                since.setdefault(group, self._since.get(group, now))
                if blocked == 1 < self.queue_depth and plan is not None and now >= since[group] + self.patience:
                    self._held = plan.reserve(entry)
            if blocked >= self.queue_depth:
                break
        self._since = since

    @property
    def reservations(self) -> list[Reservation]:
        """What is held at this moment, for whoever asks why a job waits."""
        return [self._held] if self._held is not None else []
