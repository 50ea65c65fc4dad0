"""Dealing jobs to child schedulers within credit windows.

A child's window is what its R holds at once plus what it gets done in a quarter of a second, measured from its own
reports: so it never runs dry, and no queue below the root grows with the workflow. When a child has nothing left to
do and there is nothing left to deal, jobs that a sibling has not started are recalled and dealt again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from mpiflux.model import messages as m
from mpiflux.model.jobspec import JobGroup, Request
from mpiflux.model.records import SIZE
from mpiflux.sched.catalog import Catalog
from mpiflux.sched.distribution import make
from mpiflux.sched.pool import ResourcePool
from mpiflux.sched.queue import Entry, split_out

LOOKAHEAD = 0.25
"""Seconds of work that a child holds beyond what its R runs at once."""
RECALL_PAUSE = 0.05
"""Seconds between two recalls from the same child."""
_MEASURE = 0.02

Action = tuple[int, m.Message]


class Child:
    """What a scheduler knows of one child. Implements :class:`mpiflux.sched.distribution.Receiver`."""

    def __init__(self, endpoint: int, pool: ResourcePool) -> None:
        self.endpoint = endpoint
        self._pool = pool
        self._capacity: dict[tuple[object, ...], int] = {}
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
        self.held: dict[int, int] = {}
        """Attempts sent to it, by job id."""
        self.group = -1
        """Group of what it was sent last."""
        self.recall_after = 0.0

    def capacity(self, request: Request) -> int:
        """How many jobs of this shape its R holds at once."""
        found = self._capacity.get(request.key)
        if found is None:
            found = self._capacity[request.key] = self._pool.capacity(request)
        return found

    def capacity_of(self, group: JobGroup) -> int:
        return self.capacity(group.request)

    def room_for(self, group: JobGroup) -> int:
        """How many more jobs of this group it should be sent now."""
        capacity = self.capacity(group.request)
        window = capacity + max(1, math.ceil(self.rate * LOOKAHEAD))
        room = window - self.outstanding
        # many small top-ups would cost a message each
        return room if room * 4 >= window or self.outstanding < capacity else 0

    def ended(self, count: int, now: float) -> None:
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
            held.pop(job, None)
        return len(report.records) // SIZE


class Dealing:
    """Implements :class:`mpiflux.sched.scheduler.Below` over children."""

    def __init__(self, children: Sequence[Child], distribution: str, catalog: Catalog) -> None:
        self.children = {child.endpoint: child for child in children}
        self.catalog = catalog
        self.distribution = make(distribution)
        self._declared: set[tuple[int, int]] = set()
        self._out: list[Action] = []
        self._able: dict[tuple[object, ...], list[Child]] = {}

    def everybody(self) -> tuple[int, ...]:
        return tuple(self.children)

    def able(self, request: Request) -> list[Child]:
        """The children whose R can hold such a job."""
        found = self._able.get(request.key)
        if found is None:
            found = [child for child in self.children.values() if child.capacity(request)]
            self._able[request.key] = found
        return found

    def start(self, entry: Entry) -> int:
        group = self.catalog.group(entry.chunk.group)
        able = self.able(group.request)
        if not able:
            return 0
        taken = 0
        for receiver, chunk in self.distribution.split(entry.chunk, group, able):
            child = self.children[receiver.endpoint]
            child.line.append(chunk)
            child.waiting += len(chunk)
            taken += len(chunk)
            self._top_up(child)
        return taken

    def _top_up(self, child: Child) -> None:
        """Send a child as much of its line as its window allows."""
        while child.line:
            chunk = child.line[0]
            room = child.room_for(self.catalog.group(chunk.group))
            if room <= 0:
                return
            part, rest = chunk.split(room)
            if rest is None:
                child.line.popleft()
            else:
                child.line[0] = rest
            child.waiting -= len(part)
            self._send(child, part)

    def _send(self, child: Child, chunk: m.Chunk) -> None:
        if (child.endpoint, chunk.group) not in self._declared:
            self._declared.add((child.endpoint, chunk.group))
            self._out.append((child.endpoint, self.catalog.declared[chunk.group]))
        child.outstanding += len(chunk)
        child.group = chunk.group
        child.held.update(dict.fromkeys(self.catalog.ids(chunk), chunk.attempt))
        child.to_send.append(chunk)

    def collect(self, now: float) -> list[Action]:
        for child in self.children.values():
            if child.line:
                self._top_up(child)
        out, self._out = self._out, []
        for child in self.children.values():
            if child.to_send:
                out.append((child.endpoint, m.Submit(tuple(child.to_send))))
                child.to_send = []
        return out

    def balance(self, now: float) -> list[Action]:
        """Nothing is left to deal: recall from the fullest child what an idle one could start at once."""
        loads = []
        for child in self.children.values():
            if child.group < 0:
                loads.append((-1.0 if not child.outstanding else 0.0, 0, child))
                continue
            capacity = max(child.capacity_of(self.catalog.group(child.group)), 1)
            loads.append((child.outstanding / capacity, child.outstanding - capacity, child))
        richest = max(loads, key=lambda load: load[1])
        _, excess, child = richest
        if excess <= 0 or now < child.recall_after:
            return []
        group = self.catalog.group(child.group)
        free = sum(max(one.capacity_of(group) - one.outstanding, 0) for one in self.able(group.request)
                   if one is not child)
        n = min(free, math.ceil(excess / 2))
        if n <= 0:
            return []
        child.recall_after = now + RECALL_PAUSE
        return [(child.endpoint, m.Recall(n))]

    def report(self, src: int, report: m.Report, now: float) -> list[m.Chunk]:
        child = self.children[src]
        ended = child.forget(report)
        if ended:
            child.ended(ended, now)
        back = []
        for _, chunk in report.returned:
            for job in self.catalog.ids(chunk):
                child.held.pop(job, None)
            child.outstanding -= len(chunk)
            back.append(chunk)
        return back

    def recall(self, n: int) -> list[m.Chunk]:
        """Up to ``n`` jobs that wait in children's lines, last ones first."""
        taken: list[m.Chunk] = []
        for child in sorted(self.children.values(), key=lambda one: -one.waiting):
            while child.line and n > 0:
                chunk = child.line.pop()
                keep = max(len(chunk) - n, 0)
                if keep:
                    kept, last = chunk.split(keep)
                    child.line.append(kept)
                    assert last is not None
                    chunk = last
                child.waiting -= len(chunk)
                n -= len(chunk)
                taken.append(chunk)
        return taken

    def holding(self, wanted: frozenset[int]) -> list[int]:
        return [job for child in self.children.values()
                for job in (child.held.keys() & wanted if wanted else child.held)]

    def lost(self, executor: int) -> list[tuple[int, int]]:
        child = self.children[executor]
        jobs = list(child.held.items())
        child.held.clear()
        child.outstanding = 0
        return jobs

    def cancel(self, message: m.Cancel) -> list[m.Chunk]:
        wanted = frozenset(message.ids)

        def is_wanted(chunk: m.Chunk, index: int) -> bool:
            return not wanted or self.catalog.group(chunk.group).first_id + index in wanted

        removed: list[m.Chunk] = []
        for child in self.children.values():
            child.line = deque(part for chunk in child.line for part in split_out(chunk, is_wanted, removed))
            child.waiting = sum(map(len, child.line))
            if child.held and (not wanted or not wanted.isdisjoint(child.held)):
                self._out.append((child.endpoint, message))
        return removed
