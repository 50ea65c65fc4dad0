"""What a person sees of a run on several ranks: one voice, whatever happens, and output as a shell gives it."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from tests.support import commands, procs
from tests.support.mpi import installed_stack
from tests.support.runs import Place, ended_by, marks, ready, until

pytestmark = pytest.mark.mpi


def test_every_byte_is_what_a_shell_gives(place: Place) -> None:
    commands.make_files(place)
    run = place.run(commands.workflow(), "--hierarchy", "2", ranks=2, status=1)
    assert commands.differences(run, place) == []


@pytest.mark.parametrize(("text", "told"), [
    ("jobs:\n  a: {command: touch started, retrys: 1}\n", "flow.yaml:2:31:"),
    ("jobs: [\n", "flow.yaml:2:1:"),
    ("jobs: {a: {command: touch started, resources: {cores: 4096}}}\n", "'a'"),
    ("", "flow.yaml:1:1: "),
])
def test_a_wrong_workflow_is_told_once(place: Place, text: str, told: str) -> None:
    place.write("flow.yaml", text)
    done = place.call("run", "flow.yaml", "--run-dir", "never", ranks=4, status=2)
    assert done.stderr.count(told) == 1, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["run", "flow.yaml", "--no-such"], ["nonsense"],
                                   ["run", "flow.yaml", "--ranks", "3"]])
def test_a_wrong_command_line_is_told_once(place: Place, words: list[str]) -> None:
    place.write("flow.yaml", "jobs: {a: {command: touch started}}\n")
    done = place.call(*words, ranks=4, status=2)
    assert done.stderr.count("mpiflux: ") == 1, done.stderr
    assert "Traceback" not in done.stderr


def test_help_version_and_dry_run_come_from_one_rank(place: Place) -> None:
    place.write("flow.yaml", "jobs: {a: {command: touch started}}\n")
    assert place.call("run", "--help", ranks=4).stdout.count("--hierarchy") <= 3
    dry = place.call("run", "flow.yaml", "--dry-run", "--cores-per-node", "4", "--hierarchy", "core", ranks=4)
    assert dry.stdout.count("1 job in 1 group") == 1 and "4 ranks" in dry.stdout


def test_failures_are_told_once_and_end_with_1(place: Place) -> None:
    flow = {"jobs": {"bad": {"command": "echo why >&2; exit 4", "shell": True, "parameters": {"i": {"range": 8}}},
                     "ok": {"command": "true", "parameters": {"i": {"range": 8}}}}}
    run = place.run(flow, "--hierarchy", "core", "--cores-per-node", "4", ranks=4, status=1)
    assert run.results() == {"FAILED": 8, "COMPLETED": 8}
    assert run.done is not None and run.done.stdout.count("8 failed") == 1


def test_fail_fast_reaches_every_rank(place: Place) -> None:
    flow = {"jobs": {"rest": {"command": "sleep 60", "parameters": {"i": {"range": 30}}},
                     "bad": {"command": "sleep 1; exit 1", "shell": True, "priority": 31}}}
    run = place.run(flow, "--fail-fast", "--hierarchy", "core", "--cores-per-node", "4", ranks=4, status=1)
    assert run.results() == {"FAILED": 1, "CANCELED": 30}


def test_the_time_limit_of_the_run_leaves_it_resumable(place: Place) -> None:
    flow = {"jobs": {"a": {"command": "echo {job.id} >>marks; sleep {s}", "shell": True,
                           "parameters": {"s": [0, 0, 0, 0, 60, 60]}}}}
    run = place.run(flow, "--time-limit", "2s", "--cores-per-node", "2", ranks=2, status=128 + signal.SIGTERM)
    place.expected.add("marks")
    assert run.results()["COMPLETED"] == 4
    assert sum(n for state, n in run.results().items() if state != "COMPLETED") == 2


def test_retries_dependencies_and_output_cross_ranks(place: Place) -> None:
    flow = {"jobs": {
        "flaky": {"command": "echo {job.attempt}; test {job.attempt} -ge 2", "shell": True, "retries": 3,
                  "parameters": {"i": {"range": 20}}},
        "mid": {"command": "echo {i}", "parameters": {"i": {"range": 20}}, "after": "flaky"},
        "large": {"command": [sys.executable, "-c", commands.MEGABYTE.replace("{", "{{").replace("}", "}}")],
                  "parameters": {"i": {"range": 4}},
                  "after": {"mid": "any"}},
        "end": {"command": "true", "after": ["large", "mid"]}}}
    run = place.run(flow, "--hierarchy", "core", "--cores-per-node", "4", ranks=4)
    jobs = run.jobs()
    assert {job["result"] for job in jobs} == {"COMPLETED"}
    assert [job["attempts"] for job in jobs[:20]] == [2] * 20
    assert [job["stdout"] for job in jobs[:40]] == ["2\n"] * 20 + [f"{i}\n" for i in range(20)]
    assert all(len(job["stdout"]) == 131072 * 8 for job in jobs[40:44])
    latest = {name: max(job["t_finish"] for job in jobs if job["name"] == name) for name in flow["jobs"]}
    first = {name: min(job["t_start"] for job in jobs if job["name"] == name) for name in flow["jobs"]}
    assert latest["flaky"] <= first["mid"] and latest["mid"] <= first["large"] and latest["large"] <= first["end"]


@pytest.mark.parametrize("victim", ["rank 0", "another rank"])
def test_a_killed_rank_leaves_no_job_behind_and_a_run_that_goes_on(place: Place, victim: str) -> None:
    """Below mpiexec the other ranks die with it."""
    flow = {"jobs": {"quick": {"command": "echo {job.id} >>marks", "shell": True, "priority": 31,
                               "parameters": {"i": {"range": 10}}},
                     "long": {"command": "echo {job.id} >>marks; sleep ${s}", "shell": True,
                              "parameters": {"i": {"range": 4}}}}, "variables": {"s": 60}}
    running, run = place.begin(flow, "--cores-per-node", "4", "--hierarchy", "core", ranks=4)
    with running:
        ready(place, 14, running)
        until(lambda: run.results() == {"COMPLETED": 10, "RUN": 4}, "four are known to run")
        ranks = rank_processes(running.members())
        os.kill(ranks[0 if victim == "rank 0" else 2], signal.SIGKILL)
        done = running.wait(30)
        until(lambda: not [p for p in running.members() if not p.zombie], "everything is gone", 15)
    assert done.returncode != 0
    before = marks(place)
    again = dict(flow, variables={"s": 0})
    place.call("jobs", run.directory.name)
    resumed = place.resume(run, again, "--cores-per-node", "4", "--set", "s=60", "--time-limit", "2s", ranks=2,
                           status=128 + signal.SIGTERM)
    assert resumed.results()["COMPLETED"] == 10
    assert all(marks(place)[id] == before[id] == 1 for id in range(1, 11))


def rank_processes(members: set[procs.Process]) -> list[int]:
    """The pids of ranks by rank, told by the launcher's variables in their environment."""
    found: dict[int, set[int]] = {}
    parents = {p.pid: p.parent for p in members}
    for pid in parents:
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                words = dict(item.partition(b"=")[::2] for item in file.read().split(b"\0") if item)
        except OSError:
            continue
        rank = words.get(b"PMI_RANK", words.get(b"PMIX_RANK"))
        if rank is not None:
            found.setdefault(int(rank), set()).add(pid)
    # what a rank has forked has the same words
    return [next(pid for pid in pids if parents[pid] not in pids) for _, pids in sorted(found.items())]


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_without_a_launcher(place: Place, ranks: int) -> None:
    flow = {"jobs": {"a": {"command": "echo {job.id} >>marks", "shell": True, "parameters": {"i": {"range": 30}}}}}
    place.expected.add("marks")
    options = ["--ranks", str(ranks), "--cores-per-node", "3", "--hierarchy", "core"]
    if installed_stack().name == "openmpi":
        # Open MPI 5 knows PMIx only: this must be told, and nothing may start
        place.write("flow.yaml", flow)
        done = place.call("run", "flow.yaml", "--run-dir", "never", *options, status=None)
        assert done.returncode in (2, 3) and "mpiexec" in done.stderr and "Traceback" not in done.stderr
        assert not (place.path / "marks").exists()
        return
    run = place.run(flow, *options)
    assert run.results() == {"COMPLETED": 30} and run.meta()["ranks"] == ranks
    assert sorted(marks(place)) == list(range(1, 31))


def test_no_shared_memory_is_left_in_the_file_system(place: Place) -> None:
    """While ranks run, none of their segments has a name any more: kill -9 leaves nothing in /dev/shm."""
    flow = {"jobs": {"a": {"command": "echo 1 >>marks; sleep 60", "shell": True}}}
    running, _ = place.begin(flow, ranks=3)
    with running:
        ready(place, 1, running)
        named = procs.shared_memory(running.members())
        files = {path for path in named if os.path.exists(path)}
        running.signal(signal.SIGINT)
        assert running.wait().returncode in ended_by(signal.SIGINT, 3)
    if installed_stack().name == "mpich":
        assert not files
    assert not [path for path in named if os.path.exists(path)]
