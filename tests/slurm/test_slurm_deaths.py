"""A node's rank dies under a real Slurm: the run goes on without that node where srun lets it."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from tests.support.mpi import MpiRun, installed_stack
from tests.support.runs import ROOT, Place, Run, until
from tests.support.slurm import Slurm

pytestmark = pytest.mark.mpi
JOBS = 60
FLOW = {"jobs": {"a": {"command": "sleep 0.3; echo $MPIFLUX_NODE", "shell": True,
                       "parameters": {"i": {"range": JOBS}}}}}


def rank_of_node(running: MpiRun, node: str) -> int:
    """The pid of its only rank; what that has forked has its variables too."""
    pids = {}
    for one in running.members():
        try:
            with open(f"/proc/{one.pid}/environ", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        if b"SLURMD_NODENAME=" + node.encode() in words and any(word.startswith(b"PMI_RANK=") for word in words):
            pids[one.pid] = one.parent
    return next(pid for pid, parent in pids.items() if parent not in pids)


@pytest.mark.skipif(installed_stack().name != "mpich", reason="Open MPI 5 ends all its ranks with one, but for ULFM")
def test_a_run_ends_complete_without_a_node(slurm: Slurm, place: Place) -> None:
    name = place.new()
    path = place.write("flow.yaml", FLOW).name
    # MPICH puts long addresses into PMI in pieces just longer than what Slurm 22.05's plug-in reads at a time
    env = {"PYTHONPATH": str(ROOT), "UCX_NET_DEVICES": "lo"}
    command = ["srun", "-K0", "-N3", "--ntasks-per-node=1", "--mpi=pmi2", sys.executable, "-m", "mpiflux", "run", path,
               "--run-dir", name, "--rank-timeout", "3s"]
    run = Run(place.path / name)
    with slurm.start(command, env=env, cwd=place.path) as running:
        running.wait_for("results ")
        until(lambda: run.results().get("COMPLETED", 0) > 5, "jobs complete")
        os.kill(rank_of_node(running, "n1"), signal.SIGKILL)
        done = running.wait()
    # srun itself tells of the task that was killed
    assert done.returncode == 128 + signal.SIGKILL
    assert "on n1 is lost (no sign of life for 3 s)" in done.stderr
    jobs = run.jobs()
    assert [job["result"] for job in jobs] == ["COMPLETED"] * JOBS
    assert {job["stdout"] for job in jobs if job["attempts"] > 1} <= {"n0\n", "n2\n"}
    meta = run.meta()
    assert meta["state"] == "finished" and [one["node"] for one in meta["lost"]] == ["n1"]
    assert [node["node"] for node in meta["resources"]] == ["n0", "n2"]
