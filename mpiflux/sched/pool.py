"""The free and the taken of one scheduler's R: find a place for a request, give it back.

No call looks at every node: what fits where is kept in :class:`mpiflux.sched.placement.FitIndex`, one a task
shape, brought up to date from the nodes that changed since that shape was last asked for. Placement of a shape is
therefore as fast with 4,000 nodes as with one, up to the width of an integer.

Which node: ``pack`` takes the node that the shape leaves fullest, so that whole nodes stay whole; ``spread`` the
emptiest; the lowest of equals. Nodes where each task has its cores in one NUMA domain, beside its GPUs, come
before all others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from mpiflux.model import resources
from mpiflux.model.jobspec import Request
from mpiflux.model.messages import NodeShare, ResourceSet
from mpiflux.model.resources import NodeResources
from mpiflux.sched.placement import (
    Choice,
    FitIndex,
    NodeState,
    bits,
    choose_even,
    choose_pack,
    choose_spread,
    mask_of,
    measure,
    measure_local,
)

__all__ = ["NodeResources", "PoolError", "ResourcePool"]

_MAX_SHAPES = 1024
"""Task shapes that keep an index; a workflow with more starts over now and then."""


class PoolError(ValueError):
    """Resources were given back, lent or drained that are not there to be: a fault of the caller."""


class _Shape:
    """A request, taken apart once."""

    __slots__ = ("exclusive", "indexes", "low", "more", "named", "nodes", "one_task", "request", "shared", "single",
                 "spread", "tasks")

    def __init__(self, request: Request, shared: Mapping[str, int]) -> None:
        self.request = request
        self.tasks = resources.task_count(request)
        self.nodes = 1 if request.per_node else request.nodes
        self.low, self.more = divmod(self.tasks, self.nodes) if self.nodes else (0, 0)
        self.spread = request.layout == "spread"
        self.exclusive = request.exclusive
        asked = sorted((name, amount) for name, amount in request.consumables.items() if amount)
        self.shared = tuple((name, amount) for name, amount in asked if name in shared)
        self.named = tuple((name, amount) for name, amount in asked if name not in shared)
        self.single = self.nodes == 1 or (self.nodes == 0 and self.tasks == 1)
        self.one_task = self.tasks == 1 and self.single and not (
            request.exclusive or asked or request.memory or not request.cores)
        self.indexes: tuple[FitIndex, ...] = ()


class ResourcePool:
    """What a scheduler owns and what of it is free.

    ``consumables`` belong to the scheduler as a whole; those of a node are in its :class:`NodeResources`. Equal
    calls in equal order give equal answers.
    """

    def __init__(self, nodes: Sequence[NodeResources], consumables: Mapping[str, int] | None = None) -> None:
        self._nodes: list[NodeState] = []
        self._by_node: dict[int, NodeState] = {}
        self._shared_total = dict(consumables or {})
        self._shared = dict(self._shared_total)
        self._changed: list[int] = []
        self._indexes: dict[tuple[object, ...], FitIndex] = {}
        self._shapes: dict[tuple[object, ...], _Shape] = {}
        # A request is frozen and may stand for a million jobs: its identity saves building its key each time.
        # Keeping it alive keeps its id from being given to another.
        self._by_id: dict[int, _Shape] = {}
        self._kept: list[Request] = []
        self._capacities: dict[tuple[object, ...], int] = {}
        self._ever: dict[tuple[object, ...], str | None] = {}
        self.free_cores = self.total_cores = 0
        self.free_gpus = self.total_gpus = 0
        self.add(nodes)

    # -- asking --------------------------------------------------------------------------------------------------

    def alloc(self, request: Request) -> ResourceSet | None:
        """Take a place for one job; None when there is none now. Shares are in node order, cores and GPUs of a
        share in task order, so that task i of a share has the i-th slice of each."""
        shape = self._by_id.get(id(request)) or self._shape(request)
        if shape.one_task:
            found = self._one(shape)
            if found < 0:
                return None
            node = self._nodes[found]
            cores, gpus = node.place(1, request.cores, request.gpus)
            node.jobs += 1
            self.free_cores -= request.cores
            self.free_gpus -= request.gpus
            self._changed.append(found)
            return ResourceSet((NodeShare(node.spec.node, cores, gpus, 0, 1),))
        choice = self._choose(shape)
        return None if choice is None else self._commit(shape, choice)

    def alloc_on(self, node: int, request: Request) -> ResourceSet | None:
        """Like ``alloc`` with all tasks on node ``node`` (index in the instance's table)."""
        state = self._state(node)
        shape = self._by_id.get(id(request)) or self._shape(request)
        if shape.indexes[-1].count(state) < shape.tasks or not self._shared_suffice(shape):
            return None
        return self._commit(shape, [(state.pos, shape.tasks)])

    def alloc_at(self, places: Mapping[int, int], request: Request) -> ResourceSet | None:
        """Like ``alloc`` with so many tasks on the nodes at these positions of ``states``."""
        shape = self._by_id.get(id(request)) or self._shape(request)
        count = shape.indexes[-1].count
        if not self._shared_suffice(shape) or any(count(self._nodes[pos]) < n for pos, n in places.items()):
            return None
        return self._commit(shape, sorted(places.items()))

    def fits_now(self, request: Request) -> bool:
        """Whether ``alloc`` would find a place."""
        shape = self._by_id.get(id(request)) or self._shape(request)
        return self._choose(shape) is not None

    def fits_on(self, node: int, request: Request) -> bool:
        """Whether ``alloc_on`` would find a place; not on a node that is not here."""
        state = self._by_node.get(node)
        shape = self._by_id.get(id(request)) or self._shape(request)
        return state is not None and shape.indexes[-1].count(state) >= shape.tasks and self._shared_suffice(shape)

    def can_ever(self, request: Request) -> str | None:
        """None when the request fits once everything that is not drained is free and nothing is lent; else the
        reason in words, naming the largest there is: ``asks for 8 cores a task; the largest node has 4``."""
        key = request.key
        if key not in self._ever:
            up = [node.spec for node in self._nodes if node.up]
            self._ever[key] = resources.misfit(resources.kinds(up), self._shared_total, request)
        return self._ever[key]

    def capacity(self, request: Request) -> int:
        """How many such jobs run at once when nothing else does, on what is neither drained nor lent."""
        key = request.key
        if key not in self._capacities:
            self._capacities[key] = self._count_capacity(request)
        return self._capacities[key]

    @property
    def consumables(self) -> dict[str, int]:
        """What is free of the scheduler's own named resources."""
        return dict(self._shared)

    @property
    def totals(self) -> dict[str, int]:
        """What there is of them."""
        return dict(self._shared_total)

    @property
    def nodes(self) -> tuple[NodeResources, ...]:
        """All that was ever added, in order."""
        return tuple(node.spec for node in self._nodes)

    @property
    def states(self) -> Sequence[NodeState]:
        """What is free of each node, in the order of ``nodes``; to be read only."""
        return self._nodes

    def free_set(self) -> ResourceSet:
        """Everything free on nodes that are not drained; ``tasks`` of its shares is 0."""
        return ResourceSet(tuple(
            NodeShare(node.spec.node, bits(node.cores), bits(node.gpus), node.memory, 0, _amounts(node.named))
            for node in self._nodes
            if node.up and (node.cores or node.gpus or node.memory or any(node.named.values()))))

    def is_free(self, rset: ResourceSet) -> bool:
        """Whether all of this is here and no job holds any of it."""
        for share in rset.shares:
            node = self._state(share.node)
            cores, gpus = _mask(share.cores), _mask(share.gpus)
            if (node.cores & cores) != cores or (node.gpus & gpus) != gpus or node.memory < share.memory \
                    or not _covers(node.named, share):
                return False
        return True

    # -- giving back ---------------------------------------------------------------------------------------------

    def free(self, rset: ResourceSet, request: Request) -> None:
        """Give back what ``alloc`` gave for ``request``. Raises PoolError, and changes nothing, when it did not."""
        shape = self._by_id.get(id(request)) or self._shape(request)
        shares = rset.shares
        taken: list[tuple[NodeState, int, int]] = []
        for share in shares:
            node = self._state(share.node)
            cores, gpus = _mask(share.cores), _mask(share.gpus)
            if (node.busy_cores & cores) != cores or (node.busy_gpus & gpus) != gpus or not node.jobs:
                raise PoolError(f"node {share.node}: {_what(share)} given back, but no job holds that")
            taken.append((node, cores, gpus))
        for share, (node, cores, gpus) in zip(shares, taken, strict=True):
            node.busy_cores ^= cores
            node.cores ^= cores
            if gpus:
                node.busy_gpus ^= gpus
                node.gpus ^= gpus
            node.jobs -= 1
            node.memory += share.memory
            if node.up:
                self.free_cores += len(share.cores)
                self.free_gpus += len(share.gpus)
            self._changed.append(node.pos)
            if not shape.one_task:
                self._return_rest(shape, node, share.tasks)
        for name, amount in shape.shared:
            self._shared[name] += amount

    def _return_rest(self, shape: _Shape, node: NodeState, tasks: int) -> None:
        if not shape.request.cores:
            node.seats += tasks
        for name, amount in shape.named:
            node.named[name] += -(-amount * tasks // shape.tasks)
        if shape.exclusive:
            node.closed = False

    # -- changing what there is ----------------------------------------------------------------------------------

    def add(self, nodes: Iterable[NodeResources]) -> None:
        """Take more nodes in. Raises PoolError for a node that is there already."""
        for spec in nodes:
            if spec.node in self._by_node:
                raise PoolError(f"node {spec.node} is in this pool already; use restore to give cores back")
            state = NodeState(spec, len(self._nodes))
            self._nodes.append(state)
            self._by_node[spec.node] = state
            self.total_cores += len(spec.cores)
            self.free_cores += len(spec.cores)
            self.total_gpus += len(spec.gpus)
            self.free_gpus += len(spec.gpus)
        # More nodes may bring the first of several NUMA domains: every shape is compiled anew.
        self._forget_shapes()
        self._settle()

    def remove(self, rset: ResourceSet) -> None:
        """Take free resources out, to lend them. Raises PoolError, and changes nothing, when some are not free."""
        moves = []
        for share in rset.shares:
            node = self._state(share.node)
            cores, gpus = _mask(share.cores), _mask(share.gpus)
            if (node.cores & cores) != cores or (node.gpus & gpus) != gpus or node.memory < share.memory \
                    or not _covers(node.named, share):
                raise PoolError(f"node {share.node}: {_what(share)} to be lent, but not all of it is free")
            moves.append((node, cores, gpus, share.memory, share.named))
        for node, cores, gpus, memory, named in moves:
            node.cores ^= cores
            node.gpus ^= gpus
            node.memory -= memory
            node.away_cores |= cores
            node.away_gpus |= gpus
            node.away_memory += memory
            for name, amount in named:
                node.named[name] -= amount
                node.away_named[name] = node.away_named.get(name, 0) + amount
            self._moved(node, -cores.bit_count(), -gpus.bit_count())
        self._settle()

    def restore(self, rset: ResourceSet) -> None:
        """Take back what ``remove`` took out. Raises PoolError, and changes nothing, when it did not."""
        moves = []
        for share in rset.shares:
            node = self._state(share.node)
            cores, gpus = _mask(share.cores), _mask(share.gpus)
            if (node.away_cores & cores) != cores or (node.away_gpus & gpus) != gpus \
                    or node.away_memory < share.memory or not _covers(node.away_named, share):
                raise PoolError(f"node {share.node}: {_what(share)} returned, but it was not lent")
            moves.append((node, cores, gpus, share.memory, share.named))
        for node, cores, gpus, memory, named in moves:
            node.cores |= cores
            node.gpus |= gpus
            node.memory += memory
            node.away_cores ^= cores
            node.away_gpus ^= gpus
            node.away_memory -= memory
            for name, amount in named:
                node.named[name] += amount
                node.away_named[name] -= amount
            self._moved(node, cores.bit_count(), gpus.bit_count())
        self._settle()

    def drain(self, node: int) -> None:
        """Give nothing more from this node; what runs there is given back as ever."""
        self._set_up(self._state(node), False)

    def resume(self, node: int) -> None:
        """Undo ``drain``."""
        self._set_up(self._state(node), True)

    def _set_up(self, state: NodeState, up: bool) -> None:
        if state.up != up:
            sign = 1 if up else -1
            state.up = up
            self.free_cores += sign * state.cores.bit_count()
            self.free_gpus += sign * state.gpus.bit_count()
            self._changed.append(state.pos)
            self._settle()

    def _moved(self, node: NodeState, cores: int, gpus: int) -> None:
        self.total_cores += cores
        self.total_gpus += gpus
        if node.up:
            self.free_cores += cores
            self.free_gpus += gpus
        self._changed.append(node.pos)

    def _settle(self) -> None:
        """What is remembered of whole machines no longer holds."""
        self._capacities.clear()
        self._ever.clear()

    # -- inside --------------------------------------------------------------------------------------------------

    def _state(self, node: int) -> NodeState:
        state = self._by_node.get(node)
        if state is None:
            raise PoolError(f"node {node} is not in this pool")
        return state

    def _shape(self, request: Request) -> _Shape:
        key = request.key
        shape = self._shapes.get(key)
        if shape is None:
            if len(self._shapes) >= _MAX_SHAPES:
                self._forget_shapes()
            shape = self._shapes[key] = _Shape(request, self._shared_total)
            shape.indexes = self._indexes_for(shape)
        if len(self._kept) >= 4 * _MAX_SHAPES:
            self._by_id.clear()
            self._kept.clear()
        self._by_id[id(request)] = shape
        self._kept.append(request)
        return shape

    def _forget_shapes(self) -> None:
        self._shapes.clear()
        self._by_id.clear()
        self._kept.clear()
        self._indexes.clear()

    def _indexes_for(self, shape: _Shape) -> tuple[FitIndex, ...]:
        """The indexes to try in turn: tasks each within a NUMA domain, where that is a question, then any."""
        request = shape.request
        key = (request.cores, request.gpus, request.memory, shape.named, shape.tasks if shape.named else 0,
               shape.exclusive)
        count = measure(request.cores, request.gpus, request.memory, shape.named, shape.tasks, shape.exclusive)
        loose = self._indexes.setdefault((*key, "any"), FitIndex(self._nodes, count))
        if not request.cores or (request.cores == 1 and not request.gpus) \
                or all(len(node.domains) == 1 for node in self._nodes):
            return (loose,)
        near = FitIndex(self._nodes, measure_local(request.cores, request.gpus, count))
        return self._indexes.setdefault((*key, "near"), near), loose

    def _sync(self, index: FitIndex) -> None:
        changed = self._changed
        if len(changed) > 4096 + 2 * len(self._nodes):
            # Shapes that nobody asked for since the last time are dropped and rebuilt when needed.
            for other in self._indexes.values():
                if other.seen and not other.stale:
                    other.sync(changed)
                else:
                    other.drop()
                other.seen = 0
            changed.clear()
        if index.stale or index.seen != len(changed):
            index.sync(changed)

    def _one(self, shape: _Shape) -> int:
        """Position of the node for a job that stays on one node; -1 when there is none."""
        found = -1
        for index in shape.indexes:
            self._sync(index)
            found = index.emptiest(shape.tasks) if shape.spread else index.fullest(shape.tasks)
            if found >= 0:
                break
        return found

    def _shared_suffice(self, shape: _Shape) -> bool:
        return all(self._shared[name] >= amount for name, amount in shape.shared)

    def _choose(self, shape: _Shape) -> Choice | None:
        if not self._shared_suffice(shape):
            return None
        if shape.single:
            found = self._one(shape)
            return None if found < 0 else [(found, shape.tasks)]
        for index in shape.indexes:
            self._sync(index)
            if shape.nodes:
                choice = choose_even(index, shape.nodes, shape.low, shape.more, shape.spread)
            elif shape.spread:
                choice = choose_spread(index, shape.tasks)
            else:
                choice = choose_pack(index, shape.tasks)
            if choice is not None:
                choice.sort()
                return choice
        return None

    def _commit(self, shape: _Shape, choice: Choice) -> ResourceSet:
        request = shape.request
        shares = []
        for pos, tasks in choice:
            node = self._nodes[pos]
            if shape.exclusive:
                cores, gpus, memory = self._take_whole(node, request, tasks)
            else:
                cores, gpus = node.place(tasks, request.cores, request.gpus)
                memory = tasks * request.memory
            node.jobs += 1
            node.memory -= memory
            if not request.cores:
                node.seats -= tasks
            named = tuple((name, -(-amount * tasks // shape.tasks)) for name, amount in shape.named)
            for name, amount in named:
                node.named[name] -= amount
            self.free_cores -= len(cores)
            self.free_gpus -= len(gpus)
            self._changed.append(pos)
            shares.append(NodeShare(node.spec.node, cores, gpus, memory, tasks, named))
        for name, amount in shape.shared:
            self._shared[name] -= amount
        return ResourceSet(tuple(shares))

    def _take_whole(self, node: NodeState, request: Request,
                    tasks: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """All of an idle node, the tasks' own cores and GPUs first and in task order."""
        cores, gpus = node.place(tasks, request.cores, request.gpus)
        more_cores, more_gpus = node.place_rest()
        node.closed = True
        return cores + more_cores, gpus + more_gpus, node.memory

    def _count_capacity(self, request: Request) -> int:
        shape = self._by_id.get(id(request)) or self._shape(request)
        if not (shape.named or shape.exclusive) and (shape.nodes == 0 or shape.single):
            here = Counter((len(n.spec.cores) - n.away_cores.bit_count(), len(n.spec.gpus) - n.away_gpus.bit_count(),
                            n.spec.memory - n.away_memory) for n in self._nodes if n.up)
            room = [(resources.capacity(*kind, {}, request, request.consumables), n) for kind, n in here.items()]
            if shape.single:
                jobs = sum(fit // shape.tasks * n for fit, n in room)
            else:
                jobs = sum(fit * n for fit, n in room) // shape.tasks
            return min([jobs, *(self._shared_total[name] // amount for name, amount in shape.shared)])
        # Whole nodes, several nodes and rounded shares do not add up: what is left over depends on the order.
        empty, jobs = self._empty_copy(), 0
        while empty.alloc(request) is not None:
            jobs += 1
        return jobs

    def _empty_copy(self) -> ResourcePool:
        """This pool with no job on it: without drained nodes, lent resources still lent."""
        copy = ResourcePool([node.spec for node in self._nodes if node.up], self._shared_total)
        copy.remove(ResourceSet(tuple(
            NodeShare(node.spec.node, bits(node.away_cores), bits(node.away_gpus), node.away_memory, 0,
                      _amounts(node.away_named))
            for node in self._nodes if node.up and (node.away_cores or node.away_gpus or node.away_memory
                                                    or any(node.away_named.values())))))
        return copy


def _mask(numbers: tuple[int, ...]) -> int:
    if len(numbers) == 1:
        return 1 << numbers[0]
    try:
        return mask_of(numbers) if numbers else 0
    except ValueError as error:
        raise PoolError(str(error)) from None


def _amounts(named: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple((name, amount) for name, amount in named.items() if amount)


def _covers(named: Mapping[str, int], share: NodeShare) -> bool:
    return all(named.get(name, 0) >= amount for name, amount in share.named)


def _what(share: NodeShare) -> str:
    parts = [f"cores {share.cores}"] if share.cores else []
    if share.gpus:
        parts.append(f"GPUs {share.gpus}")
    parts += [f"{amount} {name}" for name, amount in share.named]
    return " and ".join(parts) or f"{share.memory} bytes"
