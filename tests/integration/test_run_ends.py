"""How a run ends: its exit status, interruptions, deaths, and going on afterwards. Jobs count their own executions."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
from typing import Any

import pytest

from tests.support.mpi import installed_stack
from tests.support.runs import ROOT, Place, counted, ended_by, marks, ready, until

RANKS = [0, pytest.param(4, marks=pytest.mark.mpi)]
"""Without a launcher, and below one."""


def test_0_when_every_job_completed(place: Place) -> None:
    run = place.run({"jobs": {"a": {"command": "true", "parameters": {"i": {"range": 20}}}}})
    assert run.results() == {"COMPLETED": 20}
    assert run.done is not None and "20 completed" in run.done.stdout


def test_1_and_the_summary_names_the_first_failures(place: Place) -> None:
    flow = {"jobs": {
        "ok": {"command": "true", "parameters": {"i": {"range": 5}}},
        "bad": {"command": "echo for {i} >&2; echo the last words of {i} >&2; exit {i}", "shell": True,
                "parameters": {"i": {"range": [1, 9]}}},
        "crash": {"command": "kill -SEGV $$", "shell": True},
        "after": {"command": "true", "after": "bad"}, "anyway": {"command": "true", "after": {"bad": "any"}},
        "rescue": {"command": "true", "after": {"bad": "not_ok"}}}}
    run = place.run(flow, status=1)
    assert run.results() == {"COMPLETED": 7, "FAILED": 9, "CANCELED": 1}
    assert run.job("after")["result"] == "CANCELED" and "bad" in run.job("after")["reason"]
    assert run.job("crash")["returncode"] == -11
    assert run.done is not None
    text = run.done.stdout
    assert "the last words of" in text and "job show" in text and "9 failed" in text
    assert text.count("the last words of") <= 5


def test_fail_fast_ends_what_runs_and_starts_no_more(place: Place) -> None:
    flow = {"jobs": {"bad": {"command": "sleep 0.3; exit 1", "shell": True, "priority": 31},
                     "rest": {"command": "sleep 60", "parameters": {"i": {"range": 50}}},
                     "later": {"command": "true", "after": "rest"}}}
    run = place.run(flow, "--fail-fast", status=1)
    found = run.results()
    assert found == {"FAILED": 1, "CANCELED": 51}


def test_retries_and_time_limits(place: Place) -> None:
    flow = {"jobs": {
        "third": {"command": "echo {job.attempt} $MPIFLUX_ATTEMPT; test {job.attempt} = 3", "shell": True,
                  "retries": 5},
        "never": {"command": "echo x >>tries; exit 6", "shell": True, "retries": 2},
        "slow": {"command": "(sleep 61 & sleep 62); true", "shell": True, "time_limit": "500ms"},
        "deaf": {"command": "trap '' TERM; while :; do sleep 0.1; done", "shell": True, "time_limit": 1}}}
    run = place.run(flow, status=1)
    place.expected.add("tries")
    third, never, slow, deaf = run.jobs()
    assert (third["result"], third["attempts"], third["stdout"]) == ("COMPLETED", 3, "3 3\n")
    assert (never["result"], never["attempts"], never["returncode"]) == ("FAILED", 3, 6)
    assert (place.path / "tries").read_text() == "x\n" * 3
    assert (slow["result"], deaf["result"]) == ("TIMEOUT", "TIMEOUT")
    assert slow["t_finish"] - slow["t_start"] >= 0.5
    assert deaf["returncode"] == -9
    log = place.call("job", "eventlog", "1", run.directory.name, "--json").stdout
    assert log.count('"retry"') == 2


@pytest.mark.parametrize("arguments", [
    ["run"], ["run", "missing.yaml"], ["run", "ok.yaml", "--no-such-option"], ["run", "ok.yaml", "--ranks", "0"],
    ["run", "ok.yaml", "--set", "nothing=1"], ["run", "ok.yaml", "--hierarchy", "tree"],
    ["run", "ok.yaml", "--policy", "sjff"], ["run", "ok.yaml", "--time-limit", "soon"],
    ["run", "ok.yaml", "--cores-per-node", "-1"], ["run", "ok.yaml", "--resume"], ["frobnicate"],
    ["run", "ok.yaml", "--run-dir", "full"], ["run", "ok.yaml", "--run-dir", "/proc/no"],
    ["run", "ok.yaml", "--set", "jobs.a.resources.cores=100000"], ["run", ".", "--run-dir", "x"],
])
def test_2_for_a_wrong_command_line(place: Place, arguments: list[str]) -> None:
    place.write("ok.yaml", "jobs: {a: {command: touch started}}\n")
    place.write("full/something", "x")
    done = place.call(*arguments, status=2)
    assert "Traceback" not in done.stderr and done.stderr.strip()
    assert len(done.stderr.splitlines()) <= 4


def test_3_when_the_journal_cannot_be_written(place: Place) -> None:
    """A file size limit stands for a full disk."""
    place.write("flow.yaml", {"jobs": {"a": {"command": "head -c 200000 /dev/zero",
                                             "parameters": {"i": {"range": 40}}}}})
    name = place.new()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        done = place.call("run", "flow.yaml", "--run-dir", name, status=None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert f"{name}/run.db: cannot be written" in done.stderr
    assert "--resume" in done.stdout


LONG: dict[str, Any] = {"jobs": {
    "quick": {"command": counted("true"), "shell": True, "parameters": {"i": {"range": 10}}, "priority": 31},
    "long": {"command": counted("sleep {s}"), "shell": True, "parameters": {"i": {"range": 4}, "s": ["${s}"]}},
    "last": {"command": counted("true"), "shell": True, "after": "long"}}, "variables": {"s": 60}}


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
def test_one_signal_ends_jobs_commits_and_can_be_resumed(place: Place, ranks: int, number: signal.Signals) -> None:
    running, run = place.begin(LONG, "--cores-per-node", "2", ranks=ranks)
    with running:
        ready(place, 12, running)
        running.signal(number)
        done = running.wait()
    assert done.returncode in ended_by(number, ranks)
    assert "Traceback" not in done.stderr
    if done.returncode == 128 + number:
        assert "--resume" in done.stdout
        log = (run.directory / "log").read_text()
        assert f" interrupted: by {number.name};" in log and f" end: status {128 + number}, 10 completed" in log
    found = run.results()
    assert found.pop("COMPLETED") == 10
    assert set(found) <= {"SCHED", "DEPEND"} and sum(found.values()) == 5
    before = marks(place)
    place.call("jobs", run.directory.name)
    shorter = LONG | {"variables": {"s": 60}}
    resumed = place.resume(run, shorter, "--set", "s=60", "--cores-per-node", "2", "--time-limit", "1s", ranks=ranks,
                           status=128 + signal.SIGTERM)
    assert resumed.results()["COMPLETED"] == 10
    assert all(marks(place)[id] == before[id] == 1 for id in range(1, 11)), "a finished job ran again"


@pytest.mark.parametrize("ranks", RANKS)
def test_resume_after_an_interrupt_completes_and_repeats_nothing(place: Place, ranks: int) -> None:
    flow = {"jobs": {"a": {"command": counted("sleep 0.1"), "shell": True, "parameters": {"i": {"range": 40}}},
                     "b": {"command": counted("true"), "shell": True, "after": "a"}}}
    running, run = place.begin(flow, "--cores-per-node", "4", ranks=ranks)
    with running:
        ready(place, 15, running)
        running.signal(signal.SIGINT)
        assert running.wait().returncode in ended_by(signal.SIGINT, ranks)
    done_before = {job["id"] for job in run.jobs() if job["result"]}
    before = marks(place)
    assert 0 < len(done_before) < 41
    resumed = place.resume(run, flow, "--cores-per-node", "3", ranks=ranks)
    assert resumed.results() == {"COMPLETED": 41}
    after = marks(place)
    assert all(after[id] == before[id] == 1 for id in done_before), "a finished job ran again"
    assert all(after[-id] == 1 for id in range(1, 42)), "a job came to its end more than once"
    assert all(job["attempts"] <= 2 for job in resumed.jobs())
    again = place.resume(run, flow, "--cores-per-node", "3", ranks=ranks)
    assert again.results() == {"COMPLETED": 41} and marks(place) == after


def test_jobs_get_term_first_and_kill_when_they_ignore_it(place: Place) -> None:
    flow = {"jobs": {
        "polite": {"command": "trap 'echo bye >>polite; exit 0' TERM; echo 1 >>marks; while :; do sleep 0.05; done",
                   "shell": True},
        "deaf": {"command": "trap '' TERM; echo 2 >>marks; while :; do sleep 0.1; done", "shell": True}}}
    running, run = place.begin(flow, "--cores-per-node", "2")
    with running:
        ready(place, 2, running)
        running.signal(signal.SIGINT)
        done = running.wait(20)
    place.expected.add("polite")
    assert done.returncode == 130
    assert (place.path / "polite").read_text() == "bye\n"
    assert not any(job["result"] == "FAILED" for job in run.jobs())


@pytest.mark.parametrize("ranks", RANKS)
def test_a_run_under_nohup_does_not_hear_hup(place: Place, ranks: int) -> None:
    if ranks > 1 and installed_stack().name == "openmpi":
        pytest.skip("Open MPI's mpiexec starts its ranks with what signals do by default")
    flow = {"jobs": {"a": {"command": "echo 1 >>marks; while [ ! -e go ]; do sleep 0.02; done", "shell": True}}}
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        running, run = place.begin(flow, ranks=ranks)
    finally:
        signal.signal(signal.SIGHUP, before)
    with running:
        ready(place, 1, running)
        os.kill(json.loads((run.directory / "instance.json").read_text())["pid"], signal.SIGHUP)
        place.write("go", "")
        assert running.wait().returncode == 0
    assert run.results() == {"COMPLETED": 1}


def test_who_saves_a_checkpoint_on_term_and_leaves_with_0_goes_on_from_it(place: Place) -> None:
    """The example of docs/reliability.md, with something that must not start on half a result."""
    page = (ROOT / "docs/reliability.md").read_text()
    (block,) = re.findall(r"^```yaml\n(name: walk\n.*?)^```", page, re.M | re.S)
    flow = block.replace("do sleep", "do echo $at >>steps; sleep") + "  then: {command: cat at, after: [walk]}\n"
    place.expected |= {"steps", "at"}
    running, run = place.begin(flow)
    with running:
        until((place.path / "steps").exists, "it walks")
        running.signal(signal.SIGTERM)
        assert running.wait().returncode == 128 + signal.SIGTERM
    assert run.results() == {"SCHED": 1, "DEPEND": 1}
    at = int((place.path / "at").read_text())
    (place.path / "steps").unlink()
    place.resume(run, flow)
    walk = run.job("walk")
    assert (walk["result"], walk["attempts"], walk["stdout"]) == ("COMPLETED", 2, "arrived at 40\n")
    assert int((place.path / "steps").read_text().split()[0]) == at


@pytest.mark.parametrize(("ranks", "whom"), [
    (0, "it"), pytest.param(4, "rank 0", marks=pytest.mark.mpi), pytest.param(4, "mpiexec", marks=pytest.mark.mpi)])
def test_a_second_signal_ends_it_at_once(place: Place, ranks: int, whom: str) -> None:
    flow = {"jobs": {"deaf": {"command": "trap '' TERM; echo {i} >>marks; while :; do sleep 0.1; done", "shell": True,
                              "parameters": {"i": {"range": [1, 3]}}}}}
    running, run = place.begin(flow, "--cores-per-node", "2", ranks=ranks)
    with running:
        ready(place, 2, running)
        pid = json.loads((run.directory / "instance.json").read_text())["pid"]
        for _ in range(2):
            if whom == "mpiexec":
                running.signal(signal.SIGINT)
            else:
                os.kill(pid, signal.SIGINT)
            # Open MPI's mpiexec passes on no output any more once it got the signal, and ends the ranks at once
            until(lambda: "SIG" in running.stderr or running.process.poll() is not None, "it is told")
        done = running.wait(20)
        # killed ranks have someone left who clears up behind them
        until(lambda: not running.members(), "all have left")
    if whom != "mpiexec":
        # at its second interruption hydra's mpiexec kills the ranks and does not wait for what they return
        assert done.returncode == 130
    found = run.results()
    assert "COMPLETED" not in found and "FAILED" not in found
    place.call("jobs", run.directory.name)


@pytest.mark.parametrize("ranks", RANKS)
def test_everything_killed_is_readable_and_resumed(place: Place, ranks: int) -> None:
    flow = {"jobs": {"a": {"command": counted("sleep 0.05"), "shell": True, "parameters": {"i": {"range": 60}}},
                     "b": {"command": counted("true"), "shell": True, "after": "a"}}}
    running, run = place.begin(flow, "--cores-per-node", "4", ranks=ranks)
    with running:
        ready(place, 25, running)
        running.kill()
    jobs = run.jobs()
    finished = {job["id"] for job in jobs if job["result"] == "COMPLETED"}
    for words in (["jobs"], ["jobs", "-a", "--json"], ["job", "show", "1"], ["job", "eventlog", "1"], ["kvs", "ls"],
                  ["resources"], ["tree"], ["export", "--format", "csv"]):
        place.call(*words, "--run-dir", run.directory.name)
    before = marks(place)
    resumed = place.resume(run, flow, "--cores-per-node", "4", ranks=ranks)
    assert resumed.results() == {"COMPLETED": 61}
    after = marks(place)
    assert all(after[id] == before[id] for id in finished), "a job whose end was committed ran again"
    assert all(after[-id] >= 1 for id in range(1, 62))


def test_only_rank_0_killed(place: Place) -> None:
    """Its jobs end with it, though nobody told them to."""
    flow = {"jobs": {"a": {"command": "echo {i} >>marks; sleep 60", "shell": True,
                           "parameters": {"i": {"range": [1, 3]}}}}}
    running, run = place.begin(flow, "--cores-per-node", "2")
    with running:
        ready(place, 2, running)
        until(lambda: run.results() == {"RUN": 2}, "both are known to run")
        running.process.kill()
        running.wait()
        until(lambda: not [p for p in running.members() if not p.zombie], "jobs end with their instance", 10)
    assert {job["state"] for job in run.jobs()} == {"RUN"}
    assert "resume" in place.call("jobs", run.directory.name).stdout


@pytest.mark.parametrize("ranks", RANKS)
def test_a_killed_supervisor_costs_nobody_a_retry(place: Place, ranks: int) -> None:
    flow = {"jobs": {
        "a": {"command": "echo {job.id} >>marks; echo $PPID >sup.{job.id}; sleep 0.4; echo done", "shell": True,
              "parameters": {"i": {"range": 12}}},
        "b": {"command": "echo end", "shell": True, "after": "a"}}}
    place.expected |= {f"sup.{i}" for i in range(1, 13)}
    running, run = place.begin(flow, "--cores-per-node", "4", "--hierarchy", "2", ranks=ranks)
    with running:
        ready(place, 4, running)
        pids = {int(text) for path in place.path.glob("sup.*") if (text := path.read_text().strip())}
        for pid in pids:
            assert pid in {p.pid for p in running.members()}
            os.kill(pid, signal.SIGKILL)
        done = running.wait()
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = run.jobs()
    assert {job["result"] for job in jobs} == {"COMPLETED"}
    assert all(job["stdout"] == "done\n" for job in jobs[:-1])
    again = [job for job in jobs if job["attempts"] > 1]
    assert again, "nothing was lost, so nothing was tested"
    assert all(job["attempts"] == 2 for job in again)
    events = place.call("job", "eventlog", str(again[0]["id"]), run.directory.name).stdout
    assert "retry" in events or "exception" in events
    log = (run.directory / "log").read_text()
    assert " note: a supervisor of rank " in log and " lost: " in log and " end: status 0, 13 completed" in log
    assert "a supervisor of rank " in done.stderr


def test_orphans_and_daemons_of_jobs_end_with_them(place: Place) -> None:
    flow = {"jobs": {"parent": {"command": "setsid sleep 300 >/dev/null 2>&1 & sleep 300 >/dev/null 2>&1 & echo $! ok",
                                "shell": True},
                     "next": {"command": "sleep 2.5", "after": "parent"}}}
    running, _ = place.begin(flow)
    with running:
        done = running.wait()
        left = [p for p in running.members() if p.comm == "sleep" and not p.zombie]
    assert done.returncode == 0 and not left


def test_nothing_grows_over_many_short_jobs(place: Place) -> None:
    """Descriptors and processes of every process of the instance, at the first thousand jobs and at the last."""
    flow = {"jobs": {"n": {"command": "true", "parameters": {"i": {"range": 6000}}}}}
    running, run = place.begin(flow, "--cores-per-node", "2")

    def snapshot() -> dict[int, int]:
        found = {}
        for p in running.members():
            try:
                if not p.zombie and p.comm.startswith("python"):
                    found[p.pid] = len(os.listdir(f"/proc/{p.pid}/fd"))
            except OSError:
                continue
        return found

    def finished() -> int:
        return run.results().get("COMPLETED", 0) if (run.directory / "run.db").exists() else 0

    with running:
        until(lambda: finished() > 500, "500 jobs are done")
        first = snapshot()
        until(lambda: finished() > 4500 or running.process.poll() is not None, "4500 jobs are done")
        last = snapshot()
        zombies = [p for p in running.members() if p.zombie and p.comm == "true"]
        assert running.wait().returncode == 0
    assert set(last) <= set(first)
    assert all(last[pid] <= first[pid] + 8 for pid in last), (first, last)
    assert len(zombies) < 8
