"""Where tasks go: the state of one node, and an index of nodes by how much of a shape still fits.

Free cores and GPUs of a node are bits of one integer each, so a NUMA domain's share of them is a mask and a
count. :class:`FitIndex` keeps, for one task shape, the nodes that hold exactly k more such tasks as one integer
per k, so the fullest node that still fits, the emptiest, and the k-th after it come from a few integer operations
whatever the size of the machine. Everything is exact and ordered: equal histories give equal answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from heapq import heappush, heapreplace

from mpiflux.model.resources import MAX_CORELESS_TASKS, NodeResources


@lru_cache(maxsize=1 << 14)
def bits(mask: int) -> tuple[int, ...]:
    """Positions of the ones, ascending."""
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return tuple(found)


@lru_cache(maxsize=1 << 14)
def mask_of(numbers: tuple[int, ...]) -> int:
    """The integer with these bits set. Raises ValueError when a number is there twice."""
    mask = 0
    for n in numbers:
        mask |= 1 << n
    if mask.bit_count() != len(numbers):
        raise ValueError(f"a number is there twice in {numbers}")
    return mask


@lru_cache(maxsize=1 << 14)
def lowest(mask: int, n: int) -> tuple[int, tuple[int, ...]]:
    """The ``n`` lowest ones as a mask and as positions; ``mask`` has at least that many."""
    rest = mask
    found = []
    for _ in range(n):
        low = rest & -rest
        found.append(low.bit_length() - 1)
        rest ^= low
    return mask ^ rest, tuple(found)


class NodeState:
    """What is free on one node. Counts decide what fits; NUMA domains decide which cores and GPUs it gets."""

    __slots__ = ("away_cores", "away_gpus", "away_memory", "away_named", "busy_cores", "busy_gpus", "closed", "cores",
                 "domains", "gpus", "jobs", "memory", "named", "pos", "seats", "spec", "up")

    def __init__(self, spec: NodeResources, pos: int) -> None:
        self.spec = spec
        self.pos = pos
        self.cores = mask_of(spec.cores)
        self.gpus = mask_of(spec.gpus)
        self.busy_cores = self.busy_gpus = 0
        self.away_cores = self.away_gpus = self.away_memory = 0
        self.memory = spec.memory
        self.named = dict(spec.consumables)
        self.away_named: dict[str, int] = {}
        self.seats = MAX_CORELESS_TASKS
        self.jobs = 0
        self.up = True
        self.closed = False
        self.domains = _domains(spec)

    @property
    def idle(self) -> bool:
        """All of the node is here and nobody uses it."""
        return self.jobs == 0 and self.up and self.spec.whole and not (
            self.away_cores or self.away_gpus or self.away_memory)

    def place(self, tasks: int, cores: int, gpus: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Choose and take cores and GPUs for ``tasks`` tasks, in task order. The counts must fit."""
        if len(self.domains) == 1:
            if cores == 1 and tasks == 1 and not gpus:
                low = self.cores & -self.cores
                self.cores ^= low
                self.busy_cores |= low
                return (low.bit_length() - 1,), ()
            core_mask, core_ids = lowest(self.cores, tasks * cores)
            gpu_mask, gpu_ids = lowest(self.gpus, tasks * gpus) if gpus else (0, ())
            self._take(core_mask, gpu_mask)
            return core_ids, gpu_ids
        if tasks == 1:
            return self._place_task(cores, gpus)
        all_cores: list[int] = []
        all_gpus: list[int] = []
        for _ in range(tasks):
            core_ids, gpu_ids = self._place_task(cores, gpus)
            all_cores += core_ids
            all_gpus += gpu_ids
        return tuple(all_cores), tuple(all_gpus)

    def place_rest(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Take all that is free."""
        rest = bits(self.cores), bits(self.gpus)
        self._take(self.cores, self.gpus)
        return rest

    def _take(self, core_mask: int, gpu_mask: int) -> None:
        self.cores ^= core_mask
        self.busy_cores |= core_mask
        if gpu_mask:
            self.gpus ^= gpu_mask
            self.busy_gpus |= gpu_mask

    def _place_task(self, cores: int, gpus: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        domain = self._near_gpus(cores, gpus) if gpus else self._for_cores(cores)
        if domain is not None:
            core_mask, core_ids = lowest(self.cores & domain[0], cores)
            gpu_mask, gpu_ids = lowest(self.gpus & domain[1], gpus) if gpus else (0, ())
        else:
            gpu_mask = self._scattered_gpus(gpus)
            core_mask = self._scattered_cores(cores, gpu_mask)
            core_ids, gpu_ids = bits(core_mask), bits(gpu_mask)
        self._take(core_mask, gpu_mask)
        return core_ids, gpu_ids

    def _near_gpus(self, cores: int, gpus: int) -> tuple[int, int] | None:
        """The domain with enough of both that has the fewest GPUs, then cores, to spare."""
        best = None
        best_gpus = best_cores = 0
        for domain in self.domains:
            free_gpus = (self.gpus & domain[1]).bit_count()
            if free_gpus < gpus:
                continue
            free_cores = (self.cores & domain[0]).bit_count()
            if free_cores >= cores and (
                    best is None or (free_gpus, free_cores) < (best_gpus, best_cores)):
                best, best_gpus, best_cores = domain, free_gpus, free_cores
        return best

    def _for_cores(self, cores: int) -> tuple[int, int] | None:
        """The domain for a task without GPUs.

        Where there are free GPUs their near cores are spared: the domain with the most cores left for each free
        GPU. Among domains without free GPUs, and before all others, the fullest.
        """
        best = None
        best_gpus = best_cores = 0
        for domain in self.domains:
            left = (self.cores & domain[0]).bit_count() - cores
            if left < 0:
                continue
            free_gpus = (self.gpus & domain[1]).bit_count() if self.gpus else 0
            if best is not None:
                if free_gpus and best_gpus:
                    if left * best_gpus <= best_cores * free_gpus:
                        continue
                elif free_gpus or (not best_gpus and left >= best_cores):
                    continue
            best, best_gpus, best_cores = domain, free_gpus, left
        return best

    def _scattered_gpus(self, gpus: int) -> int:
        """GPUs for a task that no domain can hold: from few domains, those with the most free cores first."""
        mask = 0
        order = sorted(self.domains, key=lambda d: (-min((self.gpus & d[1]).bit_count(), gpus),
                                                    -(self.cores & d[0]).bit_count()))
        for _, gpu_domain in (*order, (0, self.gpus)):
            free = self.gpus & gpu_domain & ~mask
            mask |= lowest(free, min(free.bit_count(), gpus - mask.bit_count()))[0]
        return mask

    def _scattered_cores(self, cores: int, gpu_mask: int) -> int:
        """Cores for such a task: one domain if any has enough, else beside its GPUs first, then the emptiest."""
        order = sorted(self.domains, key=lambda d: ((self.cores & d[0]).bit_count() < cores, not gpu_mask & d[1],
                                                    -(self.cores & d[0]).bit_count()))
        mask = 0
        for core_domain, _ in order:
            free = self.cores & core_domain
            mask |= lowest(free, min(free.bit_count(), cores - mask.bit_count()))[0]
        return mask


def _domains(spec: NodeResources) -> tuple[tuple[int, int], ...]:
    """(cores, GPUs) of each NUMA domain as masks; a GPU whose domain is unknown counts as near to all."""
    if not spec.numa:
        return ((mask_of(spec.cores), mask_of(spec.gpus)),)
    cores: dict[int, int] = {}
    for core, domain in zip(spec.cores, spec.numa, strict=True):
        cores[domain] = cores.get(domain, 0) | 1 << core
    if len(cores) <= 1:
        return ((mask_of(spec.cores), mask_of(spec.gpus)),)
    gpu_numa = spec.gpu_numa or (-1,) * len(spec.gpus)
    gpus = dict.fromkeys(cores, 0)
    for gpu, domain in zip(spec.gpus, gpu_numa, strict=True):
        for near in gpus if domain == -1 else (domain,):
            if near in gpus:
                gpus[near] |= 1 << gpu
    return tuple((cores[domain], gpus[domain]) for domain in sorted(cores))


Measure = Callable[[NodeState], int]


def measure(cores: int, gpus: int, memory: int, named: tuple[tuple[str, int], ...], tasks: int,
            exclusive: bool) -> Measure:
    """A function that counts the tasks of this shape that a node can take now."""
    if exclusive:
        inner = measure(cores, gpus, memory, named, tasks, False)
        return lambda node: inner(node) if node.idle else 0
    if cores and not (gpus or memory or named):
        if cores == 1:
            return lambda node: node.cores.bit_count() if node.up else 0
        return lambda node: node.cores.bit_count() // cores if node.up else 0

    def general(node: NodeState) -> int:
        if not node.up or node.closed:
            return 0
        fit = node.cores.bit_count() // cores if cores else node.seats
        if gpus:
            fit = min(fit, node.gpus.bit_count() // gpus)
        if memory:
            fit = min(fit, node.memory // memory)
        for name, amount in named:
            fit = min(fit, node.named.get(name, 0) * tasks // amount)
        return fit

    return general


def measure_local(cores: int, gpus: int, whole: Measure) -> Measure:
    """Like ``whole``, counting only tasks that find their cores in one NUMA domain, beside their GPUs."""

    def local(node: NodeState) -> int:
        fit = whole(node)
        if not fit or len(node.domains) == 1:
            return fit
        near = 0
        for core_domain, gpu_domain in node.domains:
            here = (node.cores & core_domain).bit_count() // cores
            if gpus:
                here = min(here, (node.gpus & gpu_domain).bit_count() // gpus)
            near += here
        return min(near, fit)

    return local


class FitIndex:
    """Nodes by the number of tasks of one shape that they can take now.

    ``sync`` brings it up to date from the pool's list of changed nodes, so a shape that nobody asks for any more
    costs nothing.
    """

    __slots__ = ("_fits", "_measure", "_nodes", "buckets", "filled", "seen", "stale")

    def __init__(self, nodes: Sequence[NodeState], count: Measure) -> None:
        self._nodes = nodes
        self._measure = count
        self._fits: list[int] = []
        self.buckets: list[int] = []
        """``buckets[k]``: the positions of nodes that fit exactly k, as bits; nodes that fit none are nowhere."""
        self.filled = 0
        """Bit k is set when ``buckets[k]`` is not empty."""
        self.seen = 0
        """How much of the pool's list of changes is in here."""
        self.stale = True

    def sync(self, changed: list[int]) -> None:
        """Take in what changed since the last call."""
        if self.stale:
            self._rebuild()
        else:
            for pos in changed[self.seen:]:
                self._update(pos)
        self.seen = len(changed)

    def drop(self) -> None:
        """Forget everything until the next ``sync``."""
        self._fits, self.buckets, self.filled, self.stale = [], [], 0, True

    def _rebuild(self) -> None:
        self._fits = [self._measure(node) for node in self._nodes]
        self.buckets, self.filled, self.stale = [0] * (max(self._fits, default=0) + 1), 0, False
        positions: dict[int, list[int]] = {}
        for pos, fit in enumerate(self._fits):
            positions.setdefault(fit, []).append(pos)
        for fit, here in positions.items():
            if fit:
                row = bytearray(len(self._nodes) // 8 + 1)
                for pos in here:
                    row[pos >> 3] |= 1 << (pos & 7)
                self.buckets[fit] = int.from_bytes(row, "little")
                self.filled |= 1 << fit

    def _update(self, pos: int) -> None:
        new = self._measure(self._nodes[pos])
        old = self._fits[pos]
        if new == old:
            return
        self._fits[pos] = new
        bit = 1 << pos
        buckets = self.buckets
        if old:
            rest = buckets[old] ^ bit
            buckets[old] = rest
            if not rest:
                self.filled ^= 1 << old
        if new:
            if new >= len(buckets):
                buckets.extend([0] * (new + 1 - len(buckets)))
            there = buckets[new]
            buckets[new] = there | bit
            if not there:
                self.filled |= 1 << new

    def count(self, node: NodeState) -> int:
        """Tasks that fit on this node now, whatever has been synced."""
        return self._measure(node)

    def fullest(self, tasks: int) -> int:
        """The node that fits ``tasks`` with the least to spare, the lowest of equals; -1 when there is none."""
        wide = self.filled >> tasks
        if not wide:
            return -1
        bucket = self.buckets[tasks + (wide & -wide).bit_length() - 1]
        return (bucket & -bucket).bit_length() - 1

    def emptiest(self, tasks: int) -> int:
        """The node that fits ``tasks`` with the most to spare, the lowest of equals; -1 when there is none."""
        fit = self.filled.bit_length() - 1
        if fit < tasks or fit < 1:
            return -1
        bucket = self.buckets[fit]
        return (bucket & -bucket).bit_length() - 1

    def ascending(self, least: int) -> Iterator[int]:
        """Nodes that fit at least ``least`` (> 0), fullest first."""
        for fit in bits_ascending(self.filled >> least):
            yield from bits_ascending(self.buckets[fit + least])

    def descending(self, least: int = 1) -> Iterator[tuple[int, int]]:
        """(tasks that fit, node), emptiest first."""
        for fit in range(self.filled.bit_length() - 1, least - 1, -1):
            if self.filled >> fit & 1:
                for pos in bits_ascending(self.buckets[fit]):
                    yield fit, pos

    def nodes_with(self, least: int) -> int:
        """How many nodes fit at least ``least`` (> 0)."""
        return sum(self.buckets[fit + least].bit_count() for fit in bits_ascending(self.filled >> least))

    def total(self) -> int:
        """Tasks that fit on all nodes together."""
        return sum(fit * self.buckets[fit].bit_count() for fit in bits_ascending(self.filled))


def bits_ascending(mask: int) -> Iterator[int]:
    """Positions of the ones of a wide integer, lowest first, without keeping them all."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


Choice = list[tuple[int, int]]
"""(position of the node, tasks there)."""


def choose_even(index: FitIndex, nodes: int, low: int, more: int, spread: bool) -> Choice | None:
    """``nodes`` nodes with ``low`` tasks each, ``more`` of them with one task more."""
    if index.nodes_with(low) < nodes or (more and index.nodes_with(low + 1) < more):
        return None
    if spread:
        emptiest = (pos for _, pos in index.descending(low))
        return [(next(emptiest), low + (i < more)) for i in range(nodes)]
    chosen: Choice = []
    if more:
        fullest = index.ascending(low + 1)
        chosen = [(next(fullest), low + 1) for _ in range(more)]
    taken = {pos for pos, _ in chosen}
    for pos in index.ascending(low):
        if len(chosen) == nodes:
            break
        if pos not in taken:
            chosen.append((pos, low))
    return chosen


def choose_pack(index: FitIndex, tasks: int) -> Choice | None:
    """The fewest nodes, whole remainders filled first: the last node is the fullest that takes what is left."""
    if index.total() < tasks:
        return None
    chosen: Choice = []
    taken = 0
    for fit, pos in index.descending():
        if tasks <= fit:
            break
        chosen.append((pos, fit))
        taken |= 1 << pos
        tasks -= fit
    if tasks:
        for fit in range(tasks, len(index.buckets)):
            bucket = index.buckets[fit] & ~taken
            if bucket:
                chosen.append(((bucket & -bucket).bit_length() - 1, tasks))
                break
    return chosen


def choose_spread(index: FitIndex, tasks: int) -> Choice | None:
    """Task after task to the node that then has the most room."""
    if index.total() < tasks:
        return None
    untouched = index.descending()
    following = next(untouched, None)
    room: list[tuple[int, int]] = []
    given: dict[int, int] = {}
    for _ in range(tasks):
        if following is not None and (not room or following[0] >= -room[0][0]):
            fit, pos = following
            heappush(room, (1 - fit, pos))
            following = next(untouched, None)
        else:
            negative, pos = room[0]
            heapreplace(room, (negative + 1, pos))
        given[pos] = given.get(pos, 0) + 1
    return list(given.items())
