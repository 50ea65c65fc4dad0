"""A host whose network is down for a while under load: shorter than the time-out of ranks, and longer."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from mpiflux.model.states import Result
from mpiflux.store.reader import open_run
from tests.mpi.test_hosts import rig
from tests.support import procs
from tests.support.hosts import Hosts
from tests.support.mpi import installed_stack
from tests.support.runs import Place, Run, until

pytestmark = pytest.mark.mpi
__all__ = ["rig"]

JOBS = 20
# what begins on h2 is there for long, unless it was tried before
FLOW = {"jobs": {"a": {"command": "echo {job.id} {job.attempt} $(hostname) >>marks; "
                                  "sleep $([ $(hostname){job.attempt} = h21 ] && echo 77 || echo 0.8); echo out {i}",
                       "shell": True, "parameters": {"i": {"range": JOBS}}}}}


def marks(place: Place) -> list[list[str]]:
    """(job, attempt, host) of all that has begun."""
    path = place.path / "marks"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def sleepers(rig: Hosts, name: str) -> list[procs.Process]:
    found = [procs.stat(pid) for pid in rig.on(name)]
    return [one for one in found if one is not None and one.comm == "sleep" and not one.zombie]


def rank_on(rig: Hosts, name: str) -> int:
    """The host's only rank; what that has forked has its variables too."""
    ours = {}
    for pid in rig.on(name):
        one, variables = procs.stat(pid), Path(f"/proc/{pid}/environ")
        if one is not None and variables.exists() and b"MPIFLUX_LAUNCH_RANK=" in variables.read_bytes():
            ours[pid] = one.parent
    (rank,) = [pid for pid, parent in ours.items() if parent not in ours]
    return rank


def recorded_ends(directory: Path) -> Counter[int]:
    with open_run(directory) as reader:
        records = reader.records
        return Counter(records["id"][records["result"] == Result.COMPLETED].tolist())


@pytest.mark.parametrize("launcher", ["ours", "mpiexec"])
def test_the_run_goes_on_without_a_host_that_is_cut_off(place: Place, rig: Hosts, launcher: str) -> None:
    """mpiexec itself waits for the host to come back, and says by its status that a rank did not end well."""
    place.write("flow.yaml", FLOW)
    place.expected |= {"marks", "run"}
    words = [installed_stack().python, "-m", "mpiflux", "run", "flow.yaml", "--run-dir", "run", "--cores-per-node", "2",
             "--hierarchy", "node", "--rank-timeout", "4s"]
    words = [*rig.mpiexec(rig.names), *words] if launcher == "mpiexec" else [
        *words, "--hosts", "h[0-3]", "--rsh", rig.enter]
    run = Run(place.path / "run")
    with rig.start(place, words) as running:
        until(lambda: len(sleepers(rig, "h2")) == 2 and len(marks(place)) >= 8, "all cores have jobs")
        rig.cut("h1")
        time.sleep(0.4)
        rig.mend("h1")
        rig.cut("h2")
        try:
            running.wait_for("rank 2 on h2 is lost (no sign of life for 4 s)")
            # nobody but itself can have ended them: it is cut off
            assert not sleepers(rig, "h2")
        finally:
            rig.mend("h2")
        done = running.wait()
    assert done.returncode == 0 or launcher == "mpiexec", done.stderr
    until(lambda: not rig.processes(), "everything is gone from all hosts", 15)
    assert [(job["result"], job["stdout"]) for job in run.jobs()] == [("COMPLETED", f"out {i}\n") for i in range(JOBS)]
    assert [one["node"] for one in run.meta()["lost"]] == ["h2"]
    assert set(Counter(map(tuple, marks(place))).values()) == {1}
    again = [mark for mark in marks(place) if mark[1] != "1"]
    assert len(again) >= 2 and "h2" not in {host for _, _, host in again}
    assert set(recorded_ends(run.directory).values()) == {1}


def test_the_run_goes_on_without_ranks_whose_connections_are_reset(place: Place, rig: Hosts) -> None:
    """A killed process, other than a cut link, makes its host say so to all that talk to it: UCX crashes of that."""
    place.write("flow.yaml", {"jobs": {"a": {"command": "sleep 0.3; hostname", "shell": True,
                                             "parameters": {"i": {"range": 24}}}}})
    place.expected.add("run")
    run = Run(place.path / "run")
    with rig.start(place, [installed_stack().python, "-m", "mpiflux", "run", "flow.yaml", "--run-dir", "run", "--hosts",
                           "h[0-2]", "--rsh", rig.enter, "--cores-per-node", "2"]) as running:
        until(lambda: (run.directory / "run.db").exists() and run.results().get("COMPLETED", 0) > 2, "jobs complete")
        os.kill(rank_on(rig, "h2"), signal.SIGKILL)
        done = running.wait()
    assert done.returncode == 0, done.stderr
    assert run.results() == {"COMPLETED": 24} and [one["node"] for one in run.meta()["lost"]] == ["h2"]
