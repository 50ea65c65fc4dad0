"""A job that kills what runs it is not tried for ever, and what is beside it runs."""

from __future__ import annotations

from mpiflux.store.crashes import LIMIT
from tests.support.runs import Place


def test_a_job_that_kills_its_supervisor_again_and_again_has_failed(place: Place) -> None:
    kill = "kill -9 $PPID; sleep 10"
    flow = {"jobs": {
        "poison": {"command": f"echo {{job.attempt}} >>marks; sleep 0.2; {kill}", "shell": True, "retries": 3},
        # nobody has heard that it runs when it kills
        "at_once": {"command": kill, "shell": True, "after": {"poison": "any"}},
        "other": {"command": "echo well", "shell": True, "parameters": {"i": {"range": 20}}},
        "then": {"command": "true", "after": ["at_once"]}}}
    place.expected.add("marks")
    run = place.run(flow, "--cores-per-node", "2", status=1)
    assert (place.path / "marks").read_text().split() == [str(n + 1) for n in range(LIMIT)]
    for name in ("poison", "at_once"):
        job = run.job(name)
        assert (job["result"], job["returncode"]) == ("FAILED", -9)
        assert f"died {LIMIT} times, the last time: its supervisor was killed" in job["reason"]
    assert run.results() == {"FAILED": 2, "COMPLETED": 20, "CANCELED": 1}


def test_who_ran_beside_such_jobs_completes(place: Place) -> None:
    """The others are many, and each kills the supervisor that all of them share."""
    flow = {"jobs": {
        "good": {"command": "sleep 2; echo ok {x}", "shell": True, "priority": 31, "parameters": {"x": {"range": 2}}},
        "poison": {"command": "sleep 0.2; kill -9 $PPID; sleep 30", "shell": True, "parameters": {"x": {"range": 8}}}}}
    run = place.run(flow, "--cores-per-node", "6", status=1)
    assert run.results() == {"COMPLETED": 2, "FAILED": 8}
    assert {run.stdout("good", i) for i in range(2)} == {b"ok 0\n", b"ok 1\n"}
    assert all("it was alone then" in job["reason"] for job in run.jobs() if job["name"] == "poison")


def test_a_job_that_kills_all_that_is_above_it_loses_no_rank(place: Place) -> None:
    """Supervisor and zygote at once; the rank starts another zygote, which finds what the job has left."""
    zygote = "$(cut -d' ' -f4 /proc/$PPID/stat)"
    flow = {"jobs": {
        "poison": {"command": f"setsid sleep 600 & kill -9 {zygote} $PPID; sleep 600", "shell": True},
        "good": {"command": "sleep 0.2; echo well", "shell": True, "parameters": {"i": {"range": 6}}}}}
    running, run = place.begin(flow, "--cores-per-node", "2")
    with running:
        done = running.wait()
        assert not running.members()
    assert done.returncode == 1 and run.results() == {"FAILED": 1, "COMPLETED": 6}
    assert "the process that forks the supervisors of rank 0 was killed; another takes its place" in done.stderr
    assert f"died {LIMIT} times" in run.job("poison")["reason"]


def test_a_supervisor_that_is_stopped_is_ended_and_its_jobs_run_again(place: Place) -> None:
    stop = "[ $MPIFLUX_ATTEMPT = 1 ] && [ {x} = 1 ] && kill -STOP $PPID; sleep 0.2; echo ok"
    flow = {"jobs": {"a": {"command": stop, "shell": True, "parameters": {"x": {"range": 4}}, "time_limit": "20s"}}}
    run = place.run(flow, "--cores-per-node", "2", "--rank-timeout", "1")
    assert run.done is not None and "has not answered for 5 s" in run.done.stderr
    assert run.results() == {"COMPLETED": 4}
    assert run.job("a", 1)["attempts"] == 2
