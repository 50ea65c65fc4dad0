"""Launchers' variables do not reach children; users' do."""

from __future__ import annotations

import pytest

from mpiflux.model.environment import ALLOCATION_NAMES, clean_environment
from mpiflux.node.pmi import rank_variables
from tests.unit import recorded_environments as recorded

USERS = {
    "PATH": "/bin", "HOME": "/home/me", "LD_LIBRARY_PATH": "/opt/lib", "OMP_NUM_THREADS": "4",
    "OMPI_MCA_btl": "self,tcp", "OMPI_MCA_mpi_yield_when_idle": "1", "OMPI_CC": "clang",
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "MPIR_CVAR_NOLOCAL": "1", "MPIR_CVAR_CH4_NETMOD": "ofi", "MPICH_GPU_SUPPORT_ENABLED": "1",
    "I_MPI_FABRICS": "shm", "UCX_TLS": "tcp,self", "FLUX_URI": "local:///run/flux", "SLURM_CONF": "/etc/s.conf",
    "PMIOUS": "not a launcher's", "MPIFLUX_URI": "unix:///x",
}
HARMLESS = {"CUDA_VISIBLE_DEVICES", "FLUX_JOB_ID", "FLUX_URI"}
"""Added by launchers, and for the user's programs to see."""


@pytest.mark.parametrize("name", recorded.ALL)
def test_nothing_of_a_launcher_is_left_and_everything_of_the_user(name):
    launcher = recorded.ALL[name]
    cleaned = clean_environment({**USERS, **launcher})
    assert {**USERS, **{n: v for n, v in launcher.items() if n in HARMLESS}} == cleaned


def test_our_own_launchers_variables_do_not_reach_jobs():
    assert clean_environment(rank_variables(3, 0, 1, 0, 1)) == {}


@pytest.mark.parametrize("name", [
    "OMPI_MCA_orte_ess_jobid", "OMPI_MCA_ess", "OMPI_MCA_plm", "OMPI_MCA_pmix", "OMPI_MCA_orte_precondition",
    "MPIR_CVAR_CH3_INTERFACE_HOSTNAME", "MPICH_INTERFACE_HOSTNAME_R0", "PMI2_FD", "PRTE_MCA_ess_base_jobid",
    "SBATCH_ACCOUNT", "SRUN_DEBUG", "MPI_LOCALNRANKS", "HYDRA_PROXY_ID",
])
def test_dropped(name):
    assert clean_environment({name: "1"}) == {}


def test_what_describes_the_allocation_can_be_kept():
    kept = clean_environment(recorded.SLURM_PMI2, keep=ALLOCATION_NAMES)
    assert kept["SLURM_JOB_ID"] == "1" and kept["SLURMD_NODENAME"] == "n1" and kept["SLURM_STEP_GPUS"] == "0,1"
    assert not {"PMI_FD", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"} & set(kept)
