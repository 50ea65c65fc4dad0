"""What becomes of the tree when ranks are lost. Pure: rank 0 decides, and tells all ranks what is to be done. Only when
all have done it does the root scheduler hear of it: so nothing of what is tried again still runs on a living rank.

A child of the root that has anything to do with a lost rank is retired whole, with all below it, and what is left of it
comes back under new numbers, so that nothing that is still under way to or from the old ones can be mistaken. A
scheduler whose own rank is lost does not come back: its children go to the one above it. A leaf that has lost its rank
but still has executors moves to the rank of the first of these. GPUs, memory and named resources of a node go with the
cores beside them: what a lost rank started may still use them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from mpiflux.model import messages as m
from mpiflux.model.jobspec import JobGroup
from mpiflux.model.resources import NodeResources, kinds, misfit
from mpiflux.model.tree import TreeNode
from mpiflux.overlay import address
from mpiflux.overlay.plan_shares import deal, merge

ROOT = 0


class Change(msgspec.Struct, frozen=True):
    """What the loss of some ranks means, beside everything that was lost before."""

    retired: tuple[int, ...]
    nodes: tuple[TreeNode, ...]
    """New schedulers."""
    gone: tuple[int, ...]
    """Executors that are no more."""
    anew: tuple[int, ...]
    """Executors on living ranks that lose their schedulers."""


class Tree:
    """The schedulers that there are. ``table`` names the executor of each (node, core)."""

    def __init__(self, nodes: Iterable[TreeNode], table: Mapping[tuple[int, int], int]) -> None:
        self.nodes = {node.id: node for node in nodes}
        self.lost: set[int] = set()
        """Ranks."""
        self._table = table
        self._next = max(self.nodes) + 1

    @property
    def root(self) -> TreeNode:
        return self.nodes[ROOT]

    def lose(self, ranks: Collection[int]) -> Change:
        """These ranks are lost. Rank 0, which has the root, never is."""
        self.lost.update(ranks)
        root = self.root
        if not root.children:
            executors = self._executors(root.resources)
            self.nodes[ROOT] = msgspec.structs.replace(root, resources=self._living(root.resources))
            return Change((), (), tuple(e for e in executors if self._is_lost(e)), ())
        retired: list[int] = []
        made: list[TreeNode] = []
        executors = {}
        children: list[int] = []
        for child in root.children:
            below = self._subtree(child)
            if not self._touched(below):
                children.append(child)
                continue
            children += self._rebuild(child, ROOT, made)
            executors.update(self._executors(self.nodes[child].resources))
            retired += below
        for number in retired:
            del self.nodes[number]
        self.nodes.update((node.id, node) for node in made)
        self.nodes[ROOT] = msgspec.structs.replace(root, children=tuple(children), resources=tuple(merge(
            root.resources, [self.nodes[child].resources for child in children])))
        return Change(tuple(retired), tuple(made), tuple(e for e in executors if self._is_lost(e)),
                      tuple(e for e in executors if not self._is_lost(e)))

    def _subtree(self, number: int) -> list[int]:
        found = [number]
        for one in found:
            found += self.nodes[one].children
        return found

    def _touched(self, numbers: Iterable[int]) -> bool:
        return any(node.rank in self.lost or any(map(self._is_lost, self._executors(node.resources)))
                   for node in map(self.nodes.__getitem__, numbers))

    def _is_lost(self, executor: int) -> bool:
        return address.rank_of_executor(executor) in self.lost

    def _executors(self, resources: Iterable[NodeResources]) -> dict[int, None]:
        return dict.fromkeys(self._table[part.node, core] for part in resources for core in part.cores)

    def _living(self, resources: Iterable[NodeResources]) -> tuple[NodeResources, ...]:
        """What is left of an R."""
        out = []
        for part in resources:
            lost = [place for place, core in enumerate(part.cores) if self._is_lost(self._table[part.node, core])]
            if lost:
                kept = [place for place in range(len(part.cores)) if place not in set(lost)]
                if not kept:
                    continue
                part = deal(part, [kept, lost])[0]
            out.append(part)
        return tuple(out)

    def _rebuild(self, number: int, parent: int, made: list[TreeNode]) -> list[int]:
        """What takes the place of a scheduler below ``parent``: itself, its children, or nothing."""
        node = self.nodes[number]
        if not node.children:
            kept = self._living(node.resources)
            if not any(part.cores for part in kept):
                return []
            rank = node.rank
            if rank in self.lost:
                rank = address.rank_of_executor(next(iter(self._executors(kept))))
            return [self._make(node, made, parent=parent, rank=rank, resources=kept)]
        if node.rank in self.lost:
            return [one for child in node.children for one in self._rebuild(child, parent, made)]
        own = self._next
        self._next += 1
        children = [one for child in node.children for one in self._rebuild(child, own, made)]
        if not children:
            return []
        parts = {one.id: one.resources for one in made}
        return [self._make(node, made, own, parent=parent, children=tuple(children), resources=tuple(merge(
            node.resources, [parts[child] for child in children])))]

    def _make(self, node: TreeNode, made: list[TreeNode], number: int = -1, **changes: object) -> int:
        if number < 0:
            number = self._next
            self._next += 1
        made.append(msgspec.structs.replace(node, id=number, **changes))
        return number


class Regrouping:
    """Rank 0's side. ``living`` are all ranks."""

    def __init__(self, tree: Tree, living: Iterable[int]) -> None:
        self.tree = tree
        self.living = set(living)
        self.generation = 0
        self._awaited: set[int] = set()
        """Ranks that have not regrouped yet."""
        self._children = set(tree.root.children)
        """Those that the root scheduler knows."""
        self._retired: set[int] = set()
        self._executors: set[int] = set()
        """Those that are no more, of which the root scheduler has not heard."""

    def lose(self, ranks: Collection[int]) -> m.Regroup:
        """These ranks are lost: what every living rank is to be told."""
        self.living.difference_update(ranks)
        change = self.tree.lose(ranks)
        self.generation += 1
        self._executors.update(change.gone)
        self._retired.update(change.retired)
        self._awaited = set(self.living)
        return m.Regroup(self.generation, tuple(sorted(self.tree.lost)), tuple(sorted(self._retired)), change.nodes,
                         change.anew)

    def regrouped(self, rank: int, generation: int, reason: str) -> m.Regrow | None:
        """A rank has done its part; when it was the last one, what the root scheduler is to be told."""
        if generation != self.generation or rank not in self._awaited:
            return None
        self._awaited.discard(rank)
        if self._awaited:
            return None
        root = self.tree.root
        lost = self._children.difference(root.children)
        gained = [self.tree.nodes[child] for child in root.children if child not in self._children]
        self._children = set(root.children)
        executors, self._executors = tuple(sorted(self._executors)), set()
        return m.Regrow(tuple(sorted(lost)), tuple(gained), executors, root.resources, reason)

    def impossible(self, group: JobGroup) -> tuple[str, Sequence[int]]:
        """Why jobs of a group can never run on what is left, and which: their indices, none when all can."""
        root = self.tree.root
        why = misfit(kinds(root.resources), root.consumables, group.request)
        if why is not None:
            return why, range(group.count)
        if group.on:
            nodes = {part.node for part in root.resources
                     if misfit(kinds([part]), root.consumables, group.request) is None}
            if not nodes.issuperset(group.on):
                return "is for a node that is lost", [i for i in range(group.count) if group.node_of(i) not in nodes]
        return "", ()
