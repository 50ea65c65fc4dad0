"""Conservative backfilling: every job that is looked at has a reservation, and none is ever delayed.

Mu'alem and Feitelson, IEEE TPDS 12(6), 2001.
"""

from __future__ import annotations

from typing import ClassVar

from mpiflux.model.jobspec import PolicySpec
from mpiflux.sched.policies.base import Machine, Planner, Policy, integer_option, planner
from mpiflux.sched.policies.fcfs import Fcfs
from mpiflux.sched.profile import Reservation
from mpiflux.sched.queue import Entry, WorkQueue


class Conservative(Policy):
    """A job gets the earliest place beside the places of all that came before it; it starts when that is due.

    When something ends before its time limit, jobs move to earlier places one by one, in order of the queue; none
    moves to a later one.

    ``queue_depth``: how many jobs that cannot start yet have a place; what is queued behind them waits.

    Between schedulers there are no reservations: there it is ``fcfs`` of the same depth.
    """

    name: ClassVar[str] = "conservative"
    options: ClassVar[tuple[str, ...]] = ("queue_depth",)

    def __init__(self, spec: PolicySpec | None = None) -> None:
        spec = spec or PolicySpec(self.name)
        self.queue_depth = integer_option(spec, "queue_depth", 32, 1)
        self._between = Fcfs(PolicySpec(self.name, {"queue_depth": self.queue_depth}))
        self._held: dict[int, list[Reservation]] = {}
        """By group, in order of time. The jobs of a group are alike: its k-th queued job has the k-th place."""

    def schedule(self, queue: WorkQueue, machine: Machine, now: float) -> None:
        plan = planner(machine, now)
        if plan is None:
            self._between.schedule(queue, machine, now)
            return
        unseen = self._drop_gone(queue, plan)
        passed: dict[int, int] = {}
        blocked = 0
        for entry in queue:
            if blocked >= self.queue_depth and not unseen:
                break
            group, jobs = entry.chunk.group, len(entry)
            places = self._held.setdefault(group, [])
            first = at = passed.get(group, 0)
            placed = min(jobs, len(places) - at)
            unseen -= placed
            for _ in range(placed):
                at += self._advance(queue, plan, entry, places, at)
            if placed < jobs:
                if at == first:
                    started = plan.start(entry)
                    queue.take(entry, started)
                    jobs -= started
                at += self._admit(plan, entry, places, min(jobs - placed, self.queue_depth - blocked - (at - first)))
            blocked += at - first
            passed[group] = at
        for group in passed:
            self._held[group].sort(key=lambda place: place.start)

    def _drop_gone(self, queue: WorkQueue, plan: Planner) -> int:
        """Release places of jobs that are no longer queued; how many places are left."""
        left = sum(map(len, self._held.values()))
        if not left:
            return 0
        found: dict[int, int] = {}
        for entry in queue:
            group = entry.chunk.group
            mine = min(len(entry), len(self._held.get(group, ())) - found.get(group, 0))
            if mine > 0:
                found[group] = found.get(group, 0) + mine
                left -= mine
                if not left:
                    break
        for group, places in self._held.items():
            for place in places[found.get(group, 0):]:
                plan.release(place)
            del places[found.get(group, 0):]
        self._held = {group: places for group, places in self._held.items() if places}
        return sum(map(len, self._held.values()))

    def _advance(self, queue: WorkQueue, plan: Planner, entry: Entry, places: list[Reservation], at: int) -> int:
        """Start the job that has ``places[at]``, or find it an earlier place; 1 when it still waits, else 0."""
        if not plan.start_reserved(entry, places[at]):
            place = plan.improve(entry, places[at])
            if place is None:
                del places[at]
                return 0
            if place is places[at] or not plan.start_reserved(entry, place):
                places[at] = place
                return 1
        del places[at]
        queue.take(entry, 1)
        return 0

    def _admit(self, plan: Planner, entry: Entry, places: list[Reservation], most: int) -> int:
        """Reserve for up to ``most`` jobs of an entry that have no places yet; how many."""
        for made in range(most):
            place = plan.reserve(entry)
            if place is None:
                return made
            places.append(place)
        return max(most, 0)

    @property
    def reservations(self) -> list[Reservation]:
        """What is held at this moment, for whoever asks why a job waits."""
        return [place for places in self._held.values() for place in places]
