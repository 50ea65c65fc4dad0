"""Which environment variables of a launcher must not reach the processes that mpiflux starts, and which may.

A child that inherits half of a launcher's bootstrap takes itself for one of the launcher's ranks: it hangs in
MPI_Init, or kills the program around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

LAUNCHER_PREFIXES = (
    "PMI_", "PMI2_", "PMIX_", "OMPI_", "PRTE_", "SLURM", "SBATCH_", "SRUN_", "HYDRA", "HYDI_", "MPI_LOCAL",
    "MPIR_", "MPICH_", "PALS_",  # measured with MPICH, Open MPI 4 and 5, under srun and mpiexec
    "JSM_", "ALPS_", "MV2_COMM_WORLD_", "MPISPAWN_", "I_MPI_HYDRA_", "I_MPI_INFO_", "FLUX_TASK_", "FLUX_PMI_",
    "MPIFLUX_LAUNCH_",
)
"""A variable that starts with one of these comes from a launcher, unless :data:`TUNING_PREFIXES` knows better."""

LAUNCHER_NAMES = frozenset({
    "GFORTRAN_UNBUFFERED_PRECONNECTED", "OPAL_USER_PARAMS_GIVEN", "I_MPI_MPIRUN", "I_MPI_PIN_INFO",
    "I_MPI_PIN_MAPPING", "I_MPI_BIND_WIN_ALLOCATE", "I_MPI_INTERNAL_MEM_POLICY", "I_MPI_RETURN_WIN_MEM_NUMA",
    "FLUX_JOB_SIZE", "FLUX_JOB_NNODES",
})
"""Set by hydra, Intel MPI's hydra, mpirun and Flux without a prefix of their own."""

TUNING_PREFIXES = ("OMPI_MCA_", "MPIR_CVAR_", "MPICH_", "OMPI_ALLOW_RUN_AS_ROOT")
"""What a user sets to tune an MPI library: kept, except where a launcher uses the same prefix."""

TUNING_NAMES = frozenset({
    "OMPI_CC", "OMPI_CXX", "OMPI_FC", "OMPI_CFLAGS", "OMPI_CXXFLAGS", "OMPI_FCFLAGS", "OMPI_CPPFLAGS",
    "OMPI_LDFLAGS", "OMPI_LIBS", "SLURM_CONF",
})
"""Compiler wrappers' variables, and where Slurm's commands find their configuration."""

NOT_TUNING_PREFIXES = (
    "OMPI_MCA_orte_", "OMPI_MCA_prte_", "OMPI_MCA_ess", "OMPI_MCA_plm", "OMPI_MCA_ras", "OMPI_MCA_rmaps",
    "OMPI_MCA_pmix", "OMPI_MCA_grpcomm", "OMPI_MCA_state", "OMPI_MCA_odls", "OMPI_MCA_oob",
    "OMPI_MCA_routed", "OMPI_MCA_schizo", "OMPI_MCA_num_procs", "OMPI_MCA_cpu_type", "OMPI_MCA_initial_wdir",
    "OMPI_MCA_PREFIXES", "OMPI_MCA_shmem_RUNTIME_QUERY_hint", "OMPI_MCA_mpi_oversubscribe",
    "OMPI_MCA_hwloc_base_binding", "MPIR_CVAR_CH3_INTERFACE_HOSTNAME", "MPICH_INTERFACE_HOSTNAME",
)
"""What mpirun and hydra themselves write under the prefixes of :data:`TUNING_PREFIXES`."""

ALLOCATION_NAMES = (
    "SLURM_JOB_ID", "SLURM_JOB_END_TIME", "SLURM_JOB_NAME", "SLURM_JOB_NODELIST", "SLURM_JOB_GPUS",
    "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE", "SLURMD_NODENAME", "SLURM_CPUS_ON_NODE",
)
"""What describes a Slurm allocation rather than a step. mpiflux's own ranks keep these; users' jobs do not, as
Open MPI's mpirun takes them as leave to use the whole allocation."""


def is_launcher_variable(name: str) -> bool:
    """Does the variable belong to the launcher of some other process than the one about to be started?"""
    if name in TUNING_NAMES:
        return False
    if name.startswith(TUNING_PREFIXES):
        return name.startswith(NOT_TUNING_PREFIXES)
    return name in LAUNCHER_NAMES or name.startswith(LAUNCHER_PREFIXES)


def clean_environment(environ: Mapping[str, str], keep: Iterable[str] = ()) -> dict[str, str]:
    """``environ`` without the bootstrap of whatever launcher started this process.

    The user's tuning of MPI libraries stays, and so do the variables named in ``keep``.
    """
    kept = frozenset(keep)
    return {name: value for name, value in environ.items() if name in kept or not is_launcher_variable(name)}
