"""What a rank finds on its machine: usable cores and their NUMA nodes, GPUs, memory.

Call :func:`discover` once in a process, before MPI is initialised, and keep what it returns.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from mpiflux.node.topology.cgroup import allowed_cpus, cpu_quota, memory_limit
from mpiflux.node.topology.files import parse_list, read
from mpiflux.node.topology.gpus import GPU_VARIABLES, declare, discover_gpus, gpu_environment
from mpiflux.node.topology.launchers import binding_note
from mpiflux.node.topology.partition import partition_cores
from mpiflux.node.topology.types import (
    Core,
    Gpu,
    Raw,
    SourceFailed,
    SourceUnavailable,
    Topology,
)

__all__ = ["GPU_VARIABLES", "SOURCES", "Core", "Gpu", "SourceFailed", "SourceUnavailable", "Topology", "discover",
           "discover_cpus", "gpu_environment", "load", "partition_cores"]

SOURCES = ("pyhwloc", "libhwloc", "sysfs")
"""In the order in which they are tried."""


def discover(*, source: str = "auto", cores_per_node: int | None = None, gpus_per_node: int | None = None,
             environ: Mapping[str, str] = os.environ, root: str = "/") -> Topology:
    """What this process may use of its machine.

    Usable CPUs are those in both the cgroup's cpuset and the CPU affinity. Cores are numbered in hwloc's logical
    order: package by package, and within it so that neighbours share NUMA node and caches.

    ``source`` is one of :data:`SOURCES`, or ``auto`` for the first that works. ``cores_per_node`` and
    ``gpus_per_node`` declare how many there are: fewer than found takes the first ones, more adds ones that are
    only pretended and never bound. ``root`` is the directory that holds ``proc``, ``sys`` and ``dev``: a recorded
    machine's when not ``/``; its affinity is then read from ``proc/self/status``.

    Raises ValueError for a negative number or a source that does not exist, SourceUnavailable or SourceFailed when
    the one asked for cannot be used. May fork a child for a moment (see :mod:`mpiflux.node.topology.hwloc`).
    """
    for name, value, least in (("cores-per-node", cores_per_node, 1), ("gpus-per-node", gpus_per_node, 0)):
        if value is not None and value < least:
            raise ValueError(f"--{name} {value}: must be {least} or more")
    raw, used, notes = load(source, root)
    cores, found_notes = discover_cpus(raw, environ, root)
    notes += found_notes
    gpus, found_notes = discover_gpus(raw.devices, environ, root)
    notes += found_notes
    nodes = sorted({core.numa for core in cores})
    if cores_per_node is not None:
        cores, note = _declare_cores(cores, cores_per_node, nodes)
        notes += filter(None, [note])
    if gpus_per_node is not None:
        gpus, note = declare(gpus, gpus_per_node, nodes)
        notes += filter(None, [note])
    return Topology(_hostname(environ, root), cores, gpus, _memory(root), used,
                    sum(len(core.pus) for core in raw.cores), tuple(notes))


def load(source: str, root: str) -> tuple[Raw, str, list[str]]:
    """(the whole machine, the source that told, notes) for ``source`` as in :func:`discover`."""
    from mpiflux.node.topology import hwloc, sysfs

    if source not in (*SOURCES, "auto"):
        raise ValueError(f"topology source {source!r}: must be auto, {', '.join(SOURCES)}")
    notes: list[str] = []
    for name in SOURCES if source == "auto" else (source,):
        try:
            return (sysfs.load(root) if name == "sysfs" else hwloc.load(name, root)), name, notes
        except SourceUnavailable:
            if source != "auto":
                raise
        except SourceFailed as error:
            if source != "auto":
                raise
            notes.append(f"{error}; the machine is read in another way")
    raise AssertionError("/sys is always there")


def discover_cpus(raw: Raw, environ: Mapping[str, str], root: str) -> tuple[tuple[Core, ...], list[str]]:
    """(usable cores, notes) of a machine for this process."""
    group = allowed_cpus(root)
    affinity = _affinity(root)
    everything = frozenset(pu for core in raw.cores for pu in core.pus)
    open_pus = everything if group is None else everything & group
    usable = open_pus if affinity is None else open_pus & affinity
    notes: list[str] = []
    if not usable:
        # an affinity that the kernel granted is usable, whatever else disagrees with it
        usable = affinity or everything
        notes.append("cgroup, CPU affinity and online CPUs have none in common: CPU affinity is believed")
    mine = [(pus, core.numa) for core in raw.cores if (pus := tuple(pu for pu in core.pus if pu in usable))]
    strangers = sorted(usable - everything)
    mine += [((pu,), raw.cores[0].numa) for pu in strangers]
    cores = tuple(Core(i, pus, numa) for i, (pus, numa) in enumerate(mine))
    open_cores = sum(1 for core in raw.cores if not open_pus.isdisjoint(core.pus))
    notes.append(binding_note(environ, pus=len(usable), cores=len(cores), open_pus=len(open_pus),
                              open_cores=open_cores))
    quota = cpu_quota(root)
    if quota is not None and quota < len(usable):
        notes.append(f"a cgroup quota grants {quota:g} CPUs' worth of time on {len(usable)} CPUs: jobs on all cores "
                     f"at once will be slowed down; --cores-per-node {max(1, int(quota))} uses no more than that")
    return cores, [note for note in notes if note]


def _affinity(root: str) -> frozenset[int] | None:
    if root == "/":
        return frozenset(os.sched_getaffinity(0))
    for line in read(root, "proc/self/status").splitlines():
        name, _, value = line.partition(":")
        if name == "Cpus_allowed_list":
            return parse_list(value)
    return None


def _declare_cores(cores: tuple[Core, ...], count: int, nodes: list[int]) -> tuple[tuple[Core, ...], str]:
    if count <= len(cores):
        return cores[:count], ""
    extra = count - len(cores)
    more = tuple(Core(len(cores) + i, (), nodes[i * len(nodes) // extra]) for i in range(extra))
    return cores + more, (f"{count} cores are declared, {len(cores)} are usable: jobs on the other {extra} are bound "
                          "to nothing and share the real ones")


def _hostname(environ: Mapping[str, str], root: str) -> str:
    recorded = read(root, "proc/sys/kernel/hostname") if root != "/" else ""
    return environ.get("SLURMD_NODENAME") or recorded or os.uname().nodename


def _memory(root: str) -> int:
    total = 0
    for line in read(root, "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemTotal":
            total = int(value.split()[0]) << 10
            break
    limit = memory_limit(root)
    return total if limit is None else min(total or limit, limit)
