"""First come, first served, looking a bounded number of jobs past a blocked head (the paper's queue depth)."""

from __future__ import annotations

from typing import ClassVar

from mpiflux.model.jobspec import PolicySpec
from mpiflux.sched.policies.base import Machine, integer_option
from mpiflux.sched.queue import WorkQueue


class Fcfs:
    """``queue_depth`` 1 starts strictly in order; the default 32 lets small jobs past a large blocked one.

    Jobs past a blocked head may delay it without bound: use depth 1, or a backfilling policy, where that matters.
    """

    name: ClassVar[str] = "fcfs"
    options: ClassVar[frozenset[str]] = frozenset({"queue_depth"})

    def __init__(self, spec: PolicySpec) -> None:
        self.queue_depth = integer_option(spec, "queue_depth", 32, 1)

    def schedule(self, queue: WorkQueue, machine: Machine, now: float) -> None:
        blocked = 0
        entry = queue.first()
        while entry is not None and blocked < self.queue_depth:
            following = queue.after(entry)
            waiting = len(entry)
            started = machine.start(entry)
            queue.take(entry, started)
            blocked += waiting - started
            entry = following
