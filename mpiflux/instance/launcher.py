"""Who started this process, told from its environment alone, and whether MPI agrees.

Launchers nest (mpiexec inside an srun step inside a batch job), and the inner one inherits the outer one's
variables; so the order of the questions in :func:`detect` is part of the answer: what a launcher gives only to its
own ranks is asked for first, and what a process may have inherited last.

Sources: recorded environments of hydra 5.0, Intel MPI 2021.18, Open MPI 5.0 and Slurm 22.05; IBM's jsrun
documentation (JSM_*) and the user guides of Summit and Lassen; HPE's PALS documentation; flux-environment(7).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

KINDS = ("hydra", "slurm", "openmpi", "prrte", "jsm", "pals", "flux", "mpiflux", "none")


READY = "MPIFLUX_LAUNCH_READY"
"""Below our own launcher: the descriptor through which rank 0 says that all ranks are up."""


class Launcher(NamedTuple):
    """What the environment says. None is "it does not say"."""

    kind: str
    """One of :data:`KINDS`."""
    rank: int | None = None
    size: int | None = None
    """Ranks that the launcher started. MPI's world has to be as large: see :func:`mismatch`."""
    local_rank: int | None = None
    local_size: int | None = None
    node_name: str | None = None
    """Tells nodes apart where host names do not. None: use the host name."""
    has_pmi: bool = False
    """The launcher offers some process-management interface, so MPI can find the other ranks."""
    job_end_time: float | None = None
    """When the batch job's time is up, Unix seconds."""
    pmix: bool = False
    """That interface is PMIx, or is PMIx too."""


def detect(environ: Mapping[str, str]) -> Launcher:
    """The innermost launcher that this process is a rank of; kind ``none`` in a batch script or a plain shell."""
    found = ((kind, finder(environ)) for kind, finder in _FINDERS)
    kind, ids = next(((kind, ids) for kind, ids in found if ids is not None), ("none", _Ids()))
    return Launcher(kind, *ids, node_name=_node_name(environ, kind), has_pmi=kind != "none" and _has_pmi(environ),
                    job_end_time=_end_time(environ), pmix="PMIX_NAMESPACE" in environ)


class _Ids(NamedTuple):
    rank: int | None = None
    size: int | None = None
    local_rank: int | None = None
    local_size: int | None = None


def _number(environ: Mapping[str, str], *names: str) -> int | None:
    """The first of these variables that holds a number ≥ 0."""
    for name in names:
        text = environ.get(name, "")
        if text.isascii() and text.isdigit() and len(text) < 20:
            return int(text)
    return None


def _hydra(environ: Mapping[str, str]) -> _Ids | None:
    rank = _number(environ, "PMI_RANK", "PMI_ID")
    if rank is None or ("MPI_LOCALRANKID" not in environ and "HYDI_CONTROL_FD" not in environ):
        return None
    return _Ids(rank, _number(environ, "PMI_SIZE"), _number(environ, "MPI_LOCALRANKID"),
                _number(environ, "MPI_LOCALNRANKS"))


