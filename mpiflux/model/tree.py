"""A scheduler of the tree, as every rank gets to know it."""

from __future__ import annotations

import msgspec

from mpiflux.model.jobspec import PolicySpec
from mpiflux.model.resources import NodeResources


class TreeNode(msgspec.Struct, frozen=True):
    """One scheduler: a node of the plan, or one that took the place of such when a rank was lost."""

    id: int
    """Its endpoint; 0 is the root."""
    parent: int
    """-1 for the root."""
    children: tuple[int, ...]
    rank: int
    policy: PolicySpec
    distribution: str
    resources: tuple[NodeResources, ...]
    """R. Of a scheduler with children: the union of theirs."""
    consumables: dict[str, int] = {}
    """Named resources of the instance; only the root has them."""
    name: str = ""
    """As the plan calls it; of those that take the place of others the same."""
