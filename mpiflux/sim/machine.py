"""Virtual machines: the nodes, ranks and supervisors that a simulated instance runs on.

``--cluster`` is either short, ``4000x(44c,4g)`` or ``2x(8c)+4x(16c,2g,2n,64GiB)`` (cores, GPUs, NUMA domains, memory
of each node), or a YAML file of racks::

    racks:
      - {count: 18, cores: 44, gpus: 4, numa: 2, memory: 256GiB, name: rack1-}
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

import yaml

from mpiflux.model.resources import NodeResources
from mpiflux.overlay import address
from mpiflux.overlay.plan import NodeInfo
from mpiflux.spec.scalars import as_size

CORES_A_SUPERVISOR = 4
LEAST_SUPERVISORS = 2
"""As in the instance room; a test holds them together."""
MAX_NODES = 1_000_000
_PART = re.compile(r"(?:(\d{1,7})x)?\(([^()]*)\)", re.ASCII)
_KEYS = {"name", "count", "cores", "gpus", "numa", "memory"}


class ClusterError(ValueError):
    """The description of a cluster is wrong."""


@dataclass(frozen=True)
class NodeType:
    """``count`` equal nodes. ``memory`` in bytes."""

    count: int
    cores: int
    gpus: int = 0
    numa: int = 1
    memory: int = 0
    name: str = ""


@dataclass(frozen=True)
class Machine:
    """Nodes as the plan wants them, and which executor starts the processes of each core."""

    nodes: tuple[NodeInfo, ...]
    node_of_rank: tuple[int, ...]
    executors: tuple[tuple[int, ...], ...]
    """By rank: the endpoints of its executors."""
    table: dict[tuple[int, int], int]
    """(node, core) to executor."""

    @property
    def ranks(self) -> int:
        return len(self.node_of_rank)

    @property
    def cores(self) -> int:
        return sum(len(node.resources.cores) for node in self.nodes)

    @property
    def gpus(self) -> int:
        return sum(len(node.resources.gpus) for node in self.nodes)


def parse_cluster(text: str) -> tuple[NodeType, ...]:
    """The value of ``--cluster``. Raises ClusterError, which says what is wrong and what is right."""
    if os.path.isfile(text):
        return read_racks(text)
    example = 'write for example "4000x(44c,4g)" or "2x(8c)+4x(16c,2g)", or name a YAML file of racks'
    types = []
    for part in text.replace(" ", "").split("+"):
        match = _PART.fullmatch(part)
        if match is None:
            raise ClusterError(f"{part!r} describes no nodes: {example}")
        types.append(_node_type(int(match[1] or 1), match[2], example))
    return _checked(types)


def _node_type(count: int, inside: str, example: str) -> NodeType:
    found: dict[str, int] = {}
    for item in inside.split(","):
        number, unit = item[:-1], item[-1:]
        key = {"c": "cores", "g": "gpus", "n": "numa"}.get(unit)
        if key is not None and number.isascii() and number.isdigit():
            value = int(number)
        else:
            key, size = "memory", as_size(item)
            if size is None:
                raise ClusterError(f"{item!r} is neither cores (44c), GPUs (4g), NUMA domains (2n) nor memory "
                                   f"(256GiB): {example}")
            value = size
        if key in found:
            raise ClusterError(f"({inside}) gives {key} twice")
        found[key] = value
    if "cores" not in found:
        raise ClusterError(f"({inside}) has no cores: {example}")
    return NodeType(count, found["cores"], found.get("gpus", 0), found.get("numa", 1), found.get("memory", 0))


def read_racks(path: str) -> tuple[NodeType, ...]:
    """Nodes from a YAML file. Raises ClusterError."""
    try:
        with open(path, encoding="utf-8") as file:
            data: Any = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ClusterError(f"{path}: cannot be read as YAML: {error}") from None
    racks = data.get("racks") if isinstance(data, dict) else None
    if not isinstance(racks, list) or not racks or set(data) != {"racks"}:
        raise ClusterError(f"{path}: expected one key, racks, with a list of mappings that have {_words()}")
    return _checked([_rack(path, i, rack) for i, rack in enumerate(racks)])


def _rack(path: str, i: int, rack: Any) -> NodeType:
    where = f"{path}: racks[{i}]"
    if not isinstance(rack, dict) or not set(rack) <= _KEYS:
        wrong = sorted(map(str, set(rack) - _KEYS)) if isinstance(rack, dict) else [repr(rack)]
        raise ClusterError(f"{where}: {', '.join(wrong)} not understood; a rack has {_words()}")
    numbers = {key: rack[key] for key in ("count", "cores", "gpus", "numa") if key in rack}
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ClusterError(f"{where}: {key} is a whole number, not {value!r}")
    memory = as_size(str(rack.get("memory", 0)))
    if memory is None:
        raise ClusterError(f"{where}: memory is a size such as 256GiB, not {rack['memory']!r}")
    if "cores" not in rack:
        raise ClusterError(f"{where}: cores is missing")
    return NodeType(numbers.pop("count", 1), memory=memory, name=str(rack.get("name", "")), **numbers)


def _words() -> str:
    return ", ".join(sorted(_KEYS))


def _checked(types: list[NodeType]) -> tuple[NodeType, ...]:
    for one in types:
        if one.count < 1 or one.cores < 1 or not 1 <= one.numa <= one.cores:
            raise ClusterError(f"{one.count} nodes of {one.cores} cores in {one.numa} NUMA domains cannot be: each "
                               "number is at least 1, and every domain has a core")
    total = sum(one.count for one in types)
    if total > MAX_NODES:
        raise ClusterError(f"{total:,} nodes are more than this simulator takes ({MAX_NODES:,})")
    return tuple(types)


def build(types: tuple[NodeType, ...], ranks_per_node: int = 1) -> Machine:
    """The machine, with cores shared among the ranks of a node as a real instance shares them.

    A node with fewer cores than ``ranks_per_node`` gets a rank for each.
    """
    nodes: list[NodeInfo] = []
    node_of_rank: list[int] = []
    executors: list[tuple[int, ...]] = []
    table: dict[tuple[int, int], int] = {}
    width = len(str(max(sum(one.count for one in types) - 1, 1)))
    for kind in types:
        for _ in range(kind.count):
            index = len(nodes)
            n = min(ranks_per_node, kind.cores)
            ranks = range(len(node_of_rank), len(node_of_rank) + n)
            owner: list[int] = []
            for place, rank in enumerate(ranks):
                cores = range(place * kind.cores // n, (place + 1) * kind.cores // n)
                owner += [rank] * len(cores)
                node_of_rank.append(index)
                executors.append(_executors(table, index, rank, cores))
            nodes.append(NodeInfo(index=index, name=f"{kind.name or 'node'}{index:0{width}}", ranks=tuple(ranks),
                                  resources=_resources(kind, index), owner=tuple(owner)))
    return Machine(tuple(nodes), tuple(node_of_rank), tuple(executors), table)


def _resources(kind: NodeType, index: int) -> NodeResources:
    return NodeResources(
        node=index, cores=tuple(range(kind.cores)), numa=tuple(c * kind.numa // kind.cores for c in range(kind.cores)),
        gpus=tuple(range(kind.gpus)), gpu_numa=tuple(g * kind.numa // kind.gpus for g in range(kind.gpus)),
        memory=kind.memory)


def _executors(table: dict[tuple[int, int], int], node: int, rank: int, cores: range) -> tuple[int, ...]:
    n = min(len(cores), max(LEAST_SUPERVISORS, -(-len(cores) // CORES_A_SUPERVISOR)), address.EXECUTORS_A_RANK)
    numbers = tuple(address.executor(rank, position) for position in range(n))
    for i, number in enumerate(numbers):
        for core in cores[i * len(cores) // n:(i + 1) * len(cores) // n]:
            table[node, core] = number
    return numbers
