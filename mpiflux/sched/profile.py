"""What is expected to become free when, and places reserved in that future.

A job is expected to end at its start plus its time limit; one without a limit after :data:`UNLIMITED`, so that such
jobs still have an order and whatever starts later never stands before a reservation. Of every node the timetable knows
what is free now (from the pool itself), what running jobs give back and when, and what is reserved from when to when.
Nodes are counted, not cores: any free cores of a node do for a job, as they do for
:class:`mpiflux.sched.pool.ResourcePool`.

The earliest time for a shape comes from an index of the times at which each node has room for it, brought up to date
from the nodes that changed: it costs the same, up to a logarithm, whatever the size of the machine. Reservations are
few, and are looked at one by one.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterable

from mpiflux.model import resources
from mpiflux.model.jobspec import Request
from mpiflux.model.messages import ResourceSet
from mpiflux.sched.demand import CORES, GPUS, JOBS, MEMORY, SEATS, Demand, Index
from mpiflux.sched.placement import NodeState
from mpiflux.sched.pool import ResourcePool
from mpiflux.sched.timeline import Change, Need, Steps, time_of

UNLIMITED = 1e9
"""Seconds after which a job without a time limit is taken to end: later than all that have one."""

_MOST_JOBS = 1 << 40
"""Jobs on a node, as an amount that never runs out; all of it is free only on an idle node."""
_MOST_INDEXES = 16
_MOST_EASED = 1 << 14
_NEVER = -1

Parts = dict[int, tuple[int, Need]]
"""Tasks and what they need, by position of the node in the pool; :data:`SHARED` has no tasks but the named resources
of the scheduler as a whole."""
SHARED = -1


class Reservation:
    """A place that is held for one job."""

    __slots__ = ("end", "group", "limit", "made", "node", "parts", "start", "tried")

    def __init__(self, group: int, made: float, start: float, limit: float, parts: Parts, node: int = -1) -> None:
        self.group = group
        """Number of the job's group."""
        self.made = made
        self.start = start
        """When the job can start at the latest, if every running job keeps to its time limit (seconds)."""
        self.limit = limit
        self.end = start + limit
        self.parts = parts
        self.node = node
        """The only node where the job may run; -1: any."""
        self.tried = 0
        """Up to where :meth:`Timetable.improve` has looked for an earlier place."""

    @property
    def is_known(self) -> bool:
        """False while it waits for a job without a time limit: ``start`` is then only a place in line."""
        return self.start - self.made < UNLIMITED / 2


