"""A scheduling policy of one's own: backfill with the shortest jobs first.

The first job that does not fit has a place held for it, as in EASY backfilling, so no job starves. Of the jobs
behind it the shortest come first, by their time limits, not the oldest: more of them fit before that place is due
(Tsafrir, Etsion and Feitelson, IEEE TPDS 18(6), 2007, call it SJBF).

    mpiflux simulate docs/examples/policy_example.yaml --cluster "2x(8c)"
"""

from __future__ import annotations

import itertools

from mpiflux.model.jobspec import PolicySpec
from mpiflux.sched.policies import Machine, Policy, integer_option, planner
from mpiflux.sched.profile import Reservation
from mpiflux.sched.queue import Entry, WorkQueue


class ShortestBackfill(Policy):
    name = "shortest_backfill"
    options = ("window",)

    def __init__(self, spec: PolicySpec | None = None) -> None:
        super().__init__(spec)
        self.window = integer_option(self.spec, "window", default=64, least=1)
        """How many entries of the queue are looked at."""
        self.held: Reservation | None = None

    def schedule(self, queue: WorkQueue, machine: Machine, now: float) -> None:
        plan = planner(machine, now)  # None where other schedulers are below
        if plan is not None and self.held is not None:
            plan.release(self.held)
        self.held = None
        entries = iter(list(itertools.islice(queue, self.window)))

        for entry in entries:  # in order, as long as everything fits
            jobs = len(entry)
            started = machine.start(entry)
            queue.take(entry, started)
            if started < jobs:
                if plan is not None:
                    self.held = plan.reserve(entry)
                break

        def limit(entry: Entry) -> float:
            return machine.catalog.group(entry.chunk.group).time_limit or float("inf")

        for entry in sorted(entries, key=limit):  # whatever is left: what would delay the held place is not started
            queue.take(entry, machine.start(entry))
