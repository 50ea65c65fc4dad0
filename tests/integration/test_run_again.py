"""Resumed with another workflow file, on another machine, and with jobs that are to run again."""

from __future__ import annotations

import signal
import sys
from typing import Any

from tests.support.runs import Place, counted, marks, ready, until


def test_what_changed_is_told_and_runs_again_only_when_asked(place: Place) -> None:
    one: dict[str, Any] = {"command": "echo {job.id} >>marks; test {i} != $(cat limit)", "shell": True,
                           "parameters": {"i": {"range": 4}}}
    each = {"command": counted("true"), "shell": True, "parameters": {"i": {"range": 4}}, "after": {"a": "each"}}
    last = {"command": counted("true"), "shell": True, "after": ["b"]}
    flow: dict[str, Any] = {"jobs": {"a": one, "b": each, "c": last, "d": {"command": "true"}}}
    place.write("limit", "2")
    marks(place)
    run = place.run(flow, status=1)
    assert run.results() == {"COMPLETED": 7, "FAILED": 1, "CANCELED": 2}
    before = marks(place)
    place.write("limit", "9")
    new = {"command": "true", "after": ["c"]}
    flow = {"jobs": {"e": new, "c": last | {"time_limit": "1h"}, "a": one | {"env": {"X": "1"}}, "b": each}}

    foreseen = place.resume(run, flow, "--rerun", "failed", "--dry-run")
    assert foreseen.done is not None and "1 of a, 1 of b, 1 of c" in foreseen.done.stdout
    assert "7 jobs stay as they are, 1 job had not ended" in foreseen.done.stdout and marks(place) == before

    run = place.resume(run, flow, "--hierarchy", "none", "--cores-per-node", "3", status=1)
    told = run.done.stderr if run.done else ""
    assert "a: env changed since 4 of its 4 jobs ended" in told and "--rerun-changed" in told
    assert "c: time_limit changed" in told and "d: not in the workflow file any more" in told and "e: new" in told
    assert marks(place) == before and run.job("e")["result"] == "CANCELED"

    run = place.resume(run, flow, "--rerun", "failed", ranks=2)
    assert run.done is not None and "4 jobs to be run again: 1 of a, 1 of b, 1 of c, 1 of e" in run.done.stderr
    assert run.results() == {"COMPLETED": 11} and run.job("a", 2)["attempts"] == 2
    after = marks(place)
    assert {id: n for id, n in (after - before).items() if id > 0} == {3: 1, 7: 1, 9: 1}

    run = place.resume(run, flow, "--rerun-changed")
    assert {id: n for id, n in (marks(place) - after).items() if id > 0} == {1: 1, 2: 1, 4: 1}
    assert run.results() == {"COMPLETED": 11} and [run.job("a", i)["attempts"] for i in range(4)] == [2, 2, 2, 2]
    after = marks(place)
    assert place.resume(run, flow, "--rerun-changed").results() == {"COMPLETED": 11} and marks(place) == after


def test_another_number_of_jobs_is_refused_or_another_entry(place: Place) -> None:
    def flow(n: int) -> dict[str, Any]:
        return {"jobs": {"a": {"command": "echo {i}", "parameters": {"i": [f"{n}.{i}" for i in range(n)]}},
                         "b": {"command": "true", "after": ["a"]}}}

    run = place.run(flow(2))
    refused = place.resume(run, flow(3), status=2)
    assert refused.done is not None and "a had 2 jobs and has 3 now" in refused.done.stderr
    unknown = place.resume(run, flow(2), "--rerun", "nobody", status=2)
    assert unknown.done is not None and "'nobody'" in unknown.done.stderr and "Traceback" not in unknown.done.stderr
    run = place.resume(run, flow(3), "--rerun-changed")
    assert [(job["id"], job["name"]) for job in run.jobs()] == [
        (1, "a~1"), (2, "a~1"), (3, "b"), (4, "a"), (5, "a"), (6, "a")]
    assert run.results() == {"COMPLETED": 6} and run.stdout("a", 2) == b"3.2\n"
    assert "--resume" in place.call("run", f"{run.directory.name}.yaml", "--run-dir", run.directory.name, "--rerun",
                                    "failed", status=2).stderr


