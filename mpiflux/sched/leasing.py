"""A scheduler's own resources, as leases that executors run jobs on.

A lease is R for one job of some shape. While an executor has jobs of that shape it starts one after the other on the
same lease, without asking; how many it is given ahead follows from how long such jobs take, so that a job of a
millisecond never waits for a message and a job of a minute is placed only when its resources are free. A job whose R
is on several nodes is a gang (:mod:`mpiflux.sched.gang`), placed one by one.

A policy may have places held for jobs that do not fit yet (:meth:`Leasing.reserve`): then nothing is started, and
nothing is given ahead, that would still be there when such a place is due.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from mpiflux.model import hostlist
from mpiflux.model import messages as m
from mpiflux.model.apart import is_apart
from mpiflux.model.resources import NodeResources
from mpiflux.sched.aparts import Aparts
from mpiflux.sched.catalog import Catalog
from mpiflux.sched.explain import Fact, missing
from mpiflux.sched.gang import Gang, Gangs
from mpiflux.sched.handed import Action, Handed
from mpiflux.sched.leases import Lease, Pairs, Shape, Slot
from mpiflux.sched.lender import Lender
from mpiflux.sched.lines import Lines
from mpiflux.sched.pool import ResourcePool
from mpiflux.sched.profile import SHARED, UNLIMITED, Reservation, Timetable
from mpiflux.sched.queue import Entry
from mpiflux.sched.shapes import Shapes

NOBODY = -1
"""The executor of a lease that is a gang's: it has several."""


