"""Who started this rank, how many share its machine, and what to say when it was bound too narrowly."""

from __future__ import annotations

from collections.abc import Mapping

# (a variable that only this launcher sets, its name, what leaves its ranks unbound); inner launchers first: mpiexec
# inside a Slurm allocation sees Slurm's variables too
_LAUNCHERS = (
    ("PALS_RANKID", "PALS mpiexec", "mpiexec --cpu-bind none"),
    ("JSM_NAMESPACE_RANK", "jsrun", "jsrun -c ALL_CPUS -b rs (or -b none)"),
    ("OMPI_COMM_WORLD_RANK", "Open MPI's mpirun", "mpirun --bind-to none"),
    ("MPI_LOCALNRANKS", "hydra's mpiexec", "mpiexec -bind-to none"),
    ("SLURM_PROCID", "srun", "srun --cpu-bind=none"),
)

_LOCAL_SIZE = ("PALS_LOCAL_SIZE", "JSM_NAMESPACE_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")


def launcher(environ: Mapping[str, str]) -> tuple[str, str]:
    """(name, how to start ranks unbound) of what started this process; two empty strings when nothing known did."""
    for variable, name, mending in _LAUNCHERS:
        if variable in environ:
            return name, mending
    return "", ""


def local_ranks(environ: Mapping[str, str]) -> int:
    """How many ranks of this program the launcher started on this machine, 1 when it does not say."""
    for name in _LOCAL_SIZE:
        if environ.get(name, "").isdecimal():
            return max(1, int(environ[name]))
    if "SLURM_PROCID" in environ:
        for name in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE"):
            count = _on_this_node(environ, name)
            if count:
                return count
    return 1


def binding_note(environ: Mapping[str, str], *, pus: int, cores: int, open_pus: int, open_cores: int) -> str:
    """What to say when ranks were bound to less than they could have; empty when nothing is lost.

    ``pus`` and ``cores`` are this rank's, ``open_pus`` and ``open_cores`` what its cgroup leaves open to it. Under
    srun, a step's cgroup is itself a binding: there the job's CPUs on this node count. Ranks that share a machine
    are taken to be bound apart. A user's own ``srun -c N`` or ``taskset`` to more than one core explains itself.
    """
    name, mending = launcher(environ)
    ranks = local_ranks(environ)
    if name == "srun":
        job = _on_this_node(environ, "SLURM_JOB_CPUS_PER_NODE")
        asked = environ.get("SLURM_CPUS_PER_TASK", "")
        if asked.isdecimal() and 1 < int(asked) <= pus:
            return ""
        if job and pus < job:
            narrow = open_pus < job
            open_pus, open_cores = job, job if narrow else open_cores
            mending = f"srun -c {job // ranks}" if narrow else f"srun --cpu-bind=none (or srun -c {job // ranks})"
        elif job:
            return ""
        else:
            mending = f"srun --cpu-bind=none (or srun -c {open_pus // ranks})"
    if pus * ranks >= open_pus or cores * ranks >= open_cores or (not name and cores > 1):
        return ""
    bound = f"{pus} of {open_pus} CPUs" if ranks == 1 else f"{pus} of {open_pus} CPUs to each of {ranks} ranks"
    if not name:
        return f"this process may use {bound} of this machine: its CPU affinity was narrowed (taskset?)"
    return f"{name} gave {bound} of this machine, the others stay idle: start with {mending}"


def _on_this_node(environ: Mapping[str, str], name: str) -> int:
    """This node's number in Slurm's notation ``16(x2),8``; 0 when it cannot be told."""
    counts: list[int] = []
    for part in environ.get(name, "").split(","):
        count, _, times = part.partition("(x")
        if not count.isdecimal():
            return 0
        counts += [int(count)] * int(times.rstrip(")") or 1)
    if len(set(counts)) == 1:
        return counts[0]
    number = environ.get("SLURM_NODEID", "")
    # a job's list and its step's node number agree only when the step has all of the job's nodes
    whole = environ.get("SLURM_STEP_NUM_NODES") == str(len(counts))
    return counts[int(number)] if whole and number.isdecimal() and int(number) < len(counts) else 0