def test_a_longer_entry_keeps_what_has_run(place: Place) -> None:
    """More seeds for each rho: no element is where it was. Who follows element by element is longer too."""
    place.expected.add("ran")

    def flow(seeds: list[int]) -> dict[str, Any]:
        grid = {"rho": [1.5, 2.5], "seed": seeds}
        say = "echo {job.name} {rho} {seed} {job.index} $MPIFLUX_JOB_INDEX | tee -a ran"
        return {"jobs": {"sim": {"command": say, "shell": True, "parameters": grid},
                         "post": {"command": say, "shell": True, "parameters": grid, "after": {"sim": "each"}},
                         "end": {"command": "true", "after": ["post"]}}}

    run = place.run(flow([1, 2]))
    foreseen = place.call("run", place.write("n.yaml", flow([1, 2, 3])).name, "--run-dir", run.directory.name,
                          "--resume", "--dry-run").stdout
    assert "sim: 2 jobs more in the workflow file, from sim[4] on" in foreseen
    (place.path / "ran").unlink()
    run = place.resume(run, flow([1, 2, 3]))
    assert sorted((place.path / "ran").read_text().splitlines()) == [
        f"{name} {rho} 3 {i} {i}" for name in ("post", "sim") for i, rho in ((4, 1.5), (5, 2.5))]
    early = "end ended before {} more jobs of post, which it waits for: --rerun end"
    assert run.done is not None and early.format(2) in run.done.stdout + run.done.stderr
    run = place.resume(run, flow([0, 1, 3, 4]))
    assert run.done is not None and early.format(6) in run.done.stdout + run.done.stderr
    assert "sim: 2 jobs are not in the workflow file any more; 2 jobs that ended stay" in (
        run.done.stdout + run.done.stderr)
    assert run.results() == {"COMPLETED": 21}
    sims = [job for job in run.jobs() if job["name"] == "sim"]
    assert [job["index"] for job in sims] == list(range(10)) and all(job["attempts"] == 1 for job in run.jobs())
    assert sorted((job["params"]["rho"], job["params"]["seed"]) for job in sims) == [
        (rho, seed) for rho in (1.5, 2.5) for seed in range(5)]
    run = place.resume(run, flow([0, 1, 3, 4]), "--rerun-changed")
    assert [job["attempts"] for job in run.jobs() if job["attempts"] != 1] == [2] and run.job("end")["attempts"] == 2
    shown = place.call("job", "show", "sim[9]", run.directory.name).stdout
    assert "sim[9]" in shown and "rho=2.5 seed=4" in shown


def test_elements_that_are_gone_hold_nobody_up_and_run_when_they_are_back(place: Place) -> None:
    def flow(*values: float) -> dict[str, Any]:
        return {"jobs": {"a": {"command": "sleep {x}", "parameters": {"x": list(values)}},
                         "b": {"command": "true", "after": ["a"]}}}

    run = place.run(flow(0, 0.01, 2, 60), "--cores-per-node", "4", "--time-limit", "1s", status=143)
    run = place.resume(run, flow(0, 0.01))
    assert run.done is not None and "a: 2 jobs are not in the workflow file any more; 2 jobs not run" in (
        run.done.stdout + run.done.stderr)
    assert run.results() == {"COMPLETED": 3, "CANCELED": 2}
    run = place.resume(run, flow(0, 0.01, 2))
    assert run.results() == {"COMPLETED": 4, "CANCELED": 1} and run.job("a", 2)["result"] == "COMPLETED"


def test_of_an_entry_only_the_elements_run_again_that_changed(place: Place) -> None:
    def flow(*values: int) -> dict[str, Any]:
        return {"jobs": {"a": {"command": "echo {x}", "parameters": {"x": list(values)}}}}

    run = place.run(flow(1, 2, 3))
    run = place.resume(run, flow(1, 9, 3))
    assert run.done is not None
    assert "parameters changed since 1 of its 3 jobs ended" in run.done.stdout + run.done.stderr
    assert [run.stdout("a", i) for i in range(3)] == [b"1\n", b"2\n", b"3\n"]
    run = place.resume(run, flow(1, 9, 3), "--rerun-changed")
    assert [run.stdout("a", i) for i in range(3)] == [b"1\n", b"9\n", b"3\n"]
    assert [job["attempts"] for job in run.jobs()] == [1, 2, 1]


def test_keys_retries_and_elements_outlive_everything_killed(place: Place) -> None:
    # of two tries, job 2's first is before the kill
    flow: dict[str, Any] = {"jobs": {
        "a": {"command": "mpiflux kvs put k.{i} {i}; echo {job.id} >>marks; test {i} != 1", "shell": True,
              "retries": 1, "parameters": {"i": {"range": 3}}, "env": {"PATH": f"{place.path}:/usr/bin:/bin"}},
        "b": {"command": counted("sleep {s}"), "shell": True, "parameters": {"i": {"range": 3}, "s": ["${s}"]},
              "after": {"a": "each"}}}, "variables": {"s": 60}}
    place.write("mpiflux", f'#!/bin/sh\nexec {sys.executable} -m mpiflux "$@"\n').chmod(0o755)
    running, run = place.begin(flow, "--cores-per-node", "4")
    with running:
        ready(place, 6, running)
        until(lambda: run.job("a", 1)["result"] == "FAILED", "that the second try has failed is on disk")
        running.process.send_signal(signal.SIGKILL)
        running.wait()
    again = dict(flow, jobs=dict(flow["jobs"], b=dict(flow["jobs"]["b"], command=counted("true"))))
    run = place.resume(run, again, "--cores-per-node", "2", "--hierarchy", "core", status=1)
    assert run.results() == {"COMPLETED": 4, "FAILED": 1, "CANCELED": 1}
    assert run.job("a", 1)["attempts"] == 2 and marks(place)[2] == 2
    assert place.call("kvs", "get", "k.2", run.directory.name).stdout.strip() == "2"
