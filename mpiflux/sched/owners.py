"""Which child of a scheduler owns what: how resources are asked of, and given back to, whom they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mpiflux.model.messages import NodeShare
from mpiflux.sched.pool import ResourcePool

Amounts = list[tuple[int, int]]
"""(child, how much of something it has)."""


class Owners:
    """The children of a scheduler, by endpoint, and their R."""

    def __init__(self, children: Iterable[tuple[int, ResourcePool]]) -> None:
        self._cores: dict[tuple[int, int], int] = {}
        self._gpus: dict[tuple[int, int], int] = {}
        self._memory: dict[int, Amounts] = {}
        self._named: dict[tuple[int, str], Amounts] = {}
        for child, pool in children:
            for node in pool.nodes:
                self._cores.update(dict.fromkeys(((node.node, core) for core in node.cores), child))
                self._gpus.update(dict.fromkeys(((node.node, gpu) for gpu in node.gpus), child))
                self._memory.setdefault(node.node, []).append((child, node.memory))
                for name, amount in node.consumables.items():
                    self._named.setdefault((node.node, name), []).append((child, amount))

    def split(self, shares: Sequence[NodeShare]) -> dict[int, tuple[NodeShare, ...]]:
        """Resources by the child that owns them. Equal shares are split equally, so what was lent goes back to where
        it came from."""
        parts: dict[int, list[NodeShare]] = {}
        for share in shares:
            for child, part in self._split(share).items():
                parts.setdefault(child, []).append(part)
        return {child: tuple(pieces) for child, pieces in parts.items()}

    def left_of(self, share: NodeShare) -> dict[int, NodeShare]:
        """Likewise, of what may in part be nobody's any more, and only of those who have some of its cores or GPUs."""
        mine = NodeShare(share.node, tuple(core for core in share.cores if (share.node, core) in self._cores),
                         tuple(gpu for gpu in share.gpus if (share.node, gpu) in self._gpus), share.memory, 0,
                         tuple(one for one in share.named if (share.node, one[0]) in self._named))
        if not mine.cores and not mine.gpus:
            return {}
        return {child: part for child, part in self._split(mine).items() if part.cores or part.gpus}

    def _split(self, share: NodeShare) -> dict[int, NodeShare]:
        cores: dict[int, list[int]] = {}
        gpus: dict[int, list[int]] = {}
        for core in share.cores:
            cores.setdefault(self._cores[share.node, core], []).append(core)
        for gpu in share.gpus:
            gpus.setdefault(self._gpus[share.node, gpu], []).append(gpu)
        first = dict.fromkeys([*cores, *gpus])
        memory = _taken(share.memory, self._memory[share.node], first)
        named: dict[int, list[tuple[str, int]]] = {}
        for name, amount in share.named:
            for child, part in _taken(amount, self._named[share.node, name], first).items():
                named.setdefault(child, []).append((name, part))
        return {child: NodeShare(share.node, tuple(cores.get(child, ())), tuple(gpus.get(child, ())),
                                 memory.get(child, 0), 0, tuple(named.get(child, ())))
                for child in dict.fromkeys([*first, *memory, *named])}


def _taken(amount: int, owners: Amounts, first: Iterable[int]) -> dict[int, int]:
    """Who gives how much of an amount, never more than it has: those first that lend cores or GPUs for it."""
    found: dict[int, int] = {}
    for child, most in sorted(owners, key=lambda one: one[0] not in first):
        part = min(amount, most)
        if part:
            found[child] = part
            amount -= part
    return found
