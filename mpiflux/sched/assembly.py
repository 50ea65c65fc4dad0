"""Putting a scheduler of the plan together: the same in an instance, in one process, and in simulation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from mpiflux.model.jobspec import PolicySpec
from mpiflux.model.resources import NodeResources
from mpiflux.sched.borrowing import Borrower
from mpiflux.sched.catalog import Catalog
from mpiflux.sched.children import Child
from mpiflux.sched.dealing import Dealing
from mpiflux.sched.leasing import Leasing
from mpiflux.sched.meter import Meter
from mpiflux.sched.owners import Owners
from mpiflux.sched.policies import make
from mpiflux.sched.pool import ResourcePool
from mpiflux.sched.scheduler import Below, Scheduler


class Planned(Protocol):
    """A scheduler as the plan has it (:class:`mpiflux.overlay.plan.PlannedScheduler` is one)."""

    @property
    def id(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def children(self) -> tuple[int, ...]: ...
    @property
    def policy(self) -> PolicySpec: ...
    @property
    def distribution(self) -> str: ...
    @property
    def resources(self) -> tuple[NodeResources, ...]: ...
    @property
    def consumables(self) -> dict[str, int]: ...


def executors_of(resources: Sequence[NodeResources], table: Mapping[tuple[int, int], int]) -> tuple[int, ...]:
    """The executors that start processes for these cores; ``table`` names the one of each (node, core)."""
    return tuple(dict.fromkeys(table[part.node, core] for part in resources for core in part.cores))


def assemble(node: Planned, parent: int, resources_of: Callable[[int], Sequence[NodeResources]],
             table: Mapping[tuple[int, int], int], host_of: Callable[[int], str] = str) -> Scheduler:
    """The scheduler of ``node``, which reports to endpoint ``parent``. ``resources_of`` gives a child's R, ``host_of``
    a node's name."""
    catalog = Catalog()
    below: Below
    if node.children:
        pools = [(child, ResourcePool(resources_of(child))) for child in node.children]
        # the meter counts what is the instance's: nobody below hears of it
        meter = Meter(node.consumables) if node.consumables else None
        bare = Catalog() if meter is not None else catalog
        own = _leasing(node, parent, table, bare, host_of, {})
        borrower = Borrower(node.id, parent, own, ResourcePool(node.resources), Owners(pools))
        below = Dealing([Child(child, pool) for child, pool in pools], node.distribution, catalog, parent, borrower,
                        meter, bare)
    else:
        below = _leasing(node, parent, table, catalog, host_of, node.consumables)
    return Scheduler(node.id, parent, make(node.policy), below, catalog, f"scheduler {node.name}" if node.id else "")


def _leasing(node: Planned, parent: int, table: Mapping[tuple[int, int], int], catalog: Catalog,
             host_of: Callable[[int], str], consumables: Mapping[str, int]) -> Leasing:
    first = {part.node: part.cores[0] for part in node.resources if part.cores}

    def executor_of(where: int, core: int) -> int:
        return table[where, core if core >= 0 else first[where]]

    return Leasing(node.id, parent, ResourcePool(node.resources, consumables), executor_of,
                   executors_of(node.resources, table), catalog, host_of)
