"""Dealing jobs to child schedulers within credit windows.

A child's window is what its R holds at once plus what it gets done in a quarter of a second, measured from its own
reports: so it never runs dry, and no queue below the root grows with the workflow. Each shape of jobs has a window of
its own: jobs that keep all cores for hours do not keep those away that only want a GPU. When a child has nothing left
to do and there is nothing left to deal, jobs that a sibling has not started are recalled and dealt again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush

import msgspec

from mpiflux.model import messages as m
from mpiflux.model.jobspec import JobGroup
from mpiflux.sched.borrowing import Borrower
from mpiflux.sched.catalog import Catalog
from mpiflux.sched.children import Child, Shape
from mpiflux.sched.distribution import Assignment, Pull, make
from mpiflux.sched.explain import Fact, narrowest, too_much, used_up, wants
from mpiflux.sched.meter import Amounts, Meter
from mpiflux.sched.own import blame, check_split, is_own
from mpiflux.sched.pool import ResourcePool
from mpiflux.sched.queue import Entry
from mpiflux.sched.sublets import Sublets

RECALL_PAUSE = 0.02
"""Seconds between two recalls from the same child."""

Action = tuple[int, m.Message]


class Dealing:
    """Implements :class:`mpiflux.sched.scheduler.Below` over children.

    ``meter`` counts named resources of the instance; ``bare``, which the borrower has too, is then for groups as those
    below see them, without these.
    """

    def __init__(self, children: Sequence[Child], distribution: str, catalog: Catalog, parent: int = -1,
                 borrower: Borrower | None = None, meter: Meter | None = None, bare: Catalog | None = None) -> None:
        self.children = {child.endpoint: child for child in children}
        self.parent, self.borrower = parent, borrower
        self._sublets = Sublets(parent)
        self.now = 0.0
        """Set by the scheduler before it asks for anything."""
        self.catalog = catalog
        self._meter = meter
        self._bare = bare if bare is not None else catalog
        self.distribution = make(distribution)
        self._is_own = is_own(self.distribution)
        self._binding = getattr(self.distribution, "binding", False)
        self._declared: set[tuple[int, int]] = set()
        self._out: list[Action] = []
        self._shapes: dict[tuple[object, ...], Shape] = {}
        self._shape_of: dict[int, Shape] = {}
        """By group."""
        self._changes: list[Child] = []
        self._rich: list[tuple[int, int, int, Child]] = []
        """(- jobs beyond what it runs at once, place, version, child) of those that have some."""
        self._rich_seen = 0
        self._pulls = type(self.distribution) is Pull
        self._lines: dict[int, Child] = {}
        """Children with something in their line, or to be sent."""
        self._keys: dict[int, tuple[object, ...]] = {}
        self._meet()
        self.again = self.quiet = False
        self.due, self.lets_go = math.inf, True
        self._refused: set[tuple[int, int]] = set()
        """(group, node) of which nothing more can be started on what is borrowed, in this round of decisions."""
        self._waiting = 0
        """The highest urgency of what children had no room for in this round."""

    def _meet(self) -> None:
        """The children are those that there are now."""
        self._shapes.clear()
        self._shape_of.clear()
        self._changes.clear()
        self._rich.clear()
        self._rich_seen = 0
        self._lines = {child.endpoint: child for child in self.children.values() if child.line or child.to_send}
        for place, child in enumerate(self.children.values()):
            child.place, child.changes, child.keys = place, self._changes, self._keys
            child.touch()

    def everybody(self) -> tuple[int, ...]:
        return tuple(self.children)

    def _shape(self, group: JobGroup) -> Shape:
        found = self._shape_of.get(group.number)
        if found is None:
            key = group.request.key
            found = self._shapes.get(key)
            if found is None:
                able = [child for child in self.children.values() if child.capacity(group.request)]
                found = self._shapes[key] = Shape(group, able)
            self._shape_of[group.number] = found
        return found

    def _forget_changes(self) -> None:
        """Now and then, as the list only grows."""
        if len(self._changes) > 4096 + 4 * len(self.children):
            for shape in self._shapes.values():
                if shape.seen >= 0:
                    shape.sync(self._changes)
                    shape.seen = 0
            self._note_rich()
            self._changes.clear()
            self._rich_seen = 0

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
        shape = self._shape(group)
        able = shape.able
        if group.on:
            # all jobs of an entry are for one node (mpiflux.sched.scheduler)
            node = group.node_of(entry.chunk.start)
            able = [child for child in able if child.holds(node, group.request)]
        if not able:
            return self._start_borrowed(entry)
        if self._pulls and not group.on:
            heap = shape.sync(self._changes)
            while heap and heap[0][2] != heap[0][3].version:
                heappop(heap)
            if not heap:
                self._waiting = max(self._waiting, entry.lane.priority)
                return 0
            if len(entry) == 1:
                return self._hand(heap[0][3], entry.chunk)
            heap[:] = sorted(one for one in heap if one[2] == one[3].version)
            able = [one[3] for one in heap]
        taken = 0
        for receiver, chunk in self._split(entry.chunk, group, able):
            taken += self._hand(self.children[receiver.endpoint], chunk)
        if taken < len(entry):
            self._waiting = max(self._waiting, entry.lane.priority)
        return taken

    def _split(self, chunk: m.Chunk, group: JobGroup, able: list[Child]) -> list[Assignment]:
        if not self._is_own:
            return self.distribution.split(chunk, group, able)
        try:
            given = self.distribution.split(chunk, group, able)
            check_split(self.distribution, chunk, given, able)
        except Exception as error:
            raise blame("distribution", self.distribution, error) from error
        return given

    def _hand(self, child: Child, chunk: m.Chunk) -> int:
        """Give a child jobs of its own; how many."""
        child.put_last(chunk)
        self._lines[child.endpoint] = child
        self._top_up(child)
        return len(chunk)

    def _start_borrowed(self, entry: Entry) -> int:
        """A job that no child can hold."""
        number = entry.chunk.group
        asker = number, self._bare.group(number).node_of(entry.chunk.start)
        if self.borrower is None or asker in self._refused:
            return 0
        self.borrower.at(self.now)
        waiting = self._waiting
        if not waiting and any(self.children[child].outstanding for child in self.borrower.lenders):
            # what those who lend were dealt may wait for what they have lent
            waiting = entry.lane.priority
        started = self.borrower.start(entry, waiting)
        if started < len(entry):
            self._refused.add(asker)
        # what children were dealt before comes before what is claimed now
        actions = self.borrower.actions()
        for endpoint, _ in actions:
            self._submit(endpoint)
        self._out += actions
        return started

    def _submit(self, endpoint: int) -> None:
        """Send a child what it was dealt."""
        child = self.children.get(endpoint)
        if child is not None and child.to_send:
            self._out.append((endpoint, m.Submit(tuple(child.to_send))))
            child.to_send = []

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
            self._out += [(child.endpoint, message) for message in self.catalog.urged(chunk.group)]
        child.sent(self._bare.group(chunk.group), chunk)
        child.to_send.append(chunk)

    def forget(self, groups: Sequence[int]) -> None:
        """See :meth:`mpiflux.sched.scheduler.Below.forget`."""
        for child in self.children.values():
            known = tuple(group for group in groups if (child.endpoint, group) in self._declared)
            if known:
                self._declared.difference_update([(child.endpoint, group) for group in known])
                self._out.append((child.endpoint, m.Forget(known)))
            # what children were sent last is looked up again when it is forgotten
            child.keys.clear()
        self._shape_of.clear()
        if self.borrower is not None:
            self.borrower.own.forget(groups)
        if self._bare is not self.catalog:
            self._bare.forget(groups)

    def part(self, src: int, message: m.Message, now: float) -> list[Action] | None:
        """Of a job that runs on what was borrowed."""
        return None if self.borrower is None else self._noted(self.borrower.own.part(src, message, now))

    def _hear(self) -> None:
        """Something befell the borrower's own jobs. Those that it ended give back what the meter counts at once: at
        the next decision others may have it, and there may be no decision after that."""
        if self.borrower is not None:
            self._out += self._noted(self.borrower.own.told()) or ()

    def _noted(self, actions: list[Action] | None) -> list[Action] | None:
        """Actions of the borrower's own jobs, among them their ends."""
        if self._meter is not None:
            for _, message in actions or ():
                if isinstance(message, m.Report):
                    self._meter.ended(message.records)
        return actions

    def regrow(self, message: m.Regrow, now: float) -> tuple[list[tuple[int, int]], list[m.Chunk]]:
        """See :meth:`mpiflux.sched.scheduler.Below.regrow`. Only the root's children ever change."""
        jobs: list[tuple[int, int]] = []
        back: list[m.Chunk] = []
        for endpoint in message.lost:
            child = self.children.pop(endpoint)
            jobs += child.clear()
            back += child.line
        for node in message.gained:
            self.children[node.id] = Child(node.id, ResourcePool(node.resources))
        self._meet()
        if self.borrower is not None:
            jobs += self.borrower.regrow([(child.endpoint, child.pool) for child in self.children.values()], message,
                                         now)
            # before they are sent anything to do
            self._out += self.borrower.actions()
            self._hear()
        self._unmeter(back)
        if self._meter is not None:
            self._meter.give([job for job, _ in jobs])
        return jobs, back

    def stop(self) -> None:
        if self.borrower is not None:
            self.borrower.own.stop()

    def collect(self, now: float) -> list[Action]:
        self._forget_changes()
        for child in self._lines.values():
            if child.line:
                self._top_up(child)
        for child in list(self._lines.values()):
            self._submit(child.endpoint)
            if not child.line:
                del self._lines[child.endpoint]
        out, self._out = self._out, []
        self._refused.clear()
        self._waiting = 0
        if self._meter is not None:
            self._meter.over()
        self.again = self.borrower is not None and self.borrower.unclaimed()
        if self.borrower is not None:
            out += self.borrower.collect(now)
        return out

    # -- borrowing from children, for ourselves or for our parent ------------------------------------------------

    def lend(self, message: m.Borrow, now: float) -> None:
        """Our parent wants resources that are our children's."""
        assert self.borrower is not None
        self._out += self._sublets.lend(message.token, self.borrower.split(message.shares))

    def lent(self, src: int, message: m.Lend) -> None:
        """A child has freed its part, of a place for ourselves or for our parent."""
        if message.token in self._sublets:
            self._out += self._sublets.lent(message)
            return
        assert self.borrower is not None
        self.borrower.at(self.now)
        self.borrower.lent(src, message)

    def regain(self, shares: tuple[m.NodeShare, ...]) -> None:
        """Our parent gives back what it borrowed."""
        assert self.borrower is not None
        self._out += [(child, m.Return(part)) for child, part in self.borrower.split(shares).items()]

    def balance(self, now: float) -> list[Action]:
        """Nothing is left to deal: recall from the fullest child what idle ones could have."""
        if self._lines and not self._binding and (evened := self._even_lines()):
            return evened
        richest = self._richest()
        if richest is None:
            return []
        child, group, excess = richest
        shape = self._shape(group)
        shape.sync(self._changes)
        # what it has too much itself it has no room for
        return self._recall_from(child, min(shape.room_of_idle(), excess), now)

    def pull(self, n: int, now: float) -> list[Action]:
        """See :meth:`mpiflux.sched.scheduler.Below.pull`."""
        richest = self._richest()
        return self._recall_from(richest[0], min(n, richest[2]), now) if richest is not None else []

    def _even_lines(self) -> list[Action]:
        """Give an idle child half of what waits here for the one that has most in its line."""
        donor = max(self._lines.values(), key=lambda one: one.waiting)
        if not donor.line:
            return []
        group = self._bare.group(donor.line[-1].group)
        shape = self._shape(group)
        shape.sync(self._changes)
        taker = shape.idlest()
        if group.on or taker is None or taker is donor:
            return []
        for chunk in donor.take_last(min(taker.room_for(group), math.ceil(donor.waiting / 2))):
            able = self._shape(self._bare.group(chunk.group)).able
            if taker in able and not self._bare.group(chunk.group).on:
                self._hand(taker, chunk)
            else:
                donor.put_last(chunk)
        self._submit(taker.endpoint)
        out, self._out = self._out, []
        return out

    def _richest(self) -> tuple[Child, JobGroup, int] | None:
        """The child with the most jobs beyond what it runs at once, of which group, and half of how many; None when
        there is none that may be asked."""
        if self._binding:
            return None
        self._note_rich()
        rich = self._rich
        while rich and rich[0][2] != rich[0][3].version:
            heappop(rich)
        if not rich:
            return None
        child = rich[0][3]
        group = child.latest
        if group is None or group.on:
            # it would come back to the same child
            return None
        return child, group, math.ceil(-rich[0][0] / 2)

    def _recall_from(self, child: Child, n: int, now: float) -> list[Action]:
        if n <= 0:
            return []
        if now < child.recall_after:
            self.due = min(self.due, child.recall_after)
            return []
        child.recall_after = now + RECALL_PAUSE
        return [(child.endpoint, m.Recall(n))]

    def _note_rich(self) -> None:
        for child in dict.fromkeys(self._changes[self._rich_seen:]):
            latest = child.latest
            if latest is not None:
                excess = child.outstanding_of(latest) - max(child.capacity_of(latest), 1)
                if excess > 0:
                    heappush(self._rich, (-excess, child.place, child.version, child))
        self._rich_seen = len(self._changes)

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
            for chunk in child.take_last(n):
                n -= len(chunk)
                taken.append(chunk)
        self._unmeter(taken)
        return taken

    def explain(self, message: m.Explain) -> list[Fact] | None:
        """See :meth:`mpiflux.sched.scheduler.Below.explain`."""
        for child in self.children.values():
            if message.id in child.held:
                self._out.append((child.endpoint, message))
                return None
            for chunk in child.line:
                if chunk.group == message.group and message.index in range(chunk.start, chunk.stop, chunk.step):
                    return [(f"it is scheduler {child.endpoint}'s, which has as much as it can take", 0.0)]
        if self.borrower is not None:
            return self.borrower.own.explain(message)
        return [("it is starting, or on its way between schedulers: ask again", 0.0)]

    def lacks(self, entry: Entry) -> list[Fact]:
        """See :meth:`mpiflux.sched.scheduler.Below.lacks`."""
        group = self.catalog.group(entry.chunk.group)
        inner = self._bare.declared.get(entry.chunk.group)
        request = inner.group.request if inner is not None else group.request
        node = group.node_of(entry.chunk.start)
        able = [child for child in self.children.values()
                if (child.capacity(request) if node < 0 else child.holds(node, request))]
        if not able:
            much = too_much(request, [child.nodes for child in self.children.values()])
            why = f"more{' ' * bool(much)}{much} than any scheduler below has: it starts on what they lend"
        elif self._meter is not None and (short := used_up(group, self._meter.free, self._meter.totals)):
            why = f"and it waits for {short}"
        else:
            why = "and the schedulers below that can hold it have as much as they can take"
            few = narrowest(request, [node for child in able for node in child.nodes])
            why += f": {few} is what there is least of" if few else ""
        return [(f"it asks for {wants(group)}, {why}", 0.0)]

    def could_start(self, entry: Entry) -> bool:
        """Whether a child that can hold it has nothing of its shape to wait for."""
        declared = self.catalog.declared[entry.chunk.group].group
        if declared.on or (self._meter is not None and used_up(declared, self._meter.free, self._meter.totals)):
            return False
        group = self._bare.group(entry.chunk.group) if entry.chunk.group in self._bare.declared else declared
        return any(child.outstanding_of(group) < child.capacity(group.request) and not child.line
                   for child in self.children.values())

    def own(self) -> object | None:
        return self.distribution if self._is_own else None

    def withdraw(self, message: m.Urgency) -> list[m.Chunk]:
        """See :meth:`mpiflux.sched.scheduler.Below.withdraw`."""
        taken: list[m.Chunk] = []
        for child in self.children.values():
            taken += child.take_range(message.group, message.start, message.stop)
            if (child.endpoint, message.group) in self._declared:
                self._out.append((child.endpoint, message))
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
            self._hear()
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
            removed += child.take(is_wanted)
            if child.held and (not wanted or not wanted.isdisjoint(child.held)):
                self._out.append((child.endpoint, message))
        if self.borrower is not None:
            self.borrower.own.cancel(message)
            self._hear()
        self._unmeter(removed)
        return removed


def _without(declared: m.Declare, asked: Amounts) -> m.Declare:
    """A group whose jobs ask for none of these."""
    group = declared.group
    names = {name for name, _ in asked}
    rest = {name: amount for name, amount in group.request.consumables.items() if name not in names}
    request = msgspec.structs.replace(group.request, consumables=rest)
    return msgspec.structs.replace(declared, group=msgspec.structs.replace(group, request=request))
