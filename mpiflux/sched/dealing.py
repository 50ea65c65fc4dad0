"""Dealing jobs to child schedulers within credit windows.

A child's window is what its R holds at once plus what it gets done in a quarter of a second, measured from its own
reports: so it never runs dry, and no queue below the root grows with the workflow. Each shape of jobs has a window of
its own: jobs that keep all cores for hours do not keep those away that only want a GPU. When a child has nothing left
to do and there is nothing left to deal, jobs that a sibling has not started are recalled and dealt again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence

import msgspec

from mpiflux.model import messages as m
from mpiflux.model.jobspec import JobGroup, Request
from mpiflux.model.records import SIZE
from mpiflux.sched.borrowing import Borrower
from mpiflux.sched.catalog import Catalog
from mpiflux.sched.distribution import make
from mpiflux.sched.meter import Amounts, Meter
from mpiflux.sched.pool import ResourcePool
from mpiflux.sched.queue import Entry, split_out
from mpiflux.sched.urgency import cut

LOOKAHEAD = 0.25
"""Seconds of work that a child holds beyond what its R runs at once."""
RECALL_PAUSE = 0.05
"""Seconds between two recalls from the same child."""
_MEASURE = 0.02

Action = tuple[int, m.Message]


class _Count:
    """Jobs of one shape that a child has."""

    __slots__ = ("jobs",)

    def __init__(self) -> None:
        self.jobs = 0


class Child:
    """What a scheduler knows of one child. Implements :class:`mpiflux.sched.distribution.Receiver`."""

    def __init__(self, endpoint: int, pool: ResourcePool) -> None:
        self.endpoint = endpoint
        self._pool = pool
        self._nodes = {one.node for one in pool.nodes}
        self._capacity: dict[tuple[object, ...], int] = {}
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

    def has(self, node: int) -> bool:
        """Whether some of this node is its own."""
        return node in self._nodes

    def room_for(self, group: JobGroup) -> int:
        """How many more jobs of this group it should be sent now."""
        capacity = self.capacity(group.request)
        window = capacity + max(1, math.ceil(self.rate * LOOKAHEAD))
        outstanding = self.outstanding_of(group)
        room = window - outstanding
        # many small top-ups would cost a message each
        return room if room * 4 >= window or outstanding < capacity else 0

    def outstanding_of(self, group: JobGroup) -> int:
        """Jobs of this group's shape, sent and not reported as ended."""
        count = self._counts.get(group.request.key)
        return 0 if count is None else count.jobs

    def sent(self, group: JobGroup, chunk: m.Chunk) -> None:
        """Count jobs as outstanding."""
        key = group.request.key
        count = self._counts.get(key)
        if count is None:
            count = self._counts[key] = _Count()
        count.jobs += len(chunk)
        self.outstanding += len(chunk)
        self.group = chunk.group
        first = group.first_id
        ids = range(first + chunk.start, first + chunk.stop, chunk.step)
        self.held.update(dict.fromkeys(ids, (chunk.attempt, count)))

    def returned(self, ids: Iterable[int]) -> None:
        """Jobs that it gave back unstarted."""
        for job in ids:
            found = self.held.pop(job, None)
            if found is not None:
                found[1].jobs -= 1
            self.outstanding -= 1

    def clear(self) -> list[tuple[int, int]]:
        """It has nothing any more; what it had: (job id, attempt)."""
        jobs = [(job, attempt) for job, (attempt, _) in self.held.items()]
        self.held.clear()
        self._counts.clear()
        self.outstanding = 0
        return jobs

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
            found = held.pop(job, None)
            if found is not None:
                found[1].jobs -= 1
        return len(report.records) // SIZE


class _Sublet:
    """A part of our children's R that our parent waits for."""

    __slots__ = ("idle", "missing", "token")

    def __init__(self, token: int, missing: int) -> None:
        self.token, self.missing = token, missing
        self.idle = 0.0


