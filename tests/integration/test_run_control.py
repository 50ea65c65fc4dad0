"""Control of jobs in real runs: when they start, in what order, and whether they run again."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import mpiflux
from mpiflux.store.reader import open_run
from tests.support.mpi import MpiRun
from tests.support.runs import Place, Run, ended_by, until

RANKS = [0, pytest.param(4, marks=pytest.mark.mpi)]


@contextmanager
def going_on(place: Place, flow: dict[str, object], *options: str, ranks: int = 0) -> Iterator[tuple[MpiRun, Run]]:
    """A run whose first job is running."""
    running, run = place.begin(flow, *options, ranks=ranks)
    with running:
        until(lambda: (run.directory / "run.db").exists() and "RUN" in run.results(), "a job runs")
        yield running, run


def test_a_failure_waits_before_it_runs_again_and_others_are_final(place: Place) -> None:
    flow = {"jobs": {
        "late": {"command": "test {job.attempt} = 3 || exit 75", "shell": True, "retry_on": [75, "SIGKILL"],
                 "retries": {"limit": 3, "backoff": "200ms", "factor": 2}},
        "killed": {"command": "test {job.attempt} = 2 || kill -9 $$", "shell": True, "retries": 1,
                   "retry_on": "SIGKILL"},
        "final": {"command": "exit 3", "shell": True, "retries": 5, "retry_on": ["1-2", "timeout"]},
        "slow": {"command": "test {job.attempt} = 2 || sleep 60", "shell": True, "time_limit": "200ms", "retries": 1,
                 "retry_on": "timeout"}}}
    run = place.run(flow, status=1)
    late, killed, final, slow = run.jobs()
    assert [job["result"] for job in (late, killed, final, slow)] == ["COMPLETED", "COMPLETED", "FAILED", "COMPLETED"]
    assert [job["attempts"] for job in (late, killed, final, slow)] == [3, 2, 1, 2]
    assert late["t_start"] - late["t_submit"] >= 0.6


def test_elements_follow_elements_across_an_interruption(place: Place) -> None:
    # the jobs with an odd index of the first entry wait for a file that comes only later
    flow = {"jobs": {
        "sim": {"command": "test $(({i} % 2)) = 0 || while ! test -e go; do sleep 0.05; done; test {i} != 5",
                "shell": True, "parameters": {"i": {"range": 8}}, "resources": {"cores": 1}},
        "post": {"command": "echo {i} >>log", "shell": True, "parameters": {"i": {"range": 8}},
                 "after": {"sim": "each"}},
        "mop": {"command": "true", "parameters": {"i": {"range": 8}}, "after": {"sim": {"each": "not_ok"}}}}}
    place.expected |= {"go", "log"}
    with going_on(place, flow, "--cores-per-node", "8") as (running, run):
        until(lambda: sum(job["name"] == "post" and job["result"] == "COMPLETED" for job in run.jobs()) == 4, "4 posts")
        running.signal(signal.SIGTERM)
        running.wait()
    assert sorted((place.path / "log").read_text().split()) == ["0", "2", "4", "6"]
    (place.path / "go").touch()
    run = place.resume(run, flow, "--cores-per-node", "8", status=1)
    assert sorted((place.path / "log").read_text().split()) == ["0", "1", "2", "3", "4", "6", "7"]
    assert run.job("post", 5)["result"] == "CANCELED" and "sim[5]" in run.job("post", 5)["reason"]
    assert [job["result"] for job in run.jobs() if job["name"] == "mop"] == [
        "COMPLETED" if i == 5 else "CANCELED" for i in range(8)]


def test_a_job_waits_for_its_time(place: Place) -> None:
    flow = {"jobs": {"later": {"command": "true", "begin_time": "+1s"}, "now": {"command": "true"},
                     "past": {"command": "true", "after": "later", "begin_time": "2020-01-01T00:00"}}}
    run = place.run(flow)
    later, now, past = run.jobs()
    assert now["t_finish"] < later["t_submit"] + 1 <= later["t_start"] <= past["t_start"]


@pytest.mark.parametrize("ranks", RANKS)
def test_urgency_reorders_and_holds_what_waits_anywhere(place: Place, ranks: int) -> None:
    flow = {"hierarchy": ["core"], "jobs": {
        "gate": {"command": "while ! test -e go; do sleep 0.02; done", "shell": True,
                 "parameters": {"i": {"range": 2}}},
        "sim": {"command": "true", "parameters": {"i": {"range": 12}}},
        "after": {"command": "true", "after": "gate"}}}
    place.expected |= {"go"}
    with going_on(place, flow, "--cores-per-node", "2", ranks=ranks) as (running, run):
        with mpiflux.connect(run.directory) as flux:
            assert flux.urgency("sim", 8) == 12 and flux.job(3 + 9).urgency(31)
            assert flux.job(3 + 2).urgency(0) and flux.hold(3 + 3) == 1 and flux.hold("after") == 1
            (place.path / "go").touch()
            held = {3 + 2, 3 + 3, 15}
            flux.wait([job for job in range(1, 15) if job not in held], 30)
            flux.sync()
            assert {job["id"] for job in run.jobs() if job["state"] != "INACTIVE"} == held
        done = place.call("job", "urgency", "sim.2", "default", "--run-dir", str(run.directory))
        assert "1 job has urgency 16" in done.stdout
        with mpiflux.connect(run.directory) as flux:
            assert flux.release("sim") == 1 and flux.release("after") == 1
        assert running.wait().returncode == 0
    assert run.results() == {"COMPLETED": 15}
    order = sorted((job for job in run.jobs() if job["name"] == "sim"), key=lambda job: float(job["t_start"]))
    # the gates do not end at the same moment: what is urgent comes first where it waits
    where = next(job["cores"] for job in order if job["index"] == 9)
    assert 9 in [job["index"] for job in order if job["cores"] == where][:3]
    assert {job["index"] for job in order[-2:]} == {2, 3}


def test_urgency_survives_a_resumption(place: Place) -> None:
    flow = {"jobs": {"gate": {"command": "sleep 100", "parameters": {"i": {"range": 2}}},
                     "sim": {"command": "true", "parameters": {"i": {"range": 4}}}}}
    with going_on(place, flow, "--cores-per-node", "2") as (running, run):
        with mpiflux.connect(run.directory) as flux:
            assert flux.urgency(4, 0) == 1
            flux.sync()
        running.signal(signal.SIGTERM)
        running.wait()
    name = run.directory.name
    with place.start("run", f"{name}.yaml", "--run-dir", name, "--resume", "--cores-per-node", "8") as running:
        until(lambda: sum(job["result"] == "COMPLETED" for job in run.jobs()) == 3, "three complete")
        with mpiflux.connect(run.directory) as flux:
            assert flux.cancel("gate") == 2 and flux.job(4).urgency(16)
        running.wait()
    assert run.results() == {"COMPLETED": 4, "CANCELED": 2}


def test_what_cannot_finish_before_the_end_is_not_started(place: Place) -> None:
    flow = {"hierarchy": ["core"], "jobs": {
        "short": {"command": "sleep 0.2", "parameters": {"i": {"range": 6}}, "time_limit": 1},
        "long": {"command": "echo long >>log", "shell": True, "time_limit": "5m", "parameters": {"i": {"range": 4}}},
        "next": {"command": "true", "after": "long"}}}
    end = {"SLURM_JOB_END_TIME": str(int(time.time()) + 100)}
    running, run = place.begin(flow, "--cores-per-node", "2", env=end)
    with running:
        assert running.wait().returncode in ended_by(signal.SIGTERM, 0)
        assert "long: 4 jobs not started" in running.stdout + running.stderr
    assert run.results() == {"COMPLETED": 6, "SCHED": 4, "DEPEND": 1}
    place.expected.add("log")
    run = place.resume(run, flow)
    assert run.results() == {"COMPLETED": 11} and (place.path / "log").read_text() == "long\n" * 4


def test_explain_says_what_holds_a_job_up(place: Place) -> None:
    flow = {"hierarchy": ["core"], "policy": "easy", "jobs": {
        "gate": {"command": "sleep 100", "parameters": {"i": {"range": 6}}, "time_limit": "5m",
                 "priority": 30},
        "sim": {"command": "true", "parameters": {"i": {"range": 12}}},
        "post": {"command": "true", "parameters": {"i": {"range": 12}}, "after": {"sim": "each"}},
        "last": {"command": "true", "after": "sim"},
        "tomorrow": {"command": "true", "begin_time": "+1d"},
        "held": {"command": "true", "priority": 0},
        "again": {"command": "exit 1", "shell": True, "priority": 31, "retries": {"limit": 1, "backoff": "1h"}}}}

    first = {"gate": 1, "sim": 7, "post": 19, "last": 31, "tomorrow": 32, "held": 33, "again": 34}

    with going_on(place, flow, "--cores-per-node", "2") as (running, run), mpiflux.connect(run.directory) as flux:
        def explain(reference: str) -> str:
            name, _, index = reference.partition(".")
            facts = flux.explain(first[name] + int(index or 0))
            return "\n".join(f"{text} {when:.0f}" if when else text for text, when in facts)

        until(lambda: run.results().get("RUN") == 2 and run.job("again")["attempts"], "the gates run")
        gates = [explain(f"gate.{i}") for i in range(6)]
        assert sum("it runs" in gate for gate in gates) == 2
        assert any("free here: 0 of 1 cores: it waits for cores" in gate
                   and "the next job of its group, gate, from 1" in gate for gate in gates)
        assert "it waits for sim[3]" in explain("post.3") and "12 of its 12 jobs" in explain("last")
        assert "may start at" in explain("tomorrow") and "urgency is 0" in explain("held")
        assert "tried again after a wait, at" in explain("again")
        assert "asks for 1 core" in explain("sim.11") and "jobs ahead of it, the first is gate[" in explain("sim.11")
        shown = place.call("jobs", "--explain", "tomorrow", run.directory.name).stdout
        assert "tomorrow[0], job 32, DEPEND:" in shown and "it may start at 20" in shown
        running.signal(signal.SIGTERM)
        running.wait()
    assert "--resume" in place.call("jobs", "--explain", "sim.0", run.directory.name).stdout


def test_cancel_by_filter_in_every_state(place: Place) -> None:
    flow = {"hierarchy": ["core"], "jobs": {
        "gate": {"command": "sleep 100", "parameters": {"i": {"range": 4}}},
        "sim": {"command": "true", "parameters": {"i": {"range": 12}}},
        "post": {"command": "true", "parameters": {"i": {"range": 12}}, "after": {"sim": "each"}},
        "tomorrow": {"command": "true", "begin_time": "+1d"}, "held": {"command": "true", "priority": 0},
        "again": {"command": "exit 1", "shell": True, "priority": 31, "retries": {"limit": 1, "backoff": "1h"}}}}

    def cancel(*words: str, status: int = 0) -> str:
        return place.call("cancel", *words, "--run-dir", run.directory.name, status=status).stdout

    with going_on(place, flow, "--cores-per-node", "2") as (running, run):
        until(lambda: run.results().get("RUN") == 2 and run.job("again")["attempts"], "the gates run")
        assert "10 jobs" in cancel("--filter", "post[0-9],depend")
        assert "0 jobs" in cancel("--filter", "post,run", status=1)
        assert "2 jobs" in cancel("--filter", "run") and "5 jobs" in cancel("--filter", "sim[0-4]")
        assert "3 jobs" in cancel("tomorrow", "held", "again")
        until(lambda: run.job("again")["result"] == "CANCELED", "all that was named has ended")
        cancel("--all")
        assert running.wait().returncode == 1
    found = run.jobs()
    assert {job["result"] for job in found if job["name"] not in ("sim", "post")} == {"CANCELED"}
    assert sum(job["result"] == "CANCELED" for job in found if job["name"] == "sim") >= 5
    assert all(job["state"] == "INACTIVE" for job in found)


def test_a_retry_waits_the_rest_of_its_time_after_a_resumption(place: Place) -> None:
    flow = {"jobs": {"early": {"command": "true"},
                     "late": {"command": "test {job.attempt} = 2", "shell": True,
                              "retries": {"limit": 1, "backoff": "4s"}},
                     "next": {"command": "true", "parameters": {"i": {"range": 3}}, "after": {"late": "any"}},
                     "gate": {"command": "test -e go || sleep 100", "shell": True}}}
    place.expected.add("go")
    with going_on(place, flow, "--cores-per-node", "4") as (running, run):
        until(lambda: run.job("late")["attempts"] == 1 and run.job("late")["state"] == "SCHED", "it has failed once")
        running.signal(signal.SIGTERM)
        running.wait()
    (place.path / "go").touch()
    run = place.resume(run, flow, "--cores-per-node", "4")
    assert run.results() == {"COMPLETED": 6}
    with open_run(str(run.directory)) as reader:
        first, second = [attempt.record for attempt in reader.attempts(2)]
    assert first.t_finish + 4 <= second.t_start
    assert run.job("gate")["t_start"] < second.t_start < run.job("next")["t_start"]


def test_a_policy_that_fails_ends_the_run_with_its_line_and_the_run_goes_on_later(place: Place) -> None:
    place.write("own.py", """
