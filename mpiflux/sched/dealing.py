"""Dealing jobs to child schedulers within credit windows.

A child's window is what its R holds at once plus what it gets done in a quarter of a second, measured from its own
reports: so it never runs dry, and no queue below the root grows with the workflow.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from mpiflux.model import messages as m
from mpiflux.model.jobspec import Request
from mpiflux.model.records import SIZE
from mpiflux.sched.catalog import Catalog
from mpiflux.sched.pool import ResourcePool
from mpiflux.sched.queue import Entry, split_out

LOOKAHEAD = 0.25
"""Seconds of work that a child holds beyond what its R runs at once."""
_MEASURE = 0.02

Action = tuple[int, m.Message]


class Child:
    """What a scheduler knows of one child."""

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
        self.assigned: deque[m.Chunk] = deque()
        """Jobs that are its own, but beyond its window (round robin)."""
        self.to_send: list[m.Chunk] = []
        self.held: dict[int, int] = {}
        """Attempts sent to it, by job id."""

    def capacity(self, request: Request) -> int:
        """How many jobs of this shape its R holds at once."""
        found = self._capacity.get(request.key)
        if found is None:
            found = self._capacity[request.key] = self._pool.capacity(request)
        return found

    def room(self, request: Request) -> int:
        """How many more jobs of this shape it should be sent now."""
        capacity = self.capacity(request)
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


class Dealing:
    """Implements :class:`mpiflux.sched.scheduler.Below` over children.

    ``distribution`` is ``pull`` (jobs go where there is room) or ``round_robin`` (the n-th job belongs to the n-th
    child, whatever the others do: the paper's default).
    """

    def __init__(self, children: Sequence[Child], distribution: str, catalog: Catalog) -> None:
        self.children = {child.endpoint: child for child in children}
        self.catalog = catalog
        self._round_robin = distribution == "round_robin"
        self._turn = 0
        self._declared: set[tuple[int, int]] = set()
        self._out: list[Action] = []

    def everybody(self) -> tuple[int, ...]:
        return tuple(self.children)

    def start(self, entry: Entry) -> int:
        request = self.catalog.group(entry.chunk.group).request
        able = [child for child in self.children.values() if child.capacity(request)]
        if not able:
            return 0
        return self._assign_in_turn(entry.chunk, able) if self._round_robin else self._pull(entry.chunk, request, able)

    def _pull(self, chunk: m.Chunk, request: Request, able: list[Child]) -> int:
        rooms = [(child, child.room(request)) for child in able]
        rooms = [(child, room) for child, room in rooms if room > 0]
        left = total = len(chunk)
        rest: m.Chunk | None = chunk
        # where there are fewer jobs than room, everybody gets a share of them, the least loaded first
        rooms.sort(key=lambda pair: pair[0].outstanding / pair[0].capacity(request))
        room_left = sum(room for _, room in rooms)
        for child, room in rooms:
            if rest is None:
                break
            n = min(room, max(1, math.ceil(left * room / room_left)), left)
            room_left -= room
            part, rest = rest.split(n)
            left -= n
            self._send(child, part)
        return total - left

    def _assign_in_turn(self, chunk: m.Chunk, able: list[Child]) -> int:
        step = chunk.step * len(able)
        for offset in range(min(len(able), len(chunk))):
            child = able[(self._turn + offset) % len(able)]
            start = chunk.start + offset * chunk.step
            child.assigned.append(m.Chunk(chunk.group, start, chunk.stop, step, chunk.attempt))
        self._turn = (self._turn + len(chunk)) % len(able)
        return len(chunk)

    def _top_up(self, child: Child) -> None:
        while child.assigned:
            chunk = child.assigned[0]
            room = child.room(self.catalog.group(chunk.group).request)
            if room <= 0:
                return
            part, rest = chunk.split(room)
            if rest is None:
                child.assigned.popleft()
            else:
                child.assigned[0] = rest
            self._send(child, part)

    def _send(self, child: Child, chunk: m.Chunk) -> None:
        if (child.endpoint, chunk.group) not in self._declared:
            self._declared.add((child.endpoint, chunk.group))
            self._out.append((child.endpoint, self.catalog.declared[chunk.group]))
        child.outstanding += len(chunk)
        child.held.update(dict.fromkeys(self.catalog.ids(chunk), chunk.attempt))
        child.to_send.append(chunk)

    def collect(self, now: float) -> list[Action]:
        out, self._out = self._out, []
        for child in self.children.values():
            if child.assigned:
                self._top_up(child)
                out += self._out
                self._out = []
            if child.to_send:
                out.append((child.endpoint, m.Submit(tuple(child.to_send))))
                child.to_send = []
        return out

    def report(self, src: int, report: m.Report, now: float) -> list[m.Chunk]:
        child = self.children[src]
        if report.records:
            held = child.held
            for job in memoryview(report.records).cast("Q")[::SIZE // 8].tolist():
                held.pop(job, None)
            child.ended(len(report.records) // SIZE, now)
        return []

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
            kept = [part for chunk in child.assigned for part in split_out(chunk, is_wanted, removed)]
            child.assigned = deque(kept)
            if child.held and (not wanted or not wanted.isdisjoint(child.held)):
                self._out.append((child.endpoint, message))
        return removed