class Dealing:
    """Implements :class:`mpiflux.sched.scheduler.Below` over children.

    ``meter`` counts named resources of the instance; ``bare``, which the borrower has too, is then for groups as those
    below see them, without these.
    """

    def __init__(self, children: Sequence[Child], distribution: str, catalog: Catalog, parent: int = -1,
                 borrower: Borrower | None = None, meter: Meter | None = None, bare: Catalog | None = None) -> None:
        self.children = {child.endpoint: child for child in children}
        self.parent, self.borrower = parent, borrower
        self._sublets: dict[int, _Sublet] = {}
        """What is being freed for our own parent, by the token of each part."""
        self._next_token = 0
        self.now = 0.0
        """Set by the scheduler before it asks for anything."""
        self.catalog = catalog
        self._meter = meter
        self._bare = bare if bare is not None else catalog
        self.distribution = make(distribution)
        self._declared: set[tuple[int, int]] = set()
        self._out: list[Action] = []
        self._able: dict[tuple[object, ...], list[Child]] = {}
        self.again = False
        self._refused: set[int] = set()
        """Groups of which nothing more can be started on what is borrowed, in this round of decisions."""

    def everybody(self) -> tuple[int, ...]:
        return tuple(self.children)

            self._out += [(child.endpoint, message) for message in self.catalog.urged(chunk.group)]
    def able(self, request: Request) -> list[Child]:
        """The children whose R can hold such a job."""
        found = self._able.get(request.key)
        if found is None:
            found = [child for child in self.children.values() if child.capacity(request)]
            self._able[request.key] = found
        return found

    def start(self, entry: Entry) -> int:
        meter = self._meter
        if meter is None:
            return self._start(entry)
        declared = self.catalog.declared[entry.chunk.group]
        asked = meter.asked(declared.group.request)
        if entry.chunk.group not in self._bare.declared:
            self._bare.add(_without(declared, asked))
        if not asked:
            return self._start(entry)
        room = meter.room(asked, len(entry))
        if not room:
            return 0
        some = Entry(entry.chunk.split(room)[0], entry.lane, entry.arrived)
        started = self._start(some)
        if started:
            jobs = some.chunk.split(started)[0]
            meter.take(self.catalog.ids(jobs), jobs.attempt, asked)
        return started

    def _start(self, entry: Entry) -> int:
        group = self._bare.group(entry.chunk.group)
        able = self.able(group.request)
        if group.on:
            # all jobs of an entry are for one node (mpiflux.sched.scheduler)
            node = group.node_of(entry.chunk.start)
            able = [child for child in able if child.has(node)][:1]
        if not able:
            return self._start_borrowed(entry)
        taken = 0
        for receiver, chunk in self.distribution.split(entry.chunk, group, able):
            child = self.children[receiver.endpoint]
            child.line.append(chunk)
            child.waiting += len(chunk)
            taken += len(chunk)
            self._top_up(child)
        return taken

    def _start_borrowed(self, entry: Entry) -> int:
        """A job that no child can hold."""
        group = entry.chunk.group
        if self.borrower is None or group in self._refused:
            return 0
        self.borrower.at(self.now)
        started = self.borrower.start(entry)
        if started < len(entry):
            self._refused.add(group)
        return started

    def _top_up(self, child: Child) -> None:
        """Send a child as much of its line as its window allows."""
        while child.line:
            chunk = child.line[0]
            room = child.room_for(self._bare.group(chunk.group))
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
            self._out.append((child.endpoint, self._bare.declared[chunk.group]))
        child.sent(self._bare.group(chunk.group), chunk)
        child.to_send.append(chunk)

    def part(self, src: int, message: m.Message, now: float) -> list[Action] | None:
        """Of a job that runs on what was borrowed."""
        return None if self.borrower is None else self._noted(self.borrower.own.part(src, message, now))

    def _noted(self, actions: list[Action] | None) -> list[Action] | None:
        """Actions of the borrower's own jobs, among them their ends."""
        if self._meter is not None:
            for _, message in actions or ():
                if isinstance(message, m.Report):
                    self._meter.ended(message.records)
        return actions

    def stop(self) -> None:
        if self.borrower is not None:
            self.borrower.own.stop()

    def collect(self, now: float) -> list[Action]:
        for child in self.children.values():
            if child.line:
                self._top_up(child)
        out, self._out = self._out, []
        for child in self.children.values():
            if child.to_send:
                out.append((child.endpoint, m.Submit(tuple(child.to_send))))
                child.to_send = []
        self._refused.clear()
        if self._meter is not None:
            self._meter.over()
        self.again = self.borrower is not None and self.borrower.unclaimed()
        if self.borrower is not None:
            out += self._noted(self.borrower.collect(now)) or ()
        return out

    # -- borrowing from children, for ourselves or for our parent ------------------------------------------------

    def lend(self, message: m.Borrow, now: float) -> None:
        """Our parent wants resources that are our children's."""
        assert self.borrower is not None
        parts = self.borrower.split(message.shares)
        sublet = _Sublet(message.token, len(parts))
        for child, shares in parts.items():
            # never one of the borrower's, which count up from its scheduler's number
            self._next_token -= 1
            self._sublets[self._next_token] = sublet
            self._out.append((child, m.Borrow(self._next_token, shares)))

    def lent(self, src: int, message: m.Lend) -> None:
        """A child has freed its part, of a place for ourselves or for our parent."""
        sublet = self._sublets.pop(message.token, None)
        if sublet is None:
            assert self.borrower is not None
            self.borrower.lent(src, message)
            return
        sublet.missing -= 1
        sublet.idle += message.idle
        if not sublet.missing:
            self._out.append((self.parent, m.Lend(sublet.token, sublet.idle)))

    def regain(self, shares: tuple[m.NodeShare, ...]) -> None:
        """Our parent gives back what it borrowed."""
        assert self.borrower is not None
        self._out += [(child, m.Return(part)) for child, part in self.borrower.split(shares).items()]

    def balance(self, now: float) -> list[Action]:
        """Nothing is left to deal: recall from the fullest child what an idle one could start at once."""
        if getattr(self.distribution, "binding", False):
            return []
        loads = []
    def withdraw(self, message: m.Urgency) -> list[m.Chunk]:
        """See :meth:`mpiflux.sched.scheduler.Below.withdraw`."""
        taken: list[m.Chunk] = []
        for child in self.children.values():
            kept: deque[m.Chunk] = deque()
            for chunk in child.line:
                parts = cut(chunk, message.start, message.stop) if chunk.group == message.group else (chunk, None, None)
                kept += [part for part in (parts[0], parts[2]) if part is not None]
                taken += [parts[1]] if parts[1] is not None else []
            child.line, child.waiting = kept, sum(map(len, kept))
            if (child.endpoint, message.group) in self._declared:
                self._out.append((child.endpoint, message))
        self._unmeter(taken)
        return taken

        for child in self.children.values():
            if child.group < 0:
                loads.append((-1.0 if not child.outstanding else 0.0, 0, child))
                continue
            latest = self._bare.group(child.group)
            capacity, outstanding = max(child.capacity_of(latest), 1), child.outstanding_of(latest)
            loads.append((outstanding / capacity, outstanding - capacity, child))
        richest = max(loads, key=lambda load: load[1])
        _, excess, child = richest
        if excess <= 0 or now < child.recall_after:
            return []
        group = self._bare.group(child.group)
        if group.on:
            # it would come back to the same child
            return []
        free = sum(max(one.capacity_of(group) - one.outstanding_of(group), 0) for one in self.able(group.request)
                   if one is not child)
        n = min(free, math.ceil(excess / 2))
        if n <= 0:
            return []
        child.recall_after = now + RECALL_PAUSE
        return [(child.endpoint, m.Recall(n))]

    def report(self, src: int, report: m.Report, now: float) -> list[m.Chunk]:
        if self._meter is not None:
            self._meter.ended(report.records)
        back = self._report(src, report, now)
        self._unmeter(back)
        return back

    def _unmeter(self, chunks: Iterable[m.Chunk]) -> None:
        """Jobs of these chunks are no longer below."""
        if self._meter is not None:
            for chunk in chunks:
                self._meter.give(self.catalog.ids(chunk))

    def _report(self, src: int, report: m.Report, now: float) -> list[m.Chunk]:
        if src not in self.children:
            assert self.borrower is not None
            return self.borrower.own.report(src, report, now)
        child = self.children[src]
        ended = child.forget(report)
        if ended:
            child.ended(ended, now)
        back = []
        for _, chunk in report.returned:
            child.returned(self.catalog.ids(chunk))
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
        self._unmeter(taken)
        return taken

    def holding(self, wanted: frozenset[int]) -> list[int]:
        found = [job for child in self.children.values()
                 for job in (child.held.keys() & wanted if wanted else child.held)]
        return found + self.borrower.own.holding(wanted) if self.borrower is not None else found

    def lost(self, executor: int) -> list[tuple[int, int]]:
        if executor not in self.children:
            assert self.borrower is not None
            jobs = self.borrower.own.lost(executor)
        else:
            jobs = self.children[executor].clear()
        if self._meter is not None:
            self._meter.give([job for job, _ in jobs])
        return jobs

    def pause(self, message: m.Pause) -> None:
        self._out += [(child.endpoint, message) for child in self.children.values()]

    def reach(self, message: m.Listen | m.Signal | m.Stdin) -> None:
        wanted = set(message.ids)
        self._out += [(child.endpoint, message) for child in self.children.values()
                      if not wanted.isdisjoint(child.held)]
        if self.borrower is not None:
            self.borrower.own.reach(message)

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
        if self.borrower is not None:
            self.borrower.own.cancel(message)
        self._unmeter(removed)
        return removed


def _without(declared: m.Declare, asked: Amounts) -> m.Declare:
    """A group whose jobs ask for none of these."""
    group = declared.group
    names = {name for name, _ in asked}
    rest = {name: amount for name, amount in group.request.consumables.items() if name not in names}
    request = msgspec.structs.replace(group.request, consumables=rest)
    return msgspec.structs.replace(declared, group=msgspec.structs.replace(group, request=request))