from mpiflux.sched.policies import Policy

class Fails(Policy):
    def schedule(self, queue, machine, now):
        for entry in queue:
            queue.take(entry, machine.start(entry))
        if not queue.jobs:
            raise ValueError("no more")
""")
    place.expected.add("__pycache__")
    flow = {"hierarchy": {"levels": [{"width": 2}]}, "policy": "own:Fails", "jobs": {
        "sim": {"command": "sleep 0.1", "parameters": {"i": {"range": 8}}}}}
    run = place.run(flow, "--cores-per-node", "2", status=3)
    assert run.done is not None and "Traceback" not in run.done.stderr
    assert "policy own:Fails failed: ValueError: no more, at " in run.done.stderr
    assert f"{place.path}/own.py:9 in schedule. No more jobs are started" in run.done.stderr
    assert "own:Fails failed" in (run.directory / "log").read_text()
    assert 0 < run.results()["SCHED"] <= 8
    run = place.resume(run, {**flow, "policy": "fcfs"}, "--cores-per-node", "2")
    assert run.results() == {"COMPLETED": 8}


def test_an_end_time_that_is_none_starts_nothing(place: Place) -> None:
    done = place.call("run", place.write("w.yaml", {"jobs": {"a": {"command": "true"}}}).name, status=2,
                      env={"MPIFLUX_END_TIME": "garbage"})
    assert "MPIFLUX_END_TIME is 'garbage': it must be in Unix seconds" in done.stderr
