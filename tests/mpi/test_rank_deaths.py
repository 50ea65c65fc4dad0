"""Ranks that die or are stopped while a run goes on: it ends complete without them, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import pytest

from tests.support import procs
from tests.support.mpi import MpiRun, installed_stack
from tests.support.runs import ROOT, Place, Run, until

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(
    installed_stack().name != "mpich", reason="--ranks, which lets survivors go on, starts MPICH's ranks only")]

JOBS = 40
FLOW = {"jobs": {"a": {"command": "echo {job.id} {job.attempt} >>marks; sleep 0.2; echo out {i}", "shell": True,
                       "parameters": {"i": {"range": JOBS}}}}}


class Death(NamedTuple):
    hierarchy: str
    ranks: tuple[int, ...]
    """Who dies."""
    after: int
    """How many attempts have begun when that happens."""


def begin(place: Place, flow: object, *options: str, env: Mapping[str, str] | None = None) -> tuple[MpiRun, Run]:
    place.expected.add("marks")
    return place.begin(flow, "--ranks", "4", "--cores-per-node", "8", *options, env=env)  # type: ignore[arg-type]


def attempts(place: Place) -> list[str]:
    path = place.path / "marks"
    return path.read_text().splitlines() if path.exists() else []


def begun(place: Place, running: MpiRun, count: int) -> None:
    def true() -> bool:
        assert running.process.poll() is None, running.stderr
        return len(attempts(place)) >= count
    until(true, f"{count} attempts begin")


def rank_pids(running: MpiRun) -> dict[int, int]:
    """What a rank has forked has its variables too, but not the launcher for a parent."""
    found = {}
    for one in running.members():
        if one.parent == running.process.pid:
            with open(f"/proc/{one.pid}/environ", "rb") as file:
                words = dict(item.partition(b"=")[::2] for item in file.read().split(b"\0"))
            if b"MPIFLUX_LAUNCH_RANK" in words:
                found[int(words[b"MPIFLUX_LAUNCH_RANK"])] = one.pid
    return found


def nothing_left(running: MpiRun) -> None:
    until(lambda: not [p for p in running.members() if not p.zombie], "everything is gone", 15)


def as_undisturbed(place: Place, run: Run) -> list[int]:
    """Every job has completed once, with its output, and no attempt has run twice; the numbers of attempts."""
    jobs = run.jobs()
    assert [(job["id"], job["result"], job["stdout"]) for job in jobs] == [
        (i + 1, "COMPLETED", f"out {i}\n") for i in range(JOBS)]
    assert set(Counter(attempts(place)).values()) == {1}
    return [job["attempts"] for job in jobs]


@pytest.mark.parametrize("death", [
    Death("4", (3,), 10), Death("2x2", (2,), 10), Death("none", (2,), 10), Death("2x4", (1, 3), JOBS - 3)],
    ids=["leaf", "interior", "no tree", "two near the end"])
def test_a_run_goes_on_without_ranks_that_were_killed(place: Place, death: Death) -> None:
    running, run = begin(place, FLOW, "--hierarchy", death.hierarchy)
    with running:
        begun(place, running, death.after)
        pids = rank_pids(running)
        for rank in death.ranks:
            os.kill(pids[rank], signal.SIGKILL)
        done = running.wait()
        nothing_left(running)
    assert done.returncode == 0, done.stderr
    as_undisturbed(place, run)
    lost = run.meta()["lost"]
    assert sorted(one["rank"] for one in lost) == list(death.ranks)
    for one in death.ranks:
        assert done.stderr.count(f"rank {one} died of SIGKILL; the others go on") == 1
    assert done.stderr.count("lost (its process is gone)") in range(1, len(death.ranks) + 1)
    assert f"{len(death.ranks)} of 4 ranks lost" in place.call("resources", run.directory.name).stdout


def test_the_door_of_a_node_outlives_the_rank_that_held_it(place: Place) -> None:
    place.write("sitecustomize.py", """
