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

_Kind = tuple[int, int]
"""Number of a group, and of the only node where its jobs may run (-1: any)."""


def _kind(machine: Machine, entry: Entry) -> _Kind:
    chunk = entry.chunk
    return chunk.group, machine.catalog.group(chunk.group).node_of(chunk.start)


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
        self._held: dict[_Kind, list[Reservation]] = {}
        """In order of time. The jobs of a kind are alike: its k-th queued job has the k-th place."""

    def schedule(self, queue: WorkQueue, machine: Machine, now: float) -> None:
        plan = planner(machine, now)
        if plan is None:
            self._between.schedule(queue, machine, now)
            return
        unseen = self._drop_gone(queue, plan)
        passed: dict[_Kind, int] = {}
        blocked = 0
        for entry in queue:
            if blocked >= self.queue_depth and not unseen:
                break
            kind, jobs = _kind(machine, entry), len(entry)
            places = self._held.setdefault(kind, [])
            first = at = passed.get(kind, 0)
            placed = min(jobs, len(places) - at)
            unseen -= placed
            queued = queue.jobs
            at = self._advance(queue, plan, entry, places, at, placed)
            if at == first and jobs > queued - queue.jobs:
                queue.take(entry, plan.start(entry))
            jobs -= queued - queue.jobs
            waiting = at - first
            at += self._admit(queue, plan, entry, places, jobs - waiting, self.queue_depth - blocked - waiting)
            blocked += at - first
            passed[kind] = at
        for kind in passed:
            self._held[kind].sort(key=lambda place: place.start)

    def _drop_gone(self, queue: WorkQueue, plan: Planner) -> int:
        """Release places of jobs that are no longer queued; how many places are left."""
        left = sum(map(len, self._held.values()))
        if not left:
            return 0
        found: dict[_Kind, int] = {}
        for entry in queue:
            kind = _kind(plan, entry)
            mine = min(len(entry), len(self._held.get(kind, ())) - found.get(kind, 0))
            if mine > 0:
                found[kind] = found.get(kind, 0) + mine
                left -= mine
                if not left:
                    break
        for kind, places in self._held.items():
            for place in places[found.get(kind, 0):]:
                plan.release(place)
            del places[found.get(kind, 0):]
        self._held = {kind: places for kind, places in self._held.items() if places}
        return sum(map(len, self._held.values()))

    def _advance(self, queue: WorkQueue, plan: Planner, entry: Entry, places: list[Reservation], at: int,
                 placed: int) -> int:
        """Start what is due of an entry's jobs, which have ``placed`` places from ``at`` on, or find them earlier ones;
        the position behind the last that still waits."""
        while placed > 0:
            place = places[at]
            started = plan.start_reserved(entry, place)
            if not started:
                better = plan.improve(entry, place)
                if better is None:
                    del places[at]
                    placed -= 1
                    continue
                places[at] = better
                started = plan.start_reserved(entry, better) if better is not place else 0
            if started:
                queue.take(entry, started)
                used = min(started, placed)
                for place in places[at + 1:at + used]:
                    plan.release(place)
                del places[at:at + used]
                placed -= used
            else:
                at += 1
                placed -= 1
        return at

    def _admit(self, queue: WorkQueue, plan: Planner, entry: Entry, places: list[Reservation], jobs: int,
               most: int) -> int:
        """Reserve for an entry's ``jobs`` that have no places yet, until ``most`` wait for theirs; how many do.

        A place may be due at once: one on several nodes may use what others leave of a node, where
        :meth:`Planner.start` avoids the whole node. It is used now, as nobody may come by later to do so.
        """
        made = 0
        while made < most and jobs > 0:
            place = plan.reserve(entry)
            if place is None:
                break
            started = plan.start_reserved(entry, place)
            if started:
                queue.take(entry, started)
                jobs -= started
            else:
                places.append(place)
                made += 1
                jobs -= 1
        return made

    @property
    def reservations(self) -> list[Reservation]:
        """What is held at this moment, for whoever asks why a job waits."""
        return [place for places in self._held.values() for place in places]