def _jsm(environ: Mapping[str, str]) -> _Ids | None:
    rank = _number(environ, "JSM_NAMESPACE_RANK")
    if rank is None:
        return None
    return _Ids(rank, _number(environ, "JSM_NAMESPACE_SIZE", "OMPI_COMM_WORLD_SIZE"),
                _number(environ, "JSM_NAMESPACE_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
                _number(environ, "JSM_NAMESPACE_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"))


def _openmpi(environ: Mapping[str, str]) -> _Ids | None:
    rank = _number(environ, "OMPI_COMM_WORLD_RANK")
    if rank is None:
        return None
    return _Ids(rank, _number(environ, "OMPI_COMM_WORLD_SIZE"), _number(environ, "OMPI_COMM_WORLD_LOCAL_RANK"),
                _number(environ, "OMPI_COMM_WORLD_LOCAL_SIZE"))


def _prrte(environ: Mapping[str, str]) -> _Ids | None:
    """prun and prterun for a program that is not Open MPI's; the size is known to a PMIx client only."""
    rank = _number(environ, "PMIX_RANK")
    if rank is None or not ("PRTE_LAUNCHED" in environ or environ.get("PMIX_NAMESPACE", "").startswith("pr")):
        return None
    return _Ids(rank)


def _mpiflux(environ: Mapping[str, str]) -> _Ids | None:
    """Our own launcher, or an mpiflux job with PMI. Neither passes another launcher's variables on, so that
    where those are found, that launcher is the inner one."""
    rank = _number(environ, "MPIFLUX_LAUNCH_RANK")
    if rank is None:
        return None
    return _Ids(rank, _number(environ, "MPIFLUX_LAUNCH_SIZE"), _number(environ, "MPIFLUX_LAUNCH_LOCAL_RANK"),
                _number(environ, "MPIFLUX_LAUNCH_LOCAL_SIZE"))


def _pals(environ: Mapping[str, str]) -> _Ids | None:
    rank = _number(environ, "PALS_RANKID")
    if rank is None:
        return None
    return _Ids(rank, _number(environ, "PMI_SIZE", "PALS_SIZE"),
                _number(environ, "PALS_LOCAL_RANKID", "PMI_LOCAL_RANK"),
                _number(environ, "PALS_LOCAL_SIZE", "PMI_LOCAL_SIZE"))


def _flux(environ: Mapping[str, str]) -> _Ids | None:
    rank = _number(environ, "FLUX_TASK_RANK")
    if rank is None:
        return None
    return _Ids(rank, _number(environ, "FLUX_JOB_SIZE"), _number(environ, "FLUX_TASK_LOCAL_ID"))


SPECIAL_STEP = 0xFFFF_FFF0
"""Slurm numbers its batch, extern and interactive steps from here on (slurm.h)."""


def _slurm_step(environ: Mapping[str, str]) -> bool:
    """Is this a task of an ``srun``? The batch script has SLURM_PROCID=0 too, but no step number."""
    step = _number(environ, "SLURM_STEP_ID", "SLURM_STEPID")
    return step is not None and step < SPECIAL_STEP and "SLURM_PROCID" in environ


def _slurm(environ: Mapping[str, str]) -> _Ids | None:
    rank = _number(environ, "SLURM_PROCID")
    if rank is None or not _slurm_step(environ):
        return None
    tasks = expand_counts(environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = _number(environ, "SLURM_NODEID")
    local = tasks[node] if node is not None and node < len(tasks) else None
    return _Ids(rank, _number(environ, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), _number(environ, "SLURM_LOCALID"),
                local)


_FINDERS = (("hydra", _hydra), ("jsm", _jsm), ("openmpi", _openmpi), ("prrte", _prrte), ("pals", _pals),
            ("flux", _flux), ("slurm", _slurm), ("mpiflux", _mpiflux))
"""In the order they are asked. mpiexec and mpirun use srun to reach other nodes of a Slurm job, so their ranks are
in a Slurm step as well; jsrun gives Open MPI's variables as well."""


def expand_counts(text: str) -> list[int]:
    """Slurm's ``2(x3),1`` as ``[2, 2, 2, 1]``; empty when it is not of that form, or absurdly long."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:\(x([0-9]{1,6})\))?", part)
        if match is None:
            return []
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def is_a_task(environ: Mapping[str, str], kind: str) -> bool:
    """Whether this process is what an outer instance started as a task of a job, not something that another launcher,
    of this kind, started inside one. The mpirun of a job with ``mpi: pmix`` is the job's own."""
    own = kind in ("none", "mpiflux") or environ.get("MPIFLUX_PMIX", "") == environ.get("PMIX_NAMESPACE")
    return own and "MPIFLUX_JOB_ID" in environ


def _node_name(environ: Mapping[str, str], kind: str) -> str | None:
    """The name of this node that our own launcher, or Slurm, gave it: not the host name where nodes are emulated.

    hydra hands its own environment on to ranks everywhere, so outside of a step the name may be another node's.
    """
    if kind == "hydra" and not _slurm_step(environ):
        return None
    if is_a_task(environ, kind) and environ.get("MPIFLUX_NODE"):
        return environ["MPIFLUX_NODE"]
    return environ.get("SLURMD_NODENAME") or None


def _has_pmi(environ: Mapping[str, str]) -> bool:
    if any(name in environ for name in ("PMI_FD", "PMI_PORT", "PMI2_FD", "PMIX_NAMESPACE", "PMI_CONTROL_PORT",
                                        "PALS_APID")):
        return True
    return environ.get("SLURM_MPI_TYPE", "").startswith("cray")


def _end_time(environ: Mapping[str, str]) -> float | None:
    end = _number(environ, "MPIFLUX_END_TIME", "SLURM_JOB_END_TIME")
    return float(end) if end else None


def left_out(environ: Mapping[str, str], kind: str) -> str:
    """What to say to a process that no launcher has started, in a batch job that has several nodes: it uses one. Empty
    where that is not so, or cannot be told.

    LSF's ``LSB_MCPU_HOSTS`` is ``host n host n …``, of which the first is the launch node where there is one (IBM
    Spectrum LSF's list of variables; the user guides of Summit and Lassen).
    """
    if kind != "none" or "MPIFLUX_JOB_ID" in environ:
        return ""
    hosts = len(environ.get("LSB_MCPU_HOSTS", "").split()) // 2
    nodes = _number(environ, "SLURM_JOB_NUM_NODES", "SLURM_NNODES") or 0
    if "SLURM_JOB_ID" in environ and nodes > 1:
        return (f"this is one process in Slurm's job {environ['SLURM_JOB_ID']}, which has {nodes} nodes: put "
                f"`srun -N{nodes} --ntasks-per-node=1` before the command to use them all")
    if "LSB_JOBID" in environ and hosts > 1:
        return (f"this is one process in LSF's job {environ['LSB_JOBID']}, which has {hosts} hosts, and maybe on its "
                "launch node: put `jsrun -r 1 -a 1 -c CORES -g GPUS -b rs` before the command to use the others")
    return ""


# -- does MPI agree? ---------------------------------------------------------------------------------------------


def library_family(mpi_library: str) -> str:
    """``intel``, ``cray``, ``mpich``, ``openmpi`` or ``other``, from ``MPI.Get_library_version()``."""
    text = mpi_library.lower()
    for family, mark in (("intel", "intel"), ("cray", "cray"), ("openmpi", "open mpi"),
                         ("openmpi", "spectrum"), ("mpich", "mpich"), ("mpich", "mvapich")):
        if mark in text:
            return family
    return "other"


def library_name(mpi_library: str) -> str:
    """``MPICH 5.0.2``, ``Open MPI v5.0.11``: the name and version from ``MPI.Get_library_version()``."""
    text = " ".join(mpi_library.split())
    match = re.match(r"(?:MPI VERSION ?: )?(.*?)(?: version)?[: ]+(v?[0-9][^\s,:]*)", text, re.IGNORECASE)
    return f"{match[1]} {match[2]}" if match else " ".join(text.split()[:4]).strip(" ,:") or "the MPI library"


def mismatch(launcher: Launcher, world_size: int, mpi_library: str) -> str | None:
    """One line for the person when MPI's world is not what the launcher started, with what mends it; else None.

    ``mpi_library`` is ``MPI.Get_library_version()``. Typically each of N ranks sees a world of 1: library and
    launcher speak different process-management interfaces, and MPI carries on without a word.
    """
    if launcher.size is None or launcher.size == world_size:
        return None
    name = _NAMES.get(launcher.kind, launcher.kind)
    mend = _mend(launcher, library_family(mpi_library))
    return (f"{name} started {launcher.size} ranks but each sees an MPI world of {world_size}: "
            f"{library_name(mpi_library)} does not "
            f"speak this launcher's process-management interface; {mend}")


def unsuited(launcher: Launcher, mpi_library: str, in_a_job: bool = False) -> str | None:
    """One line when this library cannot even be initialised under this launcher, with what mends it; else None.

    ``in_a_job``: inside a job of another instance, which is then the launcher.
    """
    if launcher.kind == "mpiflux" and library_family(mpi_library) == "openmpi":
        if in_a_job:
            return ("mpi: pmi1 starts MPI libraries that speak PMI-1 (MPICH, Intel MPI), and Open MPI does not: say "
                    "mpi: pmix; or give the job one task with all the cores, and no mpi:, for an instance of one rank")
        return ("--ranks starts MPI libraries that speak PMI-1 (MPICH, Intel MPI), and Open MPI does not; "
                f"use its own launcher: mpiexec -n {launcher.size} python -m mpiflux run WORKFLOW")
    if launcher.pmix and launcher.kind not in ("hydra", "pals", "mpiflux") and "MPICH Version" in mpi_library \
            and "pmix" not in mpi_library.lower():
        # it says in a line of its own whether it was built for PMIx; if not, MPI_Init aborts
        name = _NAMES.get(launcher.kind, launcher.kind)
        return (f"{name} starts its ranks by PMIx, which this {library_name(mpi_library)} was not built for; "
                f"{_mend(launcher, 'mpich')}")
    return None


_NAMES = {"hydra": "MPICH's mpiexec", "slurm": "Slurm", "openmpi": "Open MPI's mpiexec", "prrte": "PRRTE",
          "jsm": "jsrun", "pals": "PALS mpiexec", "flux": "Flux", "mpiflux": "mpiflux --ranks"}


def _mend(launcher: Launcher, family: str) -> str:
    if launcher.kind == "slurm":
        flag = {"openmpi": "--mpi=pmix", "cray": "--mpi=cray_shasta"}.get(family, "--mpi=pmi2")
        also = " (or, with Open MPI 5, its own mpiexec inside salloc or sbatch)" if family == "openmpi" else ""
        return f"use srun {flag} with this library{also}; srun --mpi=list shows what the site has"
    if launcher.kind in ("openmpi", "prrte") and family != "openmpi":
        return "use the mpiexec that belongs to this library, or an mpi4py built for Open MPI (mpiflux[openmpi])"
    if launcher.kind == "hydra" and family == "openmpi":
        return "use the mpiexec that belongs to Open MPI, or an mpi4py built for MPICH (mpiflux[mpich])"
    if launcher.kind == "mpiflux":
        return ("mpiflux serves PMI-1, which MPICH and Intel MPI speak: install mpiflux[mpich], or start with "
                f"mpiexec -n {launcher.size} mpiflux … of this library")
    if launcher.kind == "flux" and family == "openmpi":
        return "use flux run -o pmi=pmix (the flux-pmix plug-in), or an mpi4py built for MPICH (mpiflux[mpich])"
    if launcher.kind == "jsm":
        return "use the site's Spectrum MPI: load its module and build mpi4py against it"
    return "use the mpiexec that belongs to this library, and an mpi4py built against it"