import os
if "MPIFLUX_LAUNCH_RANK" in os.environ:
    os.environ["SLURMD_NODENAME"] = "n" + str(int(os.environ["MPIFLUX_LAUNCH_RANK"]) // 2)
""")
    ask = "echo {job.id} {job.attempt} >>marks; python -m mpiflux kvs put seen.$MPIFLUX_NODE yes"
    flow = {"jobs": {"a": FLOW["jobs"]["a"],
                     "ask": {"command": ask, "shell": True, "per": "node", "after": "a"}}}
    running, run = begin(place, flow, env={"PYTHONPATH": f"{ROOT}:{place.path}"})
    with running:
        begun(place, running, 12)
        os.kill(rank_pids(running)[2], signal.SIGKILL)
        done = running.wait()
        nothing_left(running)
    assert done.returncode == 0, done.stderr
    assert [one["node"] for one in run.meta()["lost"]] == ["n1"]
    assert place.call("kvs", "ls", "seen", "--run-dir", run.directory.name).stdout.split() == ["seen.n0", "seen.n1"]


def test_a_rank_that_was_taken_for_dead_ends_when_it_comes_back(place: Place) -> None:
    """What it ran is ended before that, by its supervisors, so that nothing runs beside its successor."""
    command = "echo {job.id} {job.attempt} >>marks; exec sleep $(({job.attempt} == 1 ? 8 : 0))"
    flow = {"jobs": {"a": {"command": command, "shell": True, "parameters": {"i": {"range": 8}}}}}
    running, run = begin(place, flow, "--hierarchy", "4", "--rank-timeout", "3s")
    with running:
        begun(place, running, 8)
        stopped = rank_pids(running)[3]
        os.kill(stopped, signal.SIGSTOP)
        asleep = [p for p in procs.descendants(stopped, procs.everyone()) if p.comm == "sleep" and not p.zombie]
        running.wait_for("is lost (no sign of life for 3 s)")
        assert asleep and not [p for p in procs.descendants(stopped, procs.everyone()) if p in asleep and not p.zombie]
        os.kill(stopped, signal.SIGCONT)
        done = running.wait()
        nothing_left(running)
    assert done.returncode == 0, done.stderr
    assert Counter(job["attempts"] for job in run.jobs()) == {1: 6, 2: 2}
    assert set(Counter(attempts(place)).values()) == {1}
    assert "rank 3 exited with status 3; the others go on" in done.stderr


def test_ranks_that_are_stopped_for_less_than_the_time_out_are_waited_for(place: Place) -> None:
    running, run = begin(place, FLOW, "--hierarchy", "4", "--rank-timeout", "30s")
    with running:
        begun(place, running, 8)
        pids = rank_pids(running)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for rank in (0, 2):
                os.kill(pids[rank], number)
            time.sleep(1.2)
        done = running.wait()
    assert done.returncode == 0, done.stderr
    assert as_undisturbed(place, run) == [1] * JOBS
    assert run.meta()["lost"] == []


def test_where_asked_all_are_started_again(place: Place) -> None:
    """First after the death of a leaf, which the others would survive, then after that of rank 0."""
    running, run = begin(place, FLOW, "--hierarchy", "4", "--restarts", "2")
    with running:
        for number, rank in enumerate((2, 0), 1):
            begun(place, running, 12 * number)
            pids = rank_pids(running)
            os.kill(pids[rank], signal.SIGKILL)
            running.wait_for(f"rank {rank} was lost: going on with the run (restart {number} of 2)")
            until(lambda pids=pids: not set(pids.values()) & {p.pid for p in running.members()}, "those ranks end")
        done = running.wait()
        nothing_left(running)
    assert done.returncode == 0, done.stderr
    jobs = run.jobs()
    assert [(job["id"], job["result"], job["stdout"]) for job in jobs] == [
        (i + 1, "COMPLETED", f"out {i}\n") for i in range(JOBS)]
    assert run.meta()["ranks"] == 4 and run.meta()["lost"] == [], "the last start has lost nobody"
    assert f"{JOBS} completed" in done.stdout + done.stderr


def test_whoever_asks_for_the_end_gets_it_although_restarts_are_left(place: Place) -> None:
    running, run = begin(place, FLOW, "--restarts", "2")
    with running:
        begun(place, running, 4)
        running.signal(signal.SIGTERM)
        done = running.wait()
        nothing_left(running)
    assert done.returncode == 128 + signal.SIGTERM and "restart" not in done.stderr
    assert run.results().get("SCHED")


def test_without_rank_0_the_others_end_what_they_run(place: Place) -> None:
    running, run = begin(place, FLOW, "--hierarchy", "4")
    with running:
        begun(place, running, 12)
        os.kill(rank_pids(running)[0], signal.SIGKILL)
        done = running.wait(30)
        nothing_left(running)
    assert done.returncode == 128 + signal.SIGKILL
    place.resume(run, FLOW, "--cores-per-node", "8")
    assert run.results() == {"COMPLETED": JOBS}


def test_what_nothing_left_can_hold_is_ended_with_the_reason(place: Place) -> None:
    flow = {"jobs": {"a": {"command": "echo {job.id} {job.attempt} >>marks; sleep 0.2", "shell": True,
                           "parameters": {"i": {"range": 40}}},
                     "all": {"command": "true", "resources": {"cores": 8}, "after": "a"},
                     "most": {"command": "true", "resources": {"cores": 6}, "after": "a"}}}
    running, run = begin(place, flow, "--hierarchy", "4")
    with running:
        begun(place, running, 12)
        os.kill(rank_pids(running)[2], signal.SIGKILL)
        done = running.wait()
    assert done.returncode == 1
    assert run.results() == {"COMPLETED": 41, "CANCELED": 1}
    reason = run.job("all")["reason"]
    assert "rank 2 on " in reason and "asks for 8 cores" in reason and "run --resume" in reason
    place.resume(run, flow, "--cores-per-node", "8", status=1)


def test_a_rank_that_dies_while_all_start_ends_the_run(place: Place) -> None:
    """They wait for each other then, and would do so for long."""
    place.write("sitecustomize.py", """
import os, signal
if os.environ.get("MPIFLUX_LAUNCH_RANK") == "2":
    from mpiflux.overlay import mpi
    mpi.gather_bytes = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
""")
    running, run = place.begin(FLOW, "--ranks", "4", env={"PYTHONPATH": f"{ROOT}:{place.path}"})
    with running:
        done = running.wait()
        nothing_left(running)
    assert done.returncode == 128 + signal.SIGKILL
    assert "rank 2 died of SIGKILL before all were up; ending the others" in done.stderr
    place.expected.discard(run.directory.name)
