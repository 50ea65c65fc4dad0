"""A scheduler's own resources, as leases that executors run jobs on.

A lease is R for one job of some shape. While an executor has jobs of that shape it starts one after the other on the
same lease, without asking; how many it is given ahead follows from how long such jobs take, so that a job of a
millisecond never waits for a message and a job of a minute is placed only when its resources are free.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from mpiflux.model import messages as m
from mpiflux.model.jobspec import Request
from mpiflux.model.records import SIZE
from mpiflux.sched.catalog import Catalog
from mpiflux.sched.pool import ResourcePool
from mpiflux.sched.queue import Entry

AHEAD = 0.05
"""Seconds of work that an executor is given beyond what runs."""
MOST_AHEAD = 128
"""Jobs for each lease, however short they are."""
SLOW = 0.1
"""Jobs that take longer than this many seconds are never given ahead."""

Action = tuple[int, m.Message]


class Shape:
    """Everything about equal requests."""

    def __init__(self, number: int, request: Request) -> None:
        self.number, self.request = number, request
        self.leases: dict[int, int] = {}
        """Number of leases by executor."""
        self.fed: dict[int, int] = {}
        """Jobs that an executor has and has not reported."""


class Lease:
    __slots__ = ("executor", "r", "shape")

    def __init__(self, shape: Shape, executor: int, r: m.ResourceSet) -> None:
        self.shape, self.executor, self.r = shape, executor, r


class Leasing:
    """Implements :class:`mpiflux.sched.scheduler.Below` over executors.

    ``executor_of(node, core)`` names the executor that starts processes for a core.
    """

    def __init__(self, number: int, parent: int, pool: ResourcePool, executor_of: Callable[[int, int], int],
                 executors: tuple[int, ...], catalog: Catalog) -> None:
        self.number, self.parent, self.pool, self.catalog = number, parent, pool, catalog
        self._executor_of = executor_of
        self._executors = executors
        self._shapes: dict[tuple[object, ...], Shape] = {}
        self._by_number: dict[int, Shape] = {}
        self._leases: dict[int, Lease] = {}
        self._next_lease = 0
        self._r_ids: dict[m.ResourceSet, int] = {}
        self._seconds: dict[int, float] = {}
        """How long jobs of a group take, a moving average."""
        self._held: dict[int, dict[int, int]] = {executor: {} for executor in executors}
        """Attempts that each executor has, by job id."""
        self._declared: set[tuple[int, int]] = set()
        self._feeds: dict[tuple[int, int], list[m.Chunk]] = {}
        self._out: list[Action] = []

    def everybody(self) -> tuple[int, ...]:
        return self._executors

    def _ahead(self, group: int) -> int:
        """Jobs that each lease may have beyond the one that runs."""
        seconds = self._seconds.get(group)
        if seconds is None or seconds > SLOW:
            return 0
        return min(MOST_AHEAD, math.ceil(AHEAD / max(seconds, 1e-6)))

    def _shape(self, request: Request) -> Shape:
        shape = self._shapes.get(request.key)
        if shape is None:
            # executors serve several schedulers: numbers are theirs alone
            shape = Shape((self.number << 24) + len(self._shapes), request)
            self._shapes[request.key] = self._by_number[shape.number] = shape
        return shape

    def start(self, entry: Entry) -> int:
        chunk = entry.chunk
        shape = self._shape(self.catalog.group(chunk.group).request)
        each = 1 + self._ahead(chunk.group)
        left = total = len(chunk)
        rest: m.Chunk | None = chunk
        for executor, leases in shape.leases.items():
            room = min(leases * each - shape.fed[executor], left)
            if room > 0 and rest is not None:
                part, rest = rest.split(room)
                left -= room
                self._feed(executor, shape, part)
        while rest is not None:
            r = self.pool.alloc(shape.request)
            if r is None:
                break
            executor = self._grant(shape, r)
            room = min(max(shape.leases[executor] * each - shape.fed[executor], 0), left)
            if room:
                part, rest = rest.split(room)
                left -= room
                self._feed(executor, shape, part)
        return total - left

    def _grant(self, shape: Shape, r: m.ResourceSet) -> int:
        share = r.shares[0]
        executor = self._executor_of(share.node, share.cores[0] if share.cores else -1)
        self._next_lease += 1
        number = (self.number << 32) + self._next_lease
        self._leases[number] = Lease(shape, executor, r)
        shape.leases[executor] = shape.leases.get(executor, 0) + 1
        shape.fed.setdefault(executor, 0)
        r_id = self._r_ids.get(r)
        if r_id is None:
            r_id = self._r_ids[r] = len(self._r_ids)
            self._out.append((self.parent, m.NewR(self.number, r_id, r)))
        self._out.append((executor, m.Grant(number, shape.number, r_id, r)))
        return executor

    def _feed(self, executor: int, shape: Shape, chunk: m.Chunk) -> None:
        if (executor, chunk.group) not in self._declared:
            self._declared.add((executor, chunk.group))
            self._out.append((executor, self.catalog.declared[chunk.group]))
        shape.fed[executor] += len(chunk)
        self._held[executor].update(dict.fromkeys(self.catalog.ids(chunk), chunk.attempt))
        self._feeds.setdefault((executor, shape.number), []).append(chunk)

    def collect(self, now: float) -> list[Action]:
        out, self._out = self._out, []
        for (executor, shape), chunks in self._feeds.items():
            out.append((executor, m.Feed(shape, tuple(chunks))))
        self._feeds.clear()
        return out

    def balance(self, now: float) -> list[Action]:
        return []

    def recall(self, n: int) -> list[m.Chunk]:
        return []

    def report(self, src: int, report: m.Report, now: float) -> list[m.Chunk]:
        held = self._held[src]
        if report.records:
            # the id is the first of the eight-byte words of a record
            for job in memoryview(report.records).cast("Q")[::SIZE // 8].tolist():
                held.pop(job, None)
        for number, group, count, seconds in report.done:
            self._by_number[number].fed[src] -= count
            mean = seconds / count
            self._seconds[group] = 0.5 * (self._seconds.get(group, mean) + mean)
        back = []
        for number, chunk in reversed(report.returned):
            self._by_number[number].fed[src] -= len(chunk)
            for job in self.catalog.ids(chunk):
                held.pop(job, None)
            # it waited behind a long job: whatever the average says, do not do that again soon
            self._seconds[chunk.group] = max(self._seconds.get(chunk.group, 0.0), 2 * SLOW)
            back.append(chunk)
        for number in report.idle:
            self._end_lease(number)
        return back

    def _end_lease(self, number: int) -> None:
        lease = self._leases.pop(number, None)
        if lease is not None:
            lease.shape.leases[lease.executor] -= 1
            self.pool.free(lease.r, lease.shape.request)

    def holding(self, wanted: frozenset[int]) -> list[int]:
        return [job for held in self._held.values() for job in (held.keys() & wanted if wanted else held)]

    def lost(self, executor: int) -> list[tuple[int, int]]:
        for number in [n for n, lease in self._leases.items() if lease.executor == executor]:
            self._end_lease(number)
        for shape in self._by_number.values():
            if executor in shape.fed:
                shape.fed[executor] = 0
        for key in [key for key in self._feeds if key[0] == executor]:
            # not sent yet: its leases are over all the same
            del self._feeds[key]
        jobs = list(self._held[executor].items())
        self._held[executor].clear()
        return jobs

    def cancel(self, message: m.Cancel) -> list[m.Chunk]:
        wanted = set(message.ids)
        for executor, held in self._held.items():
            if held and (not wanted or not wanted.isdisjoint(held)):
                self._out.append((executor, message))
        return []
