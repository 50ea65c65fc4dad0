"""A binding that leaves CPUs idle: the flag that mends it is named. When nothing is lost, nothing is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpiflux.node.topology import discover
from mpiflux.node.topology.launchers import local_ranks
from tests.support.topology_trees import two_sockets

SRUN = {"SLURM_PROCID": "0", "SLURM_JOB_ID": "7", "SLURM_JOB_CPUS_PER_NODE": "16"}
MPIRUN = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}


def notes(root: Path, environ: dict[str, str], affinity: str, cgroup: str = "0-15") -> tuple[str, ...]:
    """On a machine of 8 cores with 2 threads each; core 0 has CPUs 0 and 8."""
    machine = two_sockets(root).process(affinity=affinity)
    machine.write("sys/fs/cgroup/cpuset.cpus.effective", cgroup)
    return discover(root=str(root), source="sysfs", environ=environ).notes


@pytest.mark.parametrize(("environ", "affinity", "flag"), [
    (SRUN, "3", "srun --cpu-bind=none (or srun -c 16)"),
    (SRUN, "3,11", "srun --cpu-bind=none"),
    ({**SRUN, "SLURM_TASKS_PER_NODE": "2(x4)"}, "3", "srun -c 8"),
    ({"JSM_NAMESPACE_RANK": "0", "JSM_NAMESPACE_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, "0",
     "jsrun -c ALL_CPUS -b rs (or -b none)"),
    (MPIRUN, "0,8", "--bind-to none"),
    (MPIRUN, "0,2,4,6,8,10,12,14", "--bind-to none"),
    ({"MPI_LOCALNRANKS": "4", "PMI_RANK": "0"}, "0", "-bind-to none"),
    ({"PALS_RANKID": "3", "PALS_LOCAL_SIZE": "2", "PMI_RANK": "3"}, "0", "--cpu-bind none"),
    ({**MPIRUN, **SRUN}, "0", "mpirun --bind-to none"),
    ({}, "0", "taskset"),
])
def test_idle_cpus_are_named(tmp_path: Path, environ: dict[str, str], affinity: str, flag: str) -> None:
    (note,) = notes(tmp_path, environ, affinity)
    assert flag in note
    assert "of 16 CPUs" in note


def test_a_step_that_was_given_one_cpu_of_its_job(tmp_path: Path) -> None:
    (note,) = notes(tmp_path, SRUN, "3", cgroup="3")
    assert "start with srun -c 16" in note
    assert "1 of 16" in note


@pytest.mark.parametrize(("environ", "affinity", "cgroup"), [
    (SRUN, "0-15", "0-15"),
    ({**SRUN, "SLURM_TASKS_PER_NODE": "16"}, "3", "0-15"),
    ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "8(x2)"}, "0,8", "0-15"),
    ({**SRUN, "SLURM_CPUS_PER_TASK": "4"}, "0,8,1,9", "0-15"),
    # one thread of each core is all the cores
    (SRUN, "0-7", "0-15"),
    # a share of a node without constraining cgroups
    ({**SRUN, "SLURM_JOB_CPUS_PER_NODE": "4(x2)"}, "0,8,1,9", "0-15"),
    ({**MPIRUN, "OMPI_COMM_WORLD_LOCAL_SIZE": "8"}, "0,8", "0-15"),
    ({"MPI_LOCALNRANKS": "1"}, "3", "3"),
    ({}, "0,8,1,9", "0-15"),
])
def test_nothing_lost_nothing_said(tmp_path: Path, environ: dict[str, str], affinity: str, cgroup: str) -> None:
    assert notes(tmp_path, environ, affinity, cgroup) == ()


@pytest.mark.parametrize(("environ", "count"), [
    ({}, 1), ({"SLURM_TASKS_PER_NODE": "4"}, 1), ({"SLURM_PROCID": "0", "SLURM_NTASKS_PER_NODE": "4"}, 4),
    ({"SLURM_PROCID": "5", "SLURM_TASKS_PER_NODE": "4,2(x2)", "SLURM_NODEID": "1", "SLURM_STEP_NUM_NODES": "3"}, 2),
    ({"SLURM_PROCID": "5", "SLURM_TASKS_PER_NODE": "4,2", "SLURM_NODEID": "0", "SLURM_STEP_NUM_NODES": "1"}, 1),
    ({"SLURM_PROCID": "0", "SLURM_TASKS_PER_NODE": "nonsense"}, 1),
    ({"MPI_LOCALNRANKS": "3", "SLURM_PROCID": "0", "SLURM_TASKS_PER_NODE": "8"}, 3)])
def test_local_ranks(environ: dict[str, str], count: int) -> None:
    assert local_ranks(environ) == count
