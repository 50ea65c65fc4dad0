"""What a scheduler knows of its children: what they have, how fast they are, and which of them has room.

A child's window is what its R holds at once plus what it gets done in :data:`LOOKAHEAD`, from its own reports.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from heapq import heappush

from mpiflux.model import messages as m
from mpiflux.model.jobspec import JobGroup, Request
from mpiflux.model.records import SIZE
from mpiflux.model.resources import NodeResources
from mpiflux.sched.pool import ResourcePool
from mpiflux.sched.queue import split_out
from mpiflux.sched.urgency import cut

LOOKAHEAD = 0.25
"""Seconds of work that a child holds beyond what its R runs at once."""
_MEASURE = 0.02
_SOME = 64
"""Children that are looked at when one of thousands is to be chosen in no time."""


class _Count:
    """Jobs of one shape that a child has."""

    __slots__ = ("jobs",)

    def __init__(self) -> None:
        self.jobs = 0


class Child:
    """What a scheduler knows of one child. Implements :class:`mpiflux.sched.distribution.Receiver`."""

    def __init__(self, endpoint: int, pool: ResourcePool) -> None:
        self.endpoint = endpoint
        self.pool = pool
        self._capacity: dict[tuple[object, ...], int] = {}
        self._holds: dict[tuple[int, tuple[object, ...]], bool] = {}
        self._counts: dict[tuple[object, ...], _Count] = {}
        self.outstanding = 0
        """Jobs sent and not reported as ended."""
        self.rate = 0.0
        """Jobs per second that it ends, a moving average."""
        self._ended = 0
        self._since = 0.0
        self.line: deque[m.Chunk] = deque()
        """Jobs that are its own, but beyond its window."""
        self.waiting = 0
        """Number of jobs in ``line``."""
        self.to_send: list[m.Chunk] = []
        self.held: dict[int, tuple[int, _Count]] = {}
        """(attempt, count of its shape) of what was sent to it, by job id."""
        self.latest: JobGroup | None = None
        """Group of what it was sent last, which may have ended and be forgotten."""
        self.recall_after = 0.0
        self.place = 0
        """Among its siblings."""
        self.version = 0
        """Counts what may change where the next job should go."""
        self.changes: list[Child] = []
        """Who of its siblings changed, in order; shared by all."""
        self.keys: dict[int, tuple[object, ...]] = {}
        """Shapes by group; shared by all."""

    @property
    def nodes(self) -> tuple[NodeResources, ...]:
        """What it has of which nodes."""
        return self.pool.nodes

    def touch(self) -> None:
        """What it has or gets done is not what it was."""
        self.version += 1
        self.changes.append(self)

    def _key(self, group: JobGroup) -> tuple[object, ...]:
        key = self.keys.get(group.number)
        if key is None:
            key = self.keys[group.number] = group.request.key
        return key

    def capacity(self, request: Request) -> int:
        """How many jobs of this shape its R holds at once."""
        key = request.key
        found = self._capacity.get(key)
        if found is None:
            found = self._capacity[key] = self.pool.capacity(request)
        return found

    def capacity_of(self, group: JobGroup) -> int:
        found = self._capacity.get(self._key(group))
        return self.capacity(group.request) if found is None else found

    def holds(self, node: int, request: Request) -> bool:
        """Whether such a job fits into its part of this node."""
        key = node, request.key
        found = self._holds.get(key)
        if found is None:
            found = self._holds[key] = self.pool.fits_on(node, request)
        return found

    def room_for(self, group: JobGroup) -> int:
        """How many more jobs of this group it should be sent now."""
        capacity = self.capacity_of(group)
        window = capacity + max(1, math.ceil(self.rate * LOOKAHEAD))
        outstanding = self.outstanding_of(group)
        room = window - outstanding
        # many small top-ups would cost a message each
        return room if room * 4 >= window or outstanding < capacity else 0

    def outstanding_of(self, group: JobGroup) -> int:
        """Jobs of this group's shape, sent and not reported as ended."""
        count = self._counts.get(self._key(group))
        return 0 if count is None else count.jobs

    def sent(self, group: JobGroup, chunk: m.Chunk) -> None:
        """Count jobs as outstanding."""
        self.touch()
        key = self._key(group)
        count = self._counts.get(key)
        if count is None:
            count = self._counts[key] = _Count()
        count.jobs += len(chunk)
        self.outstanding += len(chunk)
        self.latest = group
        first = group.first_id
        ids = range(first + chunk.start, first + chunk.stop, chunk.step)
        self.held.update(dict.fromkeys(ids, (chunk.attempt, count)))

    def returned(self, ids: Iterable[int]) -> None:
        """Jobs that it gave back unstarted."""
        self.touch()
        for job in ids:
            found = self.held.pop(job, None)
            if found is not None:
                found[1].jobs -= 1
            self.outstanding -= 1

    def take_last(self, n: int) -> list[m.Chunk]:
        """Take up to ``n`` jobs out of its line, last ones first."""
        taken: list[m.Chunk] = []
        while self.line and n > 0:
            chunk = self.line.pop()
            keep = max(len(chunk) - n, 0)
            if keep:
                kept, last = chunk.split(keep)
                self.line.append(kept)
                assert last is not None
                chunk = last
            self.waiting -= len(chunk)
            n -= len(chunk)
            taken.append(chunk)
        return taken

    def put_last(self, chunk: m.Chunk) -> None:
        """Add to its line."""
        self.line.append(chunk)
        self.waiting += len(chunk)

    def take_range(self, group: int, start: int, stop: int) -> list[m.Chunk]:
        """Take the jobs of a group in ``range(start, stop)`` out of its line."""
        kept: deque[m.Chunk] = deque()
        taken: list[m.Chunk] = []
        for chunk in self.line:
            parts = cut(chunk, start, stop) if chunk.group == group else (chunk, None, None)
            kept += [part for part in (parts[0], parts[2]) if part is not None]
            taken += [parts[1]] if parts[1] is not None else []
        self.line, self.waiting = kept, sum(map(len, kept))
        return taken

    def take(self, is_wanted: Callable[[m.Chunk, int], bool]) -> list[m.Chunk]:
        """Take jobs out of its line, by chunk and index."""
        taken: list[m.Chunk] = []
        self.line = deque(part for chunk in self.line for part in split_out(chunk, is_wanted, taken))
        self.waiting = sum(map(len, self.line))
        return taken

    def clear(self) -> list[tuple[int, int]]:
        """It has nothing any more; what it had: (job id, attempt)."""
        self.touch()
        jobs = [(job, attempt) for job, (attempt, _) in self.held.items()]
        self.held.clear()
        self._counts.clear()
        self.outstanding = 0
        return jobs

    def ended(self, count: int, now: float) -> None:
        self.touch()
        self.outstanding -= count
        self._ended += count
        passed = now - self._since
        if passed >= _MEASURE:
            rate = self._ended / passed
            self.rate = rate if passed > 1.0 else 0.5 * (self.rate + rate)
            self._ended, self._since = 0, now

    def forget(self, report: m.Report) -> int:
        """Drop the attempts whose end is reported; how many that were."""
        if not report.records:
            return 0
        held = self.held
        # the id is the first of the eight-byte words of a record
        for job in memoryview(report.records).cast("Q")[::SIZE // 8].tolist():
            found = held.pop(job, None)
            if found is not None:
                found[1].jobs -= 1
        return len(report.records) // SIZE


class Shape:
    """Equal requests: who of the children could be sent one more job now. Kept up to date from those that changed, as
    there may be thousands of them and a scheduler asks for each entry of its queue."""

    __slots__ = ("able", "free", "free_total", "group", "heap", "seen")

    def __init__(self, group: JobGroup, able: list[Child]) -> None:
        self.group, self.able = group, able
        self.heap: list[tuple[float, int, int, Child]] = []
        """(load, place, version, child) of those with room; out of date where the version is another."""
        self.seen = -1
        """How many of the changes are in here; -1: nothing is."""
        self.free: dict[int, int] = {}
        self.free_total = 0
        """How many such jobs the children could run beyond those that they have."""

    def idlest(self) -> Child | None:
        """One that could run such a job at once, if there is any; as of the last :meth:`sync`."""
        return next((child for _, _, version, child in self.heap[:_SOME]
                     if version == child.version and self.free.get(child.endpoint)), None)

    def room_of_idle(self) -> int:
        """How many such jobs children would be sent that could run some at once, of the first few of them; as of the
        last :meth:`sync`."""
        if not self.free_total:
            return 0
        some = [child for _, _, version, child in self.heap[:_SOME]
                if version == child.version and self.free.get(child.endpoint)]
        return max(self.free_total, sum(child.room_for(self.group) for child in some))

    def sync(self, changes: list[Child]) -> list[tuple[float, int, int, Child]]:
        if self.seen < 0:
            self.heap, self.free, self.free_total = [], {}, 0
            changed: Iterable[Child] = self.able
        else:
            changed = dict.fromkeys(changes[self.seen:])
        self.seen = len(changes)
        for child in changed:
            capacity = child.capacity_of(self.group)
            if not capacity:
                continue
            free = max(capacity - child.outstanding_of(self.group), 0)
            self.free_total += free - self.free.get(child.endpoint, 0)
            self.free[child.endpoint] = free
            if child.room_for(self.group) > 0:
                heappush(self.heap, (child.outstanding / capacity, child.place, child.version, child))
        return self.heap
