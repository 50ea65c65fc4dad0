"""The machine read from /sys alone, in the order in which hwloc would number it.

hwloc sorts the children of every object by their lowest CPU number. Sorting the cores by the lowest CPU of each
set around them (package, NUMA node, die, cluster, caches), widest set first, gives the same order.
Source: the kernel's Documentation/admin-guide/cputopology.rst and ABI/stable/sysfs-devices-node.
"""

from __future__ import annotations

import os

from mpiflux.node.topology.files import names, numbered, parse_list, read, read_int
from mpiflux.node.topology.types import Raw, RawCore, RawDevice

_CPU = "sys/devices/system/cpu"
_NODE = "sys/devices/system/node"
_PCI = "sys/bus/pci/devices"

# each kind of set, by the files that may name it, newer kernels' first
_SETS = (
    ("topology/package_cpus_list", "topology/core_siblings_list"),
    ("topology/die_cpus_list",),
    ("topology/cluster_cpus_list",),
    ("cache/index3/shared_cpu_list",),
    ("cache/index2/shared_cpu_list",),
)
_CORE = ("topology/core_cpus_list", "topology/thread_siblings_list")


def load(root: str) -> Raw:
    """The machine below ``root``, the directory that holds ``sys``."""
    online = _online(root)
    nodes = [(number, parse_list(read(root, _NODE, f"node{number}", "cpulist")) & online)
             for number in numbered(names(root, _NODE), "node")]
    nodes = [(number, cpus) for number, cpus in nodes if cpus]
    reader = _SetReader(root, online)
    keyed: dict[frozenset[int], tuple[int, ...]] = {}
    for cpu in sorted(online):
        core = reader.find(_CORE, cpu) or frozenset((cpu,))
        if core in keyed:
            continue
        around = {found for found in (reader.find(kind, cpu) for kind in _SETS) if found}
        around.update(cpus for _, cpus in nodes if cpu in cpus)
        wider = sorted((s for s in around if s > core), key=len, reverse=True)
        keyed[core] = (*map(min, wider), min(core))
    cores = tuple(RawCore(tuple(sorted(core)), min((n for n, cpus in nodes if core & cpus), default=0))
                  for core in sorted(keyed, key=keyed.__getitem__))
    return Raw(cores, _devices(root, [number for number, _ in nodes]))


def _online(root: str) -> frozenset[int]:
    listed = parse_list(read(root, _CPU, "online"))
    if listed:
        return listed
    return frozenset(numbered(names(root, _CPU), "cpu")) or frozenset((0,))


class _SetReader:
    """Reads each set from its first CPU only: a machine of 256 CPUs has thousands of these files."""

    def __init__(self, root: str, online: frozenset[int]) -> None:
        self._root, self._online = root, online
        self._known: dict[tuple[tuple[str, ...], int], frozenset[int]] = {}

    def find(self, kind: tuple[str, ...], cpu: int) -> frozenset[int]:
        """The set of that kind around a CPU, empty when the kernel tells of none."""
        key = (kind, cpu)
        if key not in self._known:
            texts = (read(self._root, _CPU, f"cpu{cpu}", name) for name in kind)
            found = parse_list(next(filter(None, texts), "")) & self._online
            for member in found | {cpu}:
                self._known[kind, member] = found
        return self._known[key]


def _devices(root: str, nodes: list[int]) -> tuple[RawDevice, ...]:
    found = []
    for busid in names(root, _PCI):
        folder = os.path.join(root, _PCI, busid)
        kind = read_int(folder, "class", default=0) >> 16
        if kind not in (0x03, 0x12):
            continue
        numa = read_int(folder, "numa_node", default=-1)
        if numa < 0 and len(nodes) == 1:
            numa = nodes[0]
        found.append(RawDevice(busid.lower(), read_int(folder, "vendor", default=0), numa,
                               tuple(name for name in names(folder, "drm") if "-" not in name)))
    return tuple(found)
