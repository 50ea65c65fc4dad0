"""Dealing one scheduler's R out to its children.

Cores go by position, node after node, so a child's cores are neighbours. A GPU goes with the core it is nearest
to: the i-th of G GPUs of a NUMA domain lives beside core i·n//G of the domain's n. Memory and named resources go in
proportion to cores, rounded so that nothing is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from mpiflux.model import hostlist
from mpiflux.model.jobspec import NestedSpec
from mpiflux.model.resources import NodeResources, count

Parts = list[NodeResources]
"""An R: what is held of each node, in node order."""


class PlanError(ValueError):
    """There is nothing to make a tree of."""


class ShapeError(PlanError):
    """The hierarchy cannot be made on these nodes. ``mistakes``: which shares are at fault, and what there is."""

    def __init__(self, *mistakes: str) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


def core_count(parts: Iterable[NodeResources]) -> int:
    return sum(len(n.cores) for n in parts)


def gpu_count(parts: Iterable[NodeResources]) -> int:
    return sum(len(n.gpus) for n in parts)


def cut(n: NodeResources, cores: Sequence[int], gpus: Sequence[int], before: int) -> NodeResources:
    """The part of ``n`` with the cores and GPUs at these positions; ``before`` cores of it were dealt already."""
    total, after = len(n.cores), before + len(cores)

    def portion(amount: int) -> int:
        return amount * after // total - amount * before // total if total else amount

    return NodeResources(
        node=n.node, cores=tuple(n.cores[i] for i in cores), numa=tuple(n.numa[i] for i in cores) if n.numa else (),
        gpus=tuple(n.gpus[i] for i in gpus), gpu_numa=tuple(n.gpu_numa[i] for i in gpus) if n.gpu_numa else (),
        memory=portion(n.memory), consumables={name: portion(amount) for name, amount in n.consumables.items()},
        whole=n.whole and len(cores) == total and len(gpus) == len(n.gpus))


def homes(n: NodeResources) -> list[int]:
    """For each GPU the position of the core that it lives beside."""
    cores_of: dict[int, list[int]] = {}
    for i, domain in enumerate(n.numa):
        cores_of.setdefault(domain, []).append(i)
    everywhere = list(range(len(n.cores)))
    gpus_of: dict[int, list[int]] = {}
    for i, domain in enumerate(n.gpu_numa or (-1,) * len(n.gpus)):
        gpus_of.setdefault(domain if domain in cores_of else -1, []).append(i)
    home = [0] * len(n.gpus)
    for domain, gpus in gpus_of.items():
        beside = cores_of.get(domain, everywhere)
        for i, gpu in enumerate(gpus):
            home[gpu] = beside[i * len(beside) // len(gpus)]
    return home


def deal(n: NodeResources, cuts: Sequence[Sequence[int]]) -> Parts:
    """Split one node: the i-th result has the cores at positions ``cuts[i]``. Every core is in one cut."""
    holder = [0] * len(n.cores)
    for i, positions in enumerate(cuts):
        for p in positions:
            holder[p] = i
    gpus: list[list[int]] = [[] for _ in cuts]
    if n.gpus:
        for gpu, home in enumerate(homes(n)):
            gpus[holder[home]].append(gpu)
    out: Parts = []
    before = 0
    for positions, near in zip(cuts, gpus, strict=True):
        out.append(cut(n, positions, near, before))
        before += len(positions)
    return out


def by_core(parts: Sequence[NodeResources]) -> list[Parts]:
    return [[piece] for n in parts for piece in deal(n, [(i,) for i in range(len(n.cores))])]


def by_numa(parts: Sequence[NodeResources]) -> list[Parts]:
    out: list[Parts] = []
    for n in parts:
        cuts: dict[int, list[int]] = {}
        for i, domain in enumerate(n.numa or (0,) * len(n.cores)):
            cuts.setdefault(domain, []).append(i)
        out.extend([piece] for piece in deal(n, [cuts[domain] for domain in sorted(cuts)]))
    return out


def by_width(parts: Sequence[NodeResources], width: int) -> list[Parts]:
    """``width`` runs of neighbouring cores, their lengths at most one apart; fewer when there are fewer cores."""
    total = core_count(parts)
    width = min(width, total)
    out: list[Parts] = [[] for _ in range(width)]
    child, first = 0, 0
    for n in parts:
        cuts: list[list[int]] = []
        takers: list[int] = []
        done = 0
        while done < len(n.cores):
            end = total * (child + 1) // width
            take = min(end - first - done, len(n.cores) - done)
            if take:
                cuts.append(list(range(done, done + take)))
                takers.append(child)
            done += take
            if first + done == end:
                child += 1
        first += len(n.cores)
        for taker, piece in zip(takers, deal(n, cuts), strict=True):
            out[taker].append(piece)
    return out


class _Left:
    """What is left of one node while children with explicit shares take theirs."""

    def __init__(self, n: NodeResources) -> None:
        self.n = n
        self.cores = list(range(len(n.cores)))
        self.gpus = list(range(len(n.gpus)))
        self.home = homes(n)

    @property
    def untouched(self) -> bool:
        return len(self.cores) == len(self.n.cores) and len(self.gpus) == len(self.n.gpus)

    def take(self, cores: int, gpus: int | None) -> NodeResources:
        """``cores`` cores and ``gpus`` GPUs; None: the GPUs that live beside the cores."""
        wanted = self.gpus[:gpus] if gpus is not None else []
        domains = {self.n.gpu_numa[g] for g in wanted} if self.n.gpu_numa else set()
        order = self.cores
        if domains and self.n.numa:
            order = sorted(self.cores, key=lambda i: self.n.numa[i] not in domains)
        chosen = sorted(order[:cores])
        held = set(chosen)
        if gpus is None:
            wanted = [g for g in self.gpus if self.home[g] in held]
        before = len(self.n.cores) - len(self.cores)
        piece = cut(self.n, chosen, wanted, before)
        self.cores = [i for i in self.cores if i not in held]
        self.gpus = [g for g in self.gpus if g not in wanted]
        return piece

    def rest(self) -> NodeResources:
        return cut(self.n, self.cores, self.gpus, len(self.n.cores) - len(self.cores))


def explicit(parts: Sequence[NodeResources], children: Sequence[NestedSpec],
             host: Callable[[int], str]) -> tuple[list[Parts], list[str]]:
    """The R of each child, and notes. A child with no share gets an even part of what the others leave; it may be
    empty. Raises ShapeError with all shares that ask for more than is left."""
    left = [_Left(n) for n in parts]
    given: list[Parts | None] = []
    mistakes: list[str] = []
    for i, child in enumerate(children):
        name = repr(child.name) if child.name else f"number {i + 1}"
        take = _take_nodes if child.share_nodes else _take_amounts
        some = child.share_nodes or child.share_cores or child.share_gpus
        try:
            given.append(take(left, child, name) if some else None)
        except ShapeError as error:
            mistakes += error.mistakes
    if mistakes:
        raise ShapeError(*mistakes)
    even = sum(g is None for g in given)
    runs = by_width([x.rest() for x in left if x.cores], even) if even else []
    filler = iter(runs + [[]] * (even - len(runs)))
    filled = [next(filler) if g is None else g for g in given]
    # GPUs on a node without a core left have nobody to go to either.
    stray = [x for x in left if (x.cores and not even) or (x.gpus and not x.cores)]
    if not stray:
        return filled, []
    what = [count(sum(number), word) for number, word in (
        ([len(x.cores) for x in stray], "core"), ([len(x.gpus) for x in stray], "GPU")) if sum(number)]
    hosts = hostlist.encode(host(x.n.node) for x in stray)
    return filled, [f"{' and '.join(what)} of {hosts} are in no child's share: nothing will run there"]


def _take_nodes(left: Sequence[_Left], child: NestedSpec, name: str) -> Parts:
    wanted = child.share_nodes
    free = [x for x in left if x.untouched][:wanted]
    if len(free) < wanted:
        raise ShapeError(f"hierarchy: child {name} asks for {count(wanted, 'node')}; "
                         f"{len(free) or 'none'} of {len(left)} are left whole. Make its share smaller")
    cores = _even(child.share_cores, wanted) if child.share_cores else [len(x.cores) for x in free]
    gpus: Sequence[int | None] = _even(child.share_gpus, wanted) if child.share_gpus else [None] * wanted
    for x, c, g in zip(free, cores, gpus, strict=True):
        if c > len(x.cores) or (g or 0) > len(x.gpus):
            raise ShapeError(f"hierarchy: child {name} asks for {count(child.share_cores, 'core')} and "
                             f"{count(child.share_gpus, 'GPU')} on {count(wanted, 'node')}; a node there has "
                             f"{count(len(x.cores), 'core')} and {count(len(x.gpus), 'GPU')}")
    return [x.take(c, g) for x, c, g in zip(free, cores, gpus, strict=True)]


def _take_amounts(left: Sequence[_Left], child: NestedSpec, name: str) -> Parts:
    cores, gpus = child.share_cores, child.share_gpus
    for wanted, there, word in ((cores, sum(len(x.cores) for x in left), "core"),
                                (gpus, sum(len(x.gpus) for x in left), "GPU")):
        if wanted > there:
            raise ShapeError(f"hierarchy: child {name} asks for {count(wanted, word)}; "
                             f"{there or 'none'} of its parent's are left. Make its share smaller")
    if not gpus:
        return _walk_cores(left, cores)
    takes: list[int] = []
    open_gpus = gpus
    for x in left:
        takes.append(min(open_gpus, len(x.gpus)))
        open_gpus -= takes[-1]
    near: list[int] = []
    before = 0
    for x, g in zip(left, takes, strict=True):
        if cores:
            share = cores * (before + g) // gpus - cores * before // gpus
        else:
            share = max(1, len(x.n.cores) * g // len(x.n.gpus)) if g else 0
        near.append(min(share, len(x.cores)))
        before += g
    short = cores - sum(near)
    for i, x in enumerate(left):
        more = max(0, min(short, len(x.cores) - near[i]))
        near[i] += more
        short -= more
    return [x.take(c, g) for x, c, g in zip(left, near, takes, strict=True) if c or g]


def _walk_cores(left: Sequence[_Left], cores: int) -> Parts:
    out: Parts = []
    for x in left:
        take = min(cores, len(x.cores))
        if take:
            out.append(x.take(take, None))
            cores -= take
    return out


def _even(amount: int, among: int) -> list[int]:
    return [amount * (i + 1) // among - amount * i // among for i in range(among)]


def merge(original: Sequence[NodeResources], children: Iterable[Sequence[NodeResources]]) -> Parts:
    """The union of the children's R, in the order of ``original``, which holds all of it."""
    held: dict[int, Parts] = {}
    for parts in children:
        for piece in parts:
            held.setdefault(piece.node, []).append(piece)
    out: Parts = []
    for n in original:
        pieces = held.get(n.node)
        if not pieces:
            continue
        cores = {c for piece in pieces for c in piece.cores}
        gpus = {g for piece in pieces for g in piece.gpus}
        kept = cut(n, [i for i, c in enumerate(n.cores) if c in cores],
                   [i for i, g in enumerate(n.gpus) if g in gpus], 0)
        out.append(NodeResources(
            node=n.node, cores=kept.cores, numa=kept.numa, gpus=kept.gpus, gpu_numa=kept.gpu_numa, whole=kept.whole,
            memory=sum(piece.memory for piece in pieces),
            consumables={name: sum(piece.consumables.get(name, 0) for piece in pieces) for name in n.consumables}))
    return out
