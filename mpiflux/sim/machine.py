"""Virtual machines: the nodes, ranks and supervisors that a simulated instance runs on.

``--cluster`` is either short, ``4000x(44c,4g)`` or ``2x(8c)+4x(16c,2g,2n,64GiB)`` (cores, GPUs, NUMA domains, memory
of each node), or a YAML file of racks::

    racks:
      - {count: 18, cores: 44, gpus: 4, numa: 2, memory: 256GiB, name: rack1-, consumables: {burst_buffer: 1.6TB}}
    consumables: {license: 10}
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import yaml

from mpiflux.model.resources import NodeResources
from mpiflux.overlay import address
from mpiflux.overlay.plan import NodeInfo
from mpiflux.spec.scalars import as_size
from mpiflux.spec.supplies import parse_amount

CORES_A_SUPERVISOR = 4
LEAST_SUPERVISORS = 2
"""As in the instance room; a test holds them together."""
MAX_NODES = 1_000_000
_PART = re.compile(r"(?:(\d{1,7})x)?\(([^()]*)\)", re.ASCII)
_KEYS = {"name", "count", "cores", "gpus", "numa", "memory", "consumables"}


class ClusterError(ValueError):
    """The description of a cluster is wrong."""


@dataclass(frozen=True)
class NodeType:
    """``count`` equal nodes. ``memory`` in bytes, ``consumables`` are the named resources of each."""

    count: int
    cores: int
    gpus: int = 0
    numa: int = 1
    memory: int = 0
    name: str = ""
    consumables: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Machine:
    """Nodes as the plan wants them, and which executor starts the processes of each core."""

    nodes: tuple[NodeInfo, ...]
    node_of_rank: tuple[int, ...]
    executors: tuple[tuple[int, ...], ...]
    """By rank: the endpoints of its executors."""
    table: dict[tuple[int, int], int]
    """(node, core) to executor."""
    consumables: dict[str, int] = field(default_factory=dict)
    """Named resources that belong to no node."""

    @property
    def ranks(self) -> int:
        return len(self.node_of_rank)

    @property
    def cores(self) -> int:
        return sum(len(node.resources.cores) for node in self.nodes)

    @property
    def gpus(self) -> int:
        return sum(len(node.resources.gpus) for node in self.nodes)


def supplied(machine: Machine, instance: Mapping[str, int], each_node: Mapping[str, int]) -> Machine:
    """The machine with these named resources besides its own; where both have one, the machine's counts."""
    nodes = machine.nodes
    if each_node:
        nodes = tuple(msgspec.structs.replace(node, resources=msgspec.structs.replace(
            node.resources, consumables={**each_node, **node.resources.consumables})) for node in nodes)
    return replace(machine, nodes=nodes, consumables={**instance, **machine.consumables})


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
    data = _read(path)
    racks = data.get("racks") if isinstance(data, dict) else None
    if not isinstance(racks, list) or not racks or not set(data) <= {"racks", "consumables"}:
        raise ClusterError(f"{path}: expected one key, racks, with a list of mappings that have {_words()}; beside it "
                           "may stand consumables, those of the whole cluster")
    return _checked([_rack(path, i, rack) for i, rack in enumerate(racks)])


def cluster_consumables(text: str) -> dict[str, int]:
    """The named resources of the whole cluster, in what :func:`parse_cluster` takes. Raises ClusterError."""
    data = _read(text) if os.path.isfile(text) else None
    return _amounts(data.get("consumables", {}), text) if isinstance(data, dict) else {}


def _read(path: str) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            return yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ClusterError(f"{path}: cannot be read as YAML: {error}") from None


def _amounts(given: Any, where: str) -> dict[str, int]:
    if not isinstance(given, dict):
        raise ClusterError(f"{where}: consumables is a mapping of names to amounts, not {given!r}")
    found: dict[str, int] = {}
    for name, value in given.items():
        amount = parse_amount(str(value)) if not isinstance(value, bool) else None
        if not isinstance(name, str) or amount is None or amount < 0:
            raise ClusterError(f"{where}: consumables: {name}: {value!r} is no amount; write a whole number, or a size "
                               "such as 1.6TB")
        found[name] = amount
    return found


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
    return NodeType(numbers.pop("count", 1), memory=memory, name=str(rack.get("name", "")),
                    consumables=_amounts(rack.get("consumables", {}), where), **numbers)


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


def build(types: tuple[NodeType, ...], ranks_per_node: int = 1,
          consumables: Mapping[str, int] | None = None) -> Machine:
    """The machine, with cores shared among the ranks of a node as a real instance shares them.

    A node with fewer cores than ``ranks_per_node`` gets a rank for each. ``consumables`` belong to no node.
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
    return Machine(tuple(nodes), tuple(node_of_rank), tuple(executors), table, dict(consumables or {}))


def _resources(kind: NodeType, index: int) -> NodeResources:
    return NodeResources(
        node=index, cores=tuple(range(kind.cores)), numa=tuple(c * kind.numa // kind.cores for c in range(kind.cores)),
        gpus=tuple(range(kind.gpus)), gpu_numa=tuple(g * kind.numa // kind.gpus for g in range(kind.gpus)),
        memory=kind.memory, consumables=dict(kind.consumables))


def _executors(table: dict[tuple[int, int], int], node: int, rank: int, cores: range) -> tuple[int, ...]:
    n = min(len(cores), max(LEAST_SUPERVISORS, -(-len(cores) // CORES_A_SUPERVISOR)), address.EXECUTORS_A_RANK)
    numbers = tuple(address.executor(rank, position) for position in range(n))
    for i, number in enumerate(numbers):
        for core in cores[i * len(cores) // n:(i + 1) * len(cores) // n]:
            table[node, core] = number
    return numbers