class Leasing:
    """Implements :class:`mpiflux.sched.scheduler.Below` over executors, and what policies may ask of it
    (:class:`mpiflux.sched.policies.Planner`).

    ``executor_of(node, core)`` names the executor that starts processes for a core, ``host_of(node)`` a node.
    """

    def __init__(self, number: int, parent: int, pool: ResourcePool, executor_of: Callable[[int, int], int],
                 executors: tuple[int, ...], catalog: Catalog, host_of: Callable[[int], str] = str) -> None:
        self.number, self.parent, self.pool, self.catalog = number, parent, pool, catalog
        self._executor_of, self._host_of = executor_of, host_of
        self._executors = executors
        self._shapes = Shapes(number, catalog)
        self._leases: dict[int, Lease] = {}
        self._pairs = Pairs()
        self._next_lease = 0
        self._r_ids: dict[m.ResourceSet, int] = {}
        self._handed = Handed(executors, catalog)
        self._lines = Lines(self._handed, catalog)
        self._gangs = Gangs()
        self._aparts = Aparts(number)
        self.now = 0.0
        self.again = self.quiet = False
        self.due = math.inf
        self._freed = 0
        """Counts what may turn a refusal into a place: something became free,"""
        self._state = 0
        """or a place is held no longer, or it is later."""
        self._table: Timetable | None = None
        """Made when a policy first reserves: others need not pay for it."""
        self._lender = Lender(parent, pool)
        self._first: dict[int, int] = {}
        """Where ranks were lost: the core whose executor starts what needs no core, by node."""

    def everybody(self) -> tuple[int, ...]:
        return self._executors + self._aparts.all()

    # -- what policies ask for -----------------------------------------------------------------------------------

    def at(self, now: float) -> None:
        """Tell the time, before anything else is asked."""
        self.now = now
        self._state += 1

    def limit(self, entry: Entry) -> float:
        """Seconds after which a job of an entry is ended."""
        return self.catalog.group(entry.chunk.group).time_limit or UNLIMITED

    def start(self, entry: Entry) -> int:
        """Start as many jobs from the front of an entry as fit now and delay no reservation; how many."""
        self._lend_before(entry)
        chunk = entry.chunk
        shape, limit = self._shapes.of_group.get(chunk.group) or self._shapes.known(chunk)
        each = self._each(chunk)
        if not shape.open and each <= shape.each and (shape.full_at == self._freed or (
                shape.refused_at == self._state and limit >= shape.refused_limit)):
            # what a policy hears most of the time
            return 0
        rest: m.Chunk | None = chunk
        if shape.slots and not chunk.alone:
            rest = self._reuse(shape, each, chunk, limit)
        while rest is not None:
            r = self._place(shape, limit)
            if r is None:
                break
            rest = self._begin(shape, r, entry, each, rest)
        return len(chunk) - (len(rest) if rest is not None else 0)

    def reserve(self, entry: Entry) -> Reservation | None:
        """Hold the earliest place for a job of ``entry`` beside all reservations held already, until it is released;
        None when there can be none, as on a drained node."""
        if self._table is None:
            self._table = Timetable(self.pool)
            for number, lease in self._leases.items():
                self._table.add(number, lease.end, lease.r, lease.shape.request)
            self._lines.begin(self._table, [
                item for shape in self._shapes.by_number.values() for item in shape.slots.items()])
        self._lend_before(entry)
        group = self.catalog.group(entry.chunk.group)
        return self._table.reserve(group.number, group.request, self.limit(entry), self.now,
                                   group.node_of(entry.chunk.start))

    def release(self, reservation: Reservation) -> None:
        """Hold a place no longer."""
        assert self._table is not None
        self._table.release(reservation)
        self._state += 1

    def improve(self, entry: Entry, reservation: Reservation) -> Reservation | None:
        """Hold an earlier place for a job of ``entry`` instead, if there is one now; None when the place is lost."""
        assert self._table is not None
        self._lend_before(entry)
        found = self._table.improve(reservation, self.catalog.group(entry.chunk.group).request, self.now)
        if found is not reservation:
            self._state += 1
        return found

    def start_reserved(self, entry: Entry, reservation: Reservation) -> int:
        """Start the first job of ``entry`` in the place held for it, which is then released, and with it short ones
        that follow there; how many. 0, and nothing is changed, when it is not due or what should have ended has not."""
        if reservation.start > self.now:
            return 0
        self._lend_before(entry)
        chunk = entry.chunk
        shape, _ = self._shapes.of_group.get(chunk.group) or self._shapes.known(chunk)
        places = {pos: tasks for pos, (tasks, _) in reservation.parts.items() if pos != SHARED}
        r = self.pool.alloc_at(places, shape.request)
        if r is None:
            return 0
        assert self._table is not None
        self._table.release(reservation, used=True)
        self._state += 1
        if len(r.shares) > 1:
            self._start_gang(shape, r, entry, chunk.split(1)[0])
            return 1
        rest = self._grant(shape, r, entry, self._each(chunk), chunk, due=True)
        return len(chunk) - (len(rest) if rest is not None else 0)

    # -- starting ------------------------------------------------------------------------------------------------

    def _each(self, chunk: m.Chunk) -> int:
        """How many of these jobs a lease may have."""
        return 1 if chunk.alone else 1 + self._handed.ahead(chunk.group)

    def _reuse(self, shape: Shape, each: int, chunk: m.Chunk, limit: float) -> m.Chunk | None:
        """Feed leases that there are; what is left."""
        if each > shape.each:
            shape.open = dict.fromkeys(one for one in shape.slots if one not in self._aparts)
        shape.each = each
        rest: m.Chunk | None = chunk
        for executor in list(shape.open):
            if rest is None:
                break
            slot = shape.slots[executor]
            if len(slot.leases) * each <= slot.fed:
                del shape.open[executor]
            elif self._lines.may_extend(slot, self.now + limit + self._lines.longest_wait(slot, executor), chunk.group):
                rest = self._fill(shape, executor, each, rest)
        return rest

    def _expect(self, slot: Slot, executor: int) -> None:
        """Something was fed or reported that may have changed when leases end."""
        if self._lines.expect(slot, executor):
            self._state += 1

    def _place(self, shape: Shape, limit: float) -> m.ResourceSet | None:
        """A place for one job; None when there is none, which is remembered until something changes."""
        if shape.full_at == self._freed:
            return None
        table = self._table
        if table is None or not table.booked:
            r = self._alloc(shape)
            if r is None:
                shape.full_at = self._freed
            return r
        if shape.refused_at == self._state and limit >= shape.refused_limit:
            return None
        r = self._place_beside(table, shape, self.now + limit)
        if r is None and shape.full_at != self._freed:
            shape.refused_at, shape.refused_limit = self._state, limit
        return r

    def _place_beside(self, table: Timetable, shape: Shape, end: float) -> m.ResourceSet | None:
        """A place that no reservation needs before ``end``."""
        avoided: list[int] = []
        while True:
            r = self._alloc(shape)
            if r is None:
                if not avoided:
                    shape.full_at = self._freed
                break
            delayed = table.stands_before(r, self.now, end)
            shared = table.shared_lack(self.now, end)
            if not delayed and not shared:
                break
            self.pool.free(r, shape.request)
            r = None
            if shared or shape.node >= 0:
                break
            for node in delayed:
                self.pool.drain(node)
            avoided += delayed
        for node in avoided:
            self.pool.resume(node)
        return r

    def _alloc(self, shape: Shape) -> m.ResourceSet | None:
        return self.pool.alloc(shape.request) if shape.node < 0 else self.pool.alloc_on(shape.node, shape.request)

    def _begin(self, shape: Shape, r: m.ResourceSet, entry: Entry, each: int, chunk: m.Chunk) -> m.Chunk | None:
        """Start jobs from the front of ``chunk`` on R; what is left."""
        if len(r.shares) == 1:
            rest = self._grant(shape, r, entry, each, chunk)
            if rest is None and each > 1:
                # the next entry may follow on the same lease
                shape.open[self._executor(r.shares[0])] = None
            return rest
        first, rest = chunk.split(1)
        self._start_gang(shape, r, entry, first)
        return rest

    def _executor(self, share: m.NodeShare) -> int:
        return self._executor_of(share.node, share.cores[0] if share.cores else self._first.get(share.node, -1))

    def _lease(self, shape: Shape, executor: int, r: m.ResourceSet, entry: Entry, job: int) -> tuple[int, int]:
        """(number of a new lease, number of R)."""
        self._next_lease += 1
        number = (self.number << 32) + self._next_lease
        r_id = self._r_ids.get(r)
        if r_id is None:
            r_id = self._r_ids[r] = len(self._r_ids)
            self._handed.out.append((self.parent, m.NewR(self.number, r_id, r)))
        lease = self._leases[number] = Lease(shape, executor, r, r_id, job, self.now + self.limit(entry))
        if self._table is not None:
            self._table.add(number, lease.end, r, shape.request)
        return number, r_id

    def _grant(self, shape: Shape, r: m.ResourceSet, entry: Entry, each: int, chunk: m.Chunk,
               due: bool = False) -> m.Chunk | None:
        """A lease for the first job of ``chunk`` and for as many after it as a lease may have; what is left. While the
        executor has more than that in line, the lease is for those, unless the job is ``due`` now."""
        executor = self._executor(r.shares[0])
        if chunk.alone:
            executor, due = self._aparts.take(executor), True
        first, rest = chunk.split(1)
        end = self.now + self.limit(entry)
        slot = shape.slot(executor)
        waits = not due and (len(slot.leases) + 1) * each <= slot.fed
        while slot.ahead > 0 and self._lines.stands_apart(slot, executor, (r, end), chunk, each, waits):
            shape, waits, each = self._shapes.beside(shape), False, 1
            slot = shape.slot(executor)
        number, r_id = self._lease(shape, executor, r, entry, -1 if waits else self.catalog.ids(first)[0])
        lease = slot.leases[number] = self._leases[number]
        self._pairs.add(number, lease, self._leases)
        self._handed.out.append((executor, m.Grant(number, shape.number, r_id, r)))
        if waits:
            self._expect(slot, executor)
            return chunk
        slot.fed += 1
        self._handed.feed(executor, shape.number, first)
        if each > 1 and rest is not None and self._lines.may_extend(
                slot, lease.end + self._lines.longest_wait(slot, executor), chunk.group):
            rest = self._fill(shape, executor, each, rest)
        else:
            self._expect(slot, executor)
        return rest

    def _start_gang(self, shape: Shape, r: m.ResourceSet, entry: Entry, chunk: m.Chunk) -> None:
        """Start one job on several nodes."""
        declared = self.catalog.declared[chunk.group]
        number, r_id = self._lease(shape, NOBODY, r, entry, -1)
        names = [self._host_of(share.node) for share in r.shares]
        hosts, tasks = hostlist.encode(names), tuple(share.tasks for share in r.shares)
        parts = []
        for at, share in enumerate(r.shares):
            executor = self._executor(share)
            self._handed.declare(executor, chunk.group)
            parts.append((executor, names[at], m.Part(declared.group.first_id + chunk.start, chunk.attempt,
                                                      chunk.group, chunk.start, at, tasks, share, hosts)))
        self._handed.out += self._gangs.add(Gang(
            number, parts, sched=self.number, r_id=r_id, parent=self.parent, limit=declared.output_limit,
            in_turn=bool(declared.group.output or declared.group.error), now=self.now))

    def _fill(self, shape: Shape, executor: int, each: int, chunk: m.Chunk) -> m.Chunk | None:
        """Feed an executor what its leases may have; what is left."""
        slot = shape.slots[executor]
        room = len(slot.leases) * each - slot.fed
        if room <= 0:
            return chunk
        part, rest = chunk.split(room)
        slot.fed += len(part)
        if rest is None and len(part) < room:
            shape.open[executor] = None
        self._handed.feed(executor, shape.number, part)
        self._expect(slot, executor)
        return rest

    def forget(self, groups: Sequence[int]) -> None:
        self._handed.forget(self.everybody(), groups)
        self._shapes.forget(groups)

    # -- messages ------------------------------------------------------------------------------------------------

    def collect(self, now: float) -> list[Action]:
        self.again = False
        if self._lender.pending:
            self.now = now
            self._lend_freed()
            # places that were held on what is lent now are to be held elsewhere
            self.again = self._table is not None and bool(self._table.booked)
        if self._table is not None:
            self.due = self._table.next_start(now)
        return self._handed.collect()

    def told(self) -> list[Action]:
        """A part of what :meth:`collect` gives, before it: among it is every end of a job that is known already."""
        return self._handed.told()

    # -- lending to the parent -----------------------------------------------------------------------------------

    def lend(self, message: m.Borrow, now: float) -> None:
        """Free what the parent wants: what runs there ends in its own time, and nothing that is queued later starts
        there. What was queued before has the first choice of what becomes free."""
        self.now = now
        self._handed.out += self._lender.lend(message, now, self._leases)

    def _lend_before(self, entry: Entry) -> None:
        """What is claimed is lent before anybody looks for a place who has come after the claim."""
        if self._lender.pending and entry.era >= self._lender.era:
            self._lend_freed()

    def lent(self, src: int, message: m.Lend) -> None:
        raise AssertionError(f"executor {src} was asked to lend nothing")

    def regain(self, shares: tuple[m.NodeShare, ...]) -> None:
        """The parent gives back what it borrowed."""
        if self._lender.pending:
            # it may have been claimed only a moment ago, for a job that had been there all the time
            self._lend_freed()
        self.pool.restore(m.ResourceSet(shares))
        self._freed += 1
        self._state += 1
        if self._table is not None:
            self._table.changed({share.node for share in shares})
        self._lender.freed()

    # -- what is lost with a rank ----------------------------------------------------------------------------------

    def regrow(self, message: m.Regrow, now: float) -> tuple[list[tuple[int, int]], list[m.Chunk]]:
        """See :meth:`mpiflux.sched.scheduler.Below.regrow`: these executors are no more, nor are their cores."""
        jobs = self.dismiss(message.executors, message.resources, now)
        gone = set(message.executors)
        self._executors = tuple(executor for executor in self._executors if executor not in gone)
        self.give_up(self._lender.keep(message.resources), now)
        return jobs, []

    def dismiss(self, executors: Sequence[int], left: Sequence[NodeResources], now: float) -> list[tuple[int, int]]:
        """What these executors had is lost. Of nodes that are not in ``left`` nothing is given any more."""
        self.now = now
        lost = (*executors, *self._aparts.beside(executors))
        jobs = [job for executor in lost if self._handed.knows(executor) for job in self.lost(executor)]
        self._first = {part.node: part.cores[0] for part in left if part.cores}
        self._lender.lose(left)
        self._freed += 1
        self._state += 1
        if self._table is not None:
            self._table.changed({part.node for part in self._lender.owned})
        return jobs

    @property
    def giving_up(self) -> bool:
        """Whether something that was given up is still in use."""
        return self._lender.giving_up

    def give_up(self, shares: Sequence[m.NodeShare], now: float, then: Sequence[Action] = ()) -> None:
        """Take these out for good: what is free at once, the rest as it falls free. ``then`` is sent when all is."""
        actions = self._lender.give_up(shares, now, then, self._leases)
        if actions is not None:
            self.now = now
            self._handed.out += actions
            self._lend_freed()

    def balance(self, now: float) -> list[Action]:
        return []

    @property
    def lets_go(self) -> bool:
        """Not while jobs have been promised places."""
        return self._table is None or not self._table.booked

    def pull(self, n: int, now: float) -> list[Action]:
        """Executors give back by themselves what they do not get to."""
        return []

    def recall(self, n: int) -> list[m.Chunk]:
        return []

    def explain(self, message: m.Explain) -> list[Fact] | None:
        if self._handed.holding(frozenset((message.id,))):
            return [("its resources are chosen; it starts as soon as the short job before it has ended", 0.0)]
        return [("it is starting, or on its way between schedulers: ask again", 0.0)]

    def lacks(self, entry: Entry) -> list[Fact]:
        return [(missing(self.catalog.group(entry.chunk.group), self.pool), 0.0)]

    def could_start(self, entry: Entry) -> bool:
        """Whether it would fit into what is free, and no place is held for anybody."""
        if self._table is not None and self._table.booked:
            return False
        group = self.catalog.group(entry.chunk.group)
        node = group.node_of(entry.chunk.start)
        return self.pool.fits_now(group.request) if node < 0 else False

    def own(self) -> object | None:
        return None

    def withdraw(self, message: m.Urgency) -> list[m.Chunk]:
        return []

    def report(self, src: int, report: m.Report, now: float) -> list[m.Chunk]:
        self.now = now
        if is_apart(src) and src not in self._aparts:
            # of a rank that was given up meanwhile
            self.quiet = True
            return []
        if report.records:
            self._handed.ended(src, report.records)
        touched: dict[int, None] = {}
        for number, group, count, seconds in report.done:
            self._ended(number, src, count)
            touched[number] = None
            self._handed.took(group, seconds / count)
        back = []
        for number, chunk in reversed(report.returned):
            self._ended(number, src, len(chunk))
            touched[number] = None
            self._handed.returned(src, chunk)
            back.append(chunk)
        for number in report.idle:
            self._end_lease(number)
        for shape in self._pairs.started(report.started, now, self.catalog, self._leases):
            touched[shape.number] = None
        for number in touched:
            self._expect(self._shapes.by_number[number].slots[src], src)
        if src in self._aparts and not self._handed.by(src) and not any(
                shape.slots[src].leases for shape in self._shapes.by_number.values() if src in shape.slots):
            self._put_away(src)
        self.quiet = not (touched or report.idle)
        return back

    def part(self, src: int, message: m.Message, now: float) -> list[Action] | None:
        """See :meth:`mpiflux.sched.scheduler.Below.part`."""
        if not len(self._gangs):
            return None if isinstance(message, m.Output) else []
        self.now = now
        out = self._gangs.receive(src, message, now)
        self._free_gangs()
        return out

    def stop(self) -> None:
        self._gangs.stop()

    def _free_gangs(self) -> None:
        for gang in self._gangs.over():
            self._end_lease(gang.token)

    def _ended(self, shape: int, executor: int, count: int) -> None:
        found = self._shapes.by_number[shape]
        found.slots[executor].fed -= count
        if executor not in self._aparts:
            found.open[executor] = None

    def _end_lease(self, number: int) -> None:
        lease = self._leases.pop(number, None)
        if lease is None:
            return
        if lease.executor != NOBODY:
            del lease.shape.slots[lease.executor].leases[number]
            self._pairs.remove(number, lease, self._handed.by(lease.executor))
        self.pool.free(lease.r, lease.shape.request)
        self._freed += 1
        self._state += 1
        self._lender.freed()
        if self._table is not None:
            self._table.remove(number, self.now)

    def _lend_freed(self) -> None:
        if self._table is not None:
            self._table.changed(self._lender.nodes())
        self._handed.out += self._lender.collect(self.now)

    def holding(self, wanted: frozenset[int]) -> list[int]:
        return self._handed.holding(wanted)

    def lost(self, executor: int) -> list[tuple[int, int]]:
        for number in [n for n, lease in self._leases.items() if lease.executor == executor]:
            self._end_lease(number)
        for shape in self._shapes.by_number.values():
            if executor in shape.slots:
                shape.slots[executor].fed, shape.slots[executor].until = 0, 0.0
        self._handed.out += self._gangs.lost(executor, self.now)
        self._free_gangs()
        jobs = self._handed.lost(executor)
        self._put_away(executor)
        return jobs

    def _put_away(self, executor: int) -> None:
        """If it is one of those that have one job each: that has ended, and its rank has hung up."""
        if self._aparts.give_back(executor):
            for shape in self._shapes.by_number.values():
                shape.slots.pop(executor, None)
            self._handed.put_away(executor)

    def pause(self, message: m.Pause) -> None:
        """Executors have no queue of their own to speak of."""

    def reach(self, message: m.Listen | m.Signal | m.Stdin) -> None:
        executors = self._gangs.reached(message)
        if message.ids:
            executors.update(self._handed.holders(frozenset(message.ids)))
        self._handed.out += [(executor, message) for executor in sorted(executors)]

    def cancel(self, message: m.Cancel) -> list[m.Chunk]:
        executors, out = self._gangs.cancel(message, self.now)
        self._handed.out += out
        self._free_gangs()
        executors.update(self._handed.holders(frozenset(message.ids)))
        self._handed.out += [(executor, message) for executor in sorted(executors)]
        return []
