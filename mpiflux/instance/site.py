"""From what every rank found on its machine to the nodes of the instance and who starts processes on which core.

Pure: the reports come in as data, so that every mapping of ranks to nodes is tested without machines.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from mpiflux.model.resources import NodeResources
from mpiflux.overlay import address

CORES_A_SUPERVISOR = 4
"""One spawner keeps about this many cores busy with jobs of a millisecond."""
_LEAST_SUPERVISORS = 2


class RankReport(msgspec.Struct, frozen=True):
    """What one rank sees."""

    node_name: str
    """Tells nodes apart: the batch system's name of the node, else the host name."""
    cores: tuple[tuple[tuple[int, ...], int], ...]
    """(CPUs, NUMA domain) of every usable core; no CPUs for a core that is only declared."""
    gpus: tuple[tuple[str, str, int, str], ...]
    """(vendor, id, NUMA domain, model) of every usable GPU."""
    memory: int
    notes: tuple[str, ...] = ()
    version: int = 0
    door: str = ""
    """Directory for the socket of its node; empty when it found none."""
    task: str = ""
    """Inside a job of another instance: tells its tasks apart, each of which has cores of its own."""


class SiteNode(msgspec.Struct, frozen=True):
    name: str
    cpus: tuple[tuple[int, ...], ...]
    """CPUs of each core, by logical number."""
    numa: tuple[int, ...]
    gpus: tuple[tuple[str, str, int, str], ...]
    memory: int
    ranks: tuple[int, ...]
    owner: tuple[int, ...]
    """The rank that starts the processes of each core."""

    def resources(self, index: int) -> NodeResources:
        """R of the whole node."""
        return NodeResources(node=index, cores=tuple(range(len(self.cpus))), numa=self.numa,
                             gpus=tuple(range(len(self.gpus))), gpu_numa=tuple(gpu[2] for gpu in self.gpus),
                             memory=self.memory)


class Site(msgspec.Struct, frozen=True):
    """All nodes, and the supervisors of every rank."""

    nodes: tuple[SiteNode, ...]
    node_of_rank: tuple[int, ...]
    executors: tuple[tuple[tuple[int, ...], ...], ...]
    """By rank, by supervisor: the cores of its node that it starts processes for."""

    def executor_table(self) -> dict[tuple[int, int], int]:
        """The executor endpoint of every (node, core)."""
        return {(self.node_of_rank[rank], core): address.executor(rank, position)
                for rank, supervisors in enumerate(self.executors)
                for position, cores in enumerate(supervisors) for core in cores}

    @property
    def total_cores(self) -> int:
        return sum(len(node.cpus) for node in self.nodes)

    @property
    def total_gpus(self) -> int:
        return sum(len(node.gpus) for node in self.nodes)


def survey(reports: Sequence[RankReport]) -> Site:
    """Group ranks into nodes and share out every node's cores among its ranks."""
    by_node: dict[str, list[int]] = {}
    for rank, report in enumerate(reports):
        by_node.setdefault(report.node_name, []).append(rank)
    nodes: list[SiteNode] = []
    node_of_rank = [0] * len(reports)
    owned: list[tuple[int, ...]] = [()] * len(reports)
    for index, (name, ranks) in enumerate(by_node.items()):
        node = _node(name, ranks, [reports[rank] for rank in ranks])
        nodes.append(node)
        for rank in ranks:
            node_of_rank[rank] = index
            owned[rank] = tuple(core for core, owner in enumerate(node.owner) if owner == rank)
    return Site(tuple(nodes), tuple(node_of_rank), tuple(_supervisors(cores) for cores in owned))


def _node(name: str, ranks: list[int], reports: list[RankReport]) -> SiteNode:
    cores: list[tuple[tuple[int, ...], int]] = []
    owner: list[int] = []
    tasks = list(dict.fromkeys(report.task for report in reports))
    if len(tasks) > 1:
        # each task of the job around us was given cores of its own, some of which may only be declared
        for task in tasks:
            mine = [i for i, report in enumerate(reports) if report.task == task]
            cores += reports[mine[0]].cores
            owner += _shares([ranks[i] for i in mine], len(reports[mine[0]].cores))
    elif all(report.cores == reports[0].cores for report in reports):
        # every rank may use all of the node
        cores += reports[0].cores
        owner += _shares(ranks, len(cores))
    else:
        # the launcher bound ranks to parts of the node: each owns its part
        seen: set[int] = set()
        for rank, report in zip(ranks, reports, strict=True):
            for cpus, numa in report.cores:
                if not seen.isdisjoint(cpus):
                    continue
                seen.update(cpus)
                cores.append((cpus, numa))
                owner.append(rank)
    gpus = list(dict.fromkeys(gpu for report in reports for gpu in report.gpus))
    return SiteNode(name, tuple(cpus for cpus, _ in cores), tuple(numa for _, numa in cores), tuple(gpus),
                    min(report.memory for report in reports), tuple(ranks), tuple(owner))


def _shares(ranks: Sequence[int], cores: int) -> list[int]:
    """Contiguous shares of so many cores, rank 0 last to get one when there are too few."""
    bounds = [place * cores // len(ranks) for place in range(len(ranks) + 1)]
    return [rank for place, rank in enumerate(ranks) for _ in range(bounds[place + 1] - bounds[place])]


def _supervisors(cores: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Cut a rank's cores into the shares of its supervisors."""
    if not cores:
        return ()
    n = min(len(cores), max(_LEAST_SUPERVISORS, -(-len(cores) // CORES_A_SUPERVISOR)), address.EXECUTORS_A_RANK)
    return tuple(cores[i * len(cores) // n:(i + 1) * len(cores) // n] for i in range(n))
