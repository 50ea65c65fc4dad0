"""The sandbox is a real Slurm, and MPI ranks under srun make one world on it."""

from __future__ import annotations

import pytest

from tests.support.slurm import Slurm


def test_srun_reaches_every_node_by_its_own_host_name(slurm: Slurm) -> None:
    done = slurm.run(["srun", "-N4", "hostname"])
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == ["n0", "n1", "n2", "n3"]
    assert slurm.idle()


@pytest.mark.mpi
def test_ranks_on_all_nodes_make_one_world(slurm: Slurm) -> None:
    code = ("import os, sys; from mpi4py import MPI; c = MPI.COMM_WORLD;"
            "sys.stdout.write(f'{c.allreduce(1)} {os.uname().nodename}\\n')")
    done = slurm.run_mpi(4, 2, ["-c", code])
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"8 n{i}" for i in range(4) for _ in range(2)]


def test_gpus_are_given_out_by_name_of_the_device(slurm: Slurm) -> None:
    done = slurm.run(["srun", "-N2", "--gpus-per-node=2", "sh", "-c", "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"])
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["n0 0,1", "n1 0,1"]
