"""A scheduler's queue: chunks of job groups in order of priority, then of arrival. What has priority 0 is held: kept
here, but not seen by who walks the queue.

A million queued jobs of one group are one entry. Taking, adding and stepping to the next entry cost the same however
many wait: entries are a linked list a priority, so that one may be taken out of the middle while a policy walks it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mpiflux.model.messages import Chunk
from mpiflux.sched.urgency import HELD, cut


class Entry:
    """A chunk in the queue. ``chunk`` shrinks as jobs are taken from its front."""

    __slots__ = ("arrived", "chunk", "era", "lane", "next", "prev")

    def __init__(self, chunk: Chunk | None, lane: _Lane | None = None, arrived: float = 0.0, era: int = 0) -> None:
        self.chunk: Chunk = chunk  # type: ignore[assignment]  # None only in a lane's own end marks
        self.lane: _Lane = lane  # type: ignore[assignment]
        self.next: Entry = self
        self.prev: Entry = self
        self.arrived = arrived
        """When it was queued (seconds), by :attr:`WorkQueue.now`."""
        self.era = era
        """After how many of its parent's claims it was queued, by :attr:`WorkQueue.era`."""

    def __len__(self) -> int:
        return len(self.chunk)


class _Lane:
    """All entries of one priority: a ring through ``mark``."""

    __slots__ = ("mark", "priority")

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.mark = Entry(None, self)

    def insert_before(self, entry: Entry, place: Entry) -> None:
        entry.lane = self
        entry.prev, entry.next = place.prev, place
        place.prev.next = entry
        place.prev = entry