class Timetable:
    """See the module's text. Leases are told by number; ``now`` never goes back."""

    def __init__(self, pool: ResourcePool) -> None:
        self._pool = pool
        self._names = sorted({name for node in pool.nodes for name in node.consumables})
        self._shared = sorted(pool.consumables)
        self._position = {state.spec.node: state.pos for state in pool.states}
        self._releases: dict[int, list[tuple[float, int, Need]]] = {}
        self._leases: dict[int, tuple[float, list[tuple[int, Need]]]] = {}
        self._indexes: dict[tuple[object, ...], Index] = {}
        self._demands: dict[tuple[object, ...], Demand] = {}
        self._eased: list[int] = []
        """Where something became free that was not expected to, in order; the first ``_forgotten`` are not kept."""
        self._forgotten = 0
        self._steps: dict[int, Steps] = {}
        """What was found out of the future of nodes, until something about them changes."""
        self.booked: dict[int, list[Reservation]] = {}
        """Reservations by position of the node."""
        self._all: dict[Reservation, None] = {}

    # -- what runs -----------------------------------------------------------------------------------------------

    def add(self, lease: int, end: float, r: ResourceSet, request: Request) -> None:
        """A lease was granted; everything of it is given back at ``end`` at the latest."""
        demand = self._demand(request)
        held: list[tuple[int, Need]] = []
        for share in r.shares:
            pos = self._position[share.node]
            need = self._all_of(self._pool.states[pos]) if request.exclusive else demand.need(share.tasks)
            held.append((pos, need or ()))
        if demand.shared:
            held.append((SHARED, demand.shared))
        self._leases[lease] = (end, held)
        for pos, need in held:
            insort(self._releases.setdefault(pos, []), (end, lease, need))
            self._touch(pos)

    def remove(self, lease: int, now: float) -> None:
        """It has ended."""
        found = self._leases.pop(lease, None)
        if found is None:
            return
        end, held = found
        for pos, need in held:
            releases = self._releases[pos]
            del releases[bisect_left(releases, (end, lease, need))]
            self._touch(pos)
            if end != now:
                self._ease(pos)

    def move(self, lease: int, end: float) -> bool:
        """It is expected to end at another time; false when that is the same."""
        was, held = self._leases[lease]
        if end == was:
            return False
        self._leases[lease] = (end, held)
        for pos, need in held:
            releases = self._releases[pos]
            del releases[bisect_left(releases, (was, lease, need))]
            insort(releases, (end, lease, need))
            self._touch(pos)
            if end < was:
                self._ease(pos)
        return True

    def changed(self, nodes: Iterable[int]) -> None:
        """Parts of these nodes were drained, lent or restored."""
        for node in nodes:
            pos = self._position[node]
            self._touch(pos)
            self._ease(pos)
            for one in self.booked.get(pos, ()):
                one.tried = _NEVER

    def _ease(self, pos: int) -> None:
        self._eased.append(pos)
        if len(self._eased) > _MOST_EASED:
            self._forgotten += _MOST_EASED // 2
            del self._eased[:_MOST_EASED // 2]

    def _touch(self, pos: int) -> None:
        self._steps.pop(pos, None)
        for index in self._indexes.values():
            index.dirty.add(pos)

    # -- reservations --------------------------------------------------------------------------------------------

    def reserve(self, group: int, request: Request, limit: float, now: float, node: int = -1) -> Reservation | None:
        """Hold the earliest place beside everything reserved before, on node ``node`` only if that is not -1; None
        when there can be none."""
        if node >= 0:
            return self._reserve_on(group, request, limit, now, node)
        index = self._index(request)
        demand = index.demand
        start = index.lower()
        parts: Parts | None = None
        if demand.single and not demand.shared and start < math.inf:
            start, parts = self._earliest_node(index, limit, now)
        start = max(start, now)
        while parts is None and start < math.inf:
            parts = self._parts(index, start, limit, now)
            if parts is None:
                start = self._next(index, start)
        if parts is None:
            return None
        return self._book(Reservation(group, now, start, limit, parts))

    def _reserve_on(self, group: int, request: Request, limit: float, now: float, node: int) -> Reservation | None:
        demand, pos = self._demand(request), self._position[node]
        need = self._need(demand, pos, demand.tasks)
        if need is None or not self._pool.states[pos].up:
            return None
        steps, parts = self._future(pos, now), {pos: (demand.tasks, need)}
        start = steps.slot(need, limit)
        if demand.shared:
            shared = self._future(SHARED, now)
            parts[SHARED] = 0, demand.shared
            start = next((time for time in sorted({*steps.times, *shared.times}) if time >= start
                          and steps.has(need, time, time + limit) and shared.has(demand.shared, time, time + limit)),
                         math.inf)
        return None if start == math.inf else self._book(Reservation(group, now, start, limit, parts, node))

    def _book(self, reservation: Reservation) -> Reservation:
        reservation.tried = self._forgotten + len(self._eased)
        self._all[reservation] = None
        for pos, (_, need) in reservation.parts.items():
            self.booked.setdefault(pos, []).append(reservation)
            if pos in self._steps:
                self._steps[pos].change(reservation.start, reservation.end, need, -1)
        return reservation

    def improve(self, held: Reservation, request: Request, now: float) -> Reservation | None:
        """Move a place to an earlier time if there is one, else leave it; None when it is lost.

        Only what became free since this was last tried is looked at, nothing else can have become better: all of it
        is on few nodes.
        """
        since, held.tried = held.tried, self._forgotten + len(self._eased)
        demand = self._demand(request)
        if since >= self._forgotten and (demand.single or held.node >= 0) and not demand.shared:
            fresh = set(self._eased[since - self._forgotten:])
            if held.node >= 0:
                fresh.intersection_update(held.parts)
            found = self._earlier(held, demand, fresh, now) if held.start > now else None
            if found is not None:
                self.release(held)
                self._book(found)
            return found or held
        if since == held.tried or (held.start <= now and since != _NEVER):
            return held
        lost = since == _NEVER
        self.release(held, used=True)
        found = self.reserve(held.group, request, held.limit, now, held.node)
        if not lost and (found is None or found.start >= held.start):
            # what is a little late may be in the way of all places but the one that there was
            if found is not None:
                self.release(found, used=True)
            return self._book(held)
        for pos in held.parts:
            self._ease(pos)
        if found is not None:
            found.tried = self._forgotten + len(self._eased)
        return found

    def _earlier(self, held: Reservation, demand: Demand, nodes: set[int], now: float) -> Reservation | None:
        """An earlier place on one of these nodes."""
        (own, (_, own_need)), = held.parts.items()
        start, parts = held.start, None
        for pos in sorted(nodes):
            need = self._need(demand, pos, demand.tasks) if pos != SHARED else None
            if need is None or not self._pool.states[pos].up:
                continue
            steps = self._future(pos, now)
            if pos == own:
                steps.change(held.start, held.end, own_need, 1)
            slot = steps.slot(need, held.limit)
            if pos == own:
                steps.change(held.start, held.end, own_need, -1)
            if slot < start:
                start, parts = slot, {pos: (demand.tasks, need)}
        return None if parts is None else Reservation(held.group, now, start, held.limit, parts, held.node)

    def release(self, reservation: Reservation, used: bool = False) -> None:
        """Give a place up again; ``used``: nobody else can have it, as with the job that it was held for."""
        del self._all[reservation]
        for pos in reservation.parts:
            if not used:
                self._ease(pos)
            if pos in self._steps:
                self._steps[pos].change(reservation.start, reservation.end, reservation.parts[pos][1], 1)
            here = self.booked[pos]
            here.remove(reservation)
            if not here:
                del self.booked[pos]

    def stands_before(self, r: ResourceSet, now: float, end: float) -> list[int]:
        """Whose reservations what was just taken delays, if it is given back at ``end``: node numbers."""
        return [share.node for share in r.shares if self._lacks(self._position[share.node], now, end)]

    def shared_lack(self, now: float, end: float) -> bool:
        """The same of the scheduler's own named resources."""
        return self._lacks(SHARED, now, end)

    def next_start(self, now: float) -> float:
        """When the next place is due. What is in use there may have ended long before, without anybody who was allowed
        to start sooner: nothing need happen at that time but that it comes."""
        return min((one.start for one in self._all if one.start > now and one.is_known), default=math.inf)

    def end(self, lease: int) -> float:
        """When a lease is expected to end."""
        return self._leases[lease][0]

    def delays(self, r: ResourceSet, request: Request, since: float, until: float, group: int) -> bool:
        """Whether a reservation of another group may be delayed when what such a request has as R is given back at
        ``until``, and not at ``since``. One that should have begun before either may still wait for it."""
        if since >= until:
            return False
        places = [self._position[share.node] for share in r.shares]
        if SHARED in self.booked and self._demand(request).shared:
            places.append(SHARED)
        return any(one.start < until and one.group != group for pos in places for one in self.booked.get(pos, ()))

    # -- inside --------------------------------------------------------------------------------------------------

    def _all_of(self, state: NodeState) -> Need | None:
        """What an exclusive job takes of a node."""
        spec = state.spec
        if not spec.whole:
            return None
        amounts = [(CORES, len(spec.cores)), (GPUS, len(spec.gpus)), (MEMORY, spec.memory),
                   (SEATS, resources.MAX_CORELESS_TASKS), (JOBS, _MOST_JOBS)]
        amounts += [(JOBS + 1 + i, spec.consumables.get(name, 0)) for i, name in enumerate(self._names)]
        return tuple(pair for pair in amounts if pair[1])

    def _need(self, demand: Demand, pos: int, tasks: int) -> Need | None:
        """What so many tasks take of this node; None when it can never hold them."""
        need = demand.need(tasks)
        if need is None or not demand.exclusive:
            return need
        whole = self._all_of(self._pool.states[pos])
        if whole is None:
            return None
        there = dict(whole)
        return whole if all(there.get(dimension, 0) >= amount for dimension, amount in need) else None

    def _free(self, pos: int) -> list[int]:
        """What is free of a node at this moment."""
        if pos == SHARED:
            free = self._pool.consumables
            return [free[name] for name in self._shared]
        state = self._pool.states[pos]
        if state.closed or not state.up:
            return [0] * (JOBS + 1 + len(self._names))
        return [state.cores.bit_count(), state.gpus.bit_count(), state.memory, state.seats, _MOST_JOBS - state.jobs,
                *(state.named.get(name, 0) for name in self._names)]

    def _demand(self, request: Request) -> Demand:
        key = request.key
        found = self._demands.get(key)
        if found is None:
            found = self._demands[key] = Demand(request, self._names, self._shared)
        return found

    def _index(self, request: Request) -> Index:
        key = request.key
        index = self._indexes.pop(key, None)
        if index is None:
            demand = self._demand(request)
            index = Index(demand, [self._times(pos, demand) for pos in range(len(self._pool.states))])
            if len(self._indexes) >= _MOST_INDEXES:
                del self._indexes[next(iter(self._indexes))]
        self._indexes[key] = index  # last: the first one is the one not used for longest
        dirty, index.dirty = index.dirty, set()
        for pos in dirty:
            if pos != SHARED:
                index.update(pos, self._times(pos, index.demand))
        return index

    def _times(self, pos: int, demand: Demand) -> list[list[float]]:
        """From when on a node has room for each number of tasks that the index keeps."""
        found: list[list[float]] = []
        state = self._pool.states[pos]
        for counts in demand.counts():
            times: list[float] = []
            found.append(times)
            if not state.up:
                continue
            free, time = self._free(pos), -math.inf
            releases = iter(self._releases.get(pos, ()))
            for tasks in counts:
                need = self._need(demand, pos, tasks)
                while need is not None and any(free[dimension] < amount for dimension, amount in need):
                    following = next(releases, None)
                    if following is None:
                        need = None
                    else:
                        time = following[0]
                        for dimension, amount in following[2]:
                            free[dimension] += amount
                if need is None:
                    break
                times.append(time)
        return found

    def _future(self, pos: int, now: float) -> Steps:
        """What is free of a node from now on, as if everything overdue had ended."""
        steps = self._steps.get(pos)
        if steps is not None and steps.times[0] == now:
            return steps
        free = self._free(pos)
        changes: list[Change] = [
            (end if end > now else now, 1, need) for end, _, need in self._releases.get(pos, ())]
        for one in self.booked.get(pos, ()):
            need = one.parts[pos][1]
            changes.append((max(one.start, now), -1, need))
            changes.append((max(one.end, now), 1, need))
        changes.sort(key=time_of)
        steps = self._steps[pos] = Steps(now, free, changes)
        return steps

    def _lacks(self, pos: int, now: float, end: float) -> bool:
        """Whether reservations need more than there is at some time before ``end``."""
        if pos not in self.booked:
            return False
        self._steps.pop(pos, None)
        lowest = self._future(pos, now).lowest(now, end)
        del self._steps[pos]  # what was taken for a try may be given back
        return min(lowest) < 0

    def _earliest_node(self, index: Index, limit: float, now: float) -> tuple[float, Parts | None]:
        """For a job on one node."""
        demand, units = index.demand, index.lists[0]
        start, chosen = math.inf, -1
        for unit in units:
            if unit[1] not in self.booked:
                start, chosen = max(unit[0], now), unit[1]
                break
        for pos in self.booked:
            if pos == SHARED or not index.by_node[pos][0] or index.by_node[pos][0][0] >= start:
                continue
            need = self._need(demand, pos, demand.tasks)
            slot = self._future(pos, now).slot(need, limit) if need is not None else math.inf
            if slot < start:
                start, chosen = slot, pos
        if chosen < 0:
            return math.inf, None
        need = self._need(demand, chosen, demand.tasks)
        assert need is not None
        return start, {chosen: (demand.tasks, need)}

    def _parts(self, index: Index, start: float, limit: float, now: float) -> Parts | None:
        """A place from ``start`` on, on the nodes that become free last: so others can be used meanwhile."""
        demand = index.demand
        parts: Parts = {}
        if demand.shared:
            lowest = self._future(SHARED, now).lowest(start, start + limit)
            if any(lowest[dimension] < amount for dimension, amount in demand.shared):
                return None
            parts[SHARED] = (0, demand.shared)
        if not (demand.single or demand.even):
            return self._pooled(index, start, limit, now, parts)
        wanted = [(0, demand.tasks, 1)] if demand.single else [
            *([(1, demand.low + 1, demand.more)] if demand.more else []), (0, demand.low, demand.nodes - demand.more)]
        for which, tasks, many in wanted:
            for _, pos in index.lists[which].latest_first(start):
                if not many:
                    break
                need = self._need(demand, pos, tasks)
                if pos in parts or need is None or not self._has_room(pos, need, start, limit, now):
                    continue
                parts[pos] = (tasks, need)
                many -= 1
            if many:
                return None
        return parts

    def _pooled(self, index: Index, start: float, limit: float, now: float, parts: Parts) -> Parts | None:
        """Tasks that fall where they fit."""
        demand = index.demand
        left = demand.tasks
        seen: set[int] = set()
        for _, pos in index.lists[0].latest_first(start):
            if pos in seen:
                continue
            seen.add(pos)
            tasks = min(index.tasks_at(pos, start), left)
            if pos in self.booked:
                tasks = self._tasks_beside(pos, demand, tasks, self._future(pos, now).lowest(start, start + limit))
            need = self._need(demand, pos, tasks) if tasks else None
            if need is not None:
                parts[pos] = (tasks, need)
                left -= tasks
                if not left:
                    return parts
        return None

    def _tasks_beside(self, pos: int, demand: Demand, most: int, free: list[int]) -> int:
        """How many tasks, up to ``most``, find so much free on a node."""
        tasks = most
        if not demand.exclusive:
            for dimension, amount in demand.need(1) or ():
                if dimension < JOBS:
                    tasks = min(tasks, free[dimension] // amount)
        while tasks > 0:
            need = self._need(demand, pos, tasks)
            if need is not None and all(free[dimension] >= amount for dimension, amount in need):
                return tasks
            # what is left to differ: named resources, rounded up; or a whole node, which fewer tasks do not change
            tasks = 0 if demand.exclusive else tasks - 1
        return 0

    def _has_room(self, pos: int, need: Need, start: float, limit: float, now: float) -> bool:
        if pos not in self.booked:
            return True
        return self._future(pos, now).has(need, start, start + limit)

    def _next(self, index: Index, time: float) -> float:
        """The next time at which anything becomes free that matters."""
        found = [units.after(time) for units in index.lists]
        for pos, here in self.booked.items():
            found += [one.end for one in here if one.end > time]
            releases = self._releases.get(pos, ())
            found += [release[0] for release in releases if release[0] > time][:1]
        if index.demand.shared:
            found += [release[0] for release in self._releases.get(SHARED, ()) if release[0] > time][:1]
        return min(found, default=math.inf)
