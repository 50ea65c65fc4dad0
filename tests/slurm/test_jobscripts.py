"""The Slurm scripts of jobscripts/, submitted as a user would submit them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.mpi import installed_stack
from tests.support.runs import ROOT, Place, Run, until
from tests.support.slurm import Slurm

pytestmark = pytest.mark.mpi
ENV = {"PYTHONPATH": str(ROOT), "UCX_NET_DEVICES": "lo"}


class Batch:
    def __init__(self, slurm: Slurm, place: Place) -> None:
        self.slurm, self.place = slurm, place

    def submit(self, script: str, workflow: dict[str, Any], *options: str) -> int:
        """A copy of the script with the workflow w.yaml; its run directory is ``run``."""
        name = f"{script}.sh"
        shutil.copy(ROOT / "jobscripts" / name, self.place.path / name)
        self.place.expected |= {name, "out", "run"}
        self.place.write("w.yaml", workflow)
        return self.slurm.submit([*options, "--output=out", name, "w.yaml", "run"], env=ENV, cwd=self.place.path)

    def completed(self, job: int, run: str = "run") -> Run:
        until(lambda: self.slurm.state(job) not in ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING"), "it ends", 180)
        said = (self.place.path / "out").read_text() if (self.place.path / "out").exists() else ""
        assert self.slurm.state(job) == "COMPLETED", said
        return Run(self.place.path / run)


@pytest.fixture
def batch(slurm: Slurm, place: Place) -> Iterator[Batch]:
    if installed_stack().name != "mpich":
        pytest.skip("the scripts use srun, which cannot start Open MPI 5 here")
    yield Batch(slurm, place)
    slurm.run(["scancel", "--user=root"])
    until(slurm.idle, "no job is left")


def jobs(count: int, **keys: Any) -> dict[str, Any]:
    return {"jobs": {"a": {"command": "echo {i}", "parameters": {"i": {"range": count}}, **keys}}}


@pytest.mark.parametrize("script, ranks, gpus", [
    ("slurm", 2, 0), ("slurm-gpu", 2, 1), ("slurm-ranks", 4, 0)])
def test_it_runs_the_workflow(batch: Batch, script: str, ranks: int, gpus: int) -> None:
    run = batch.completed(batch.submit(script, jobs(4, resources={"gpus": gpus})))
    assert run.results() == {"COMPLETED": 4}
    assert run.meta()["ranks"] == ranks and len(run.meta()["nodes"]) == 2
    assert {node["gpus"] for node in run.meta()["resources"]} == {"0-1"}, "--exclusive gives all of a node"


def test_an_array_of_instances(batch: Batch) -> None:
    flow = {"variables": {"part": 0}, "jobs": {"a": {"command": "echo ${part}"}}}
    job = batch.submit("slurm-array", flow, "--array=0-1")
    batch.place.expected |= {"run-0", "run-1"}
    for part in range(2):
        until(lambda part=part: (batch.place.path / f"run-{part}" / "run.db").exists(), "it runs")
    until(batch.slurm.idle, "both end", 180)
    assert batch.slurm.state(job) == "COMPLETED"
    assert [Run(batch.place.path / f"run-{part}").stdout("a") for part in range(2)] == [b"0\n", b"1\n"]


@pytest.mark.slow
def test_warned_it_stops_is_queued_again_and_goes_on(batch: Batch) -> None:
    """``scancel --batch --signal=USR1`` sends what ``--signal=B:USR1@120`` does two minutes before the end."""
    here: Path = batch.place.path
    flow = {"jobs": {"quick": {"command": "true", "parameters": {"i": {"range": 3}}}, "long": {
        "command": "if [ ! -e go ]; then touch ready; exec sleep 1000; fi", "shell": True}}}
    job = batch.submit("slurm-requeue", flow)
    batch.place.expected |= {"ready", "go"}
    until((here / "ready").exists, "the long job runs")
    until(lambda: Run(here / "run").results() == {"COMPLETED": 3, "RUN": 1}, "the run directory says so")
    assert batch.slurm.run(["scancel", "--batch", "--signal=USR1", str(job)]).returncode == 0
    until(lambda: batch.slurm.state(job) == "PENDING", "it is queued again", 120)
    assert Run(here / "run").results() == {"COMPLETED": 3, "SCHED": 1}
    (here / "go").touch()
    # Slurm lets its credential expire before it starts such a job: two minutes unless configured, seconds here
    run = batch.completed(job)
    assert run.results() == {"COMPLETED": 4}
    assert {one["attempts"] for one in run.jobs() if one["name"] == "quick"} == {1}