class WorkQueue:
    """Chunks by priority, highest first. ``priority_of`` tells the priority of a group."""

    def __init__(self, priority_of: Callable[[int], int]) -> None:
        self._priority_of = priority_of
        self._lanes: dict[int, _Lane] = {}
        self._order: list[_Lane] = []
        self.jobs = 0
        """Number of jobs in all entries, without held ones."""
        self._held = _Lane(HELD)
        self.now = 0.0
        """The time (seconds) at which what is pushed arrives; whoever pushes sets it."""
        self.era = 0
        """How often the scheduler's parent has claimed resources; the scheduler counts."""

    def __len__(self) -> int:
        return self.jobs

    def __bool__(self) -> bool:
        return self.jobs > 0

    def _lane(self, chunk: Chunk, priority: int | None) -> _Lane:
        if priority is None:
            priority = self._priority_of(chunk.group)
        if priority == HELD:
            return self._held
        lane = self._lanes.get(priority)
        if lane is None:
            lane = self._lanes[priority] = _Lane(priority)
            self._order = sorted(self._lanes.values(), key=lambda one: -one.priority)
        return lane

    def push(self, chunk: Chunk, priority: int | None = None) -> Entry:
        """Add behind its equals. ``priority`` is the group's unless given."""
        lane = self._lane(chunk, priority)
        entry = Entry(chunk, arrived=self.now, era=self.era)
        lane.insert_before(entry, lane.mark)
        self._count(lane, len(chunk))
        return entry

    def insert(self, chunk: Chunk, priority: int, arrived: float) -> Entry:
        """Add to those of a priority by its age."""
        lane = self._lane(chunk, priority)
        place = lane.mark
        while place.prev is not lane.mark and place.prev.arrived > arrived:
            place = place.prev
        entry = Entry(chunk, arrived=arrived, era=self.era)
        lane.insert_before(entry, place)
        self._count(lane, len(chunk))
        return entry

    def _count(self, lane: _Lane, n: int) -> None:
        if lane is not self._held:
            self.jobs += n

    def push_front(self, chunk: Chunk, priority: int | None = None) -> Entry:
        """Put back what was taken: before its equals, as old as they are, and before all that was claimed."""
        lane = self._lane(chunk, priority)
        waits = lane.mark.next is not lane.mark
        entry = Entry(chunk, arrived=lane.mark.next.arrived if waits else self.now)
        lane.insert_before(entry, lane.mark.next)
        self._count(lane, len(chunk))
        return entry

    def first(self) -> Entry | None:
        """The entry that should start next; None when there is none."""
        for lane in self._order:
            if lane.mark.next is not lane.mark:
                return lane.mark.next
        return None

    def fronts(self) -> list[Entry]:
        """The first entry of each priority, highest first."""
        return [lane.mark.next for lane in self._order if lane.mark.next is not lane.mark]

    def after(self, entry: Entry) -> Entry | None:
        """The entry that follows ``entry``."""
        lane = entry.lane
        if entry.next is not lane.mark:
            return entry.next
        for later in self._order[self._order.index(lane) + 1:]:
            if later.mark.next is not later.mark:
                return later.mark.next
        return None

    def take(self, entry: Entry, n: int) -> None:
        """Remove the first ``n`` jobs of an entry, and the entry with its last one."""
        if not n:
            return
        self._count(entry.lane, -n)
        rest = entry.chunk.split(n)[1]
        if rest is None:
            entry.prev.next, entry.next.prev = entry.next, entry.prev
        else:
            entry.chunk = rest

    def __iter__(self) -> Iterator[Entry]:
        entry = self.first()
        while entry is not None:
            following = self.after(entry)
            yield entry
            entry = following

    def take_last(self, n: int) -> list[Chunk]:
        """Remove up to ``n`` jobs from the end: those that would start last, first."""
        taken: list[Chunk] = []
        for lane in reversed(self._order):
            while n > 0 and lane.mark.prev is not lane.mark:
                entry = lane.mark.prev
                chunk, keep = entry.chunk, len(entry) - n
                if keep > 0:
                    entry.chunk, rest = chunk.split(keep)
                    assert rest is not None
                    chunk = rest
                else:
                    entry.prev.next, entry.next.prev = entry.next, entry.prev
                self.jobs -= len(chunk)
                n -= len(chunk)
                taken.append(chunk)
        return taken

    def clear(self) -> None:
        self._lanes.clear()
        self._order.clear()
        self._held = _Lane(HELD)
        self.jobs = 0

    @property
    def held(self) -> int:
        """Number of held jobs, by a look at their entries."""
        return sum(len(entry) for entry in self._all() if entry.lane is self._held)

    def _all(self) -> list[Entry]:
        entries, entry = list(self), self._held.mark.next
        while entry is not self._held.mark:
            entries.append(entry)
            entry = entry.next
        return entries

    def pull(self, group: int, start: int, stop: int) -> list[tuple[Chunk, float]]:
        """Take out the jobs of a group with an index in ``range(start, stop)``, held ones too; with their ages."""
        taken: list[tuple[Chunk, float]] = []
        for entry in self._all():
            if entry.chunk.group != group:
                continue
            before, wanted, behind = cut(entry.chunk, start, stop)
            if wanted is None:
                continue
            taken.append((wanted, entry.arrived))
            for chunk in (before, behind):
                if chunk is not None:
                    entry.lane.insert_before(Entry(chunk, arrived=entry.arrived, era=entry.era), entry)
                    self._count(entry.lane, len(chunk))
            self.take(entry, len(entry))
        return taken

    def find(self, group: int, index: int) -> Entry | None:
        """The entry that a job is in, held or not."""
        for entry in self._all():
            chunk = entry.chunk
            if chunk.group == group and index in range(chunk.start, chunk.stop, chunk.step):
                return entry
        return None

    def remove(self, wanted: Callable[[Chunk, int], bool]) -> list[Chunk]:
        """Take out every job for which ``wanted(chunk, index)`` holds; returned as chunks of one job."""
        removed: list[Chunk] = []
        for entry in self._all():
            found: list[Chunk] = []
            kept = split_out(entry.chunk, wanted, found)
            if not found:
                continue
            removed += found
            for chunk in kept:
                entry.lane.insert_before(Entry(chunk, arrived=entry.arrived, era=entry.era), entry)
            self._count(entry.lane, sum(map(len, kept)))
            self.take(entry, len(entry))
        return removed


def split_out(chunk: Chunk, wanted: Callable[[Chunk, int], bool], removed: list[Chunk]) -> list[Chunk]:
    """The parts of ``chunk`` without the wanted indices, which are appended to ``removed`` one by one."""
    kept: list[Chunk] = []
    begin = chunk.start
    for index in range(chunk.start, chunk.stop, chunk.step):
        if wanted(chunk, index):
            if index > begin:
                kept.append(Chunk(chunk.group, begin, index, chunk.step, chunk.attempt, chunk.alone))
            removed.append(Chunk(chunk.group, index, index + 1, 1, chunk.attempt, chunk.alone))
            begin = index + chunk.step
    if begin < chunk.stop:
        kept.append(Chunk(chunk.group, begin, chunk.stop, chunk.step, chunk.attempt, chunk.alone))
    return kept
