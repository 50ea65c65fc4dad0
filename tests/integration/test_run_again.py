"""Resumed with another workflow file, on another machine, and with jobs that are to run again."""

from __future__ import annotations

import signal
import sys
from typing import Any

from tests.support.runs import Place, counted, marks, ready


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
        return {"jobs": {"a": {"command": "echo {i}", "parameters": {"i": {"range": n}}},
                         "b": {"command": "true", "after": ["a"]}}}

    run = place.run(flow(2))
    refused = place.resume(run, flow(3), status=2)
    assert refused.done is not None and "a had 2 jobs and has 3 now" in refused.done.stderr
    unknown = place.resume(run, flow(2), "--rerun", "nobody", status=2)
    assert unknown.done is not None and "'nobody'" in unknown.done.stderr and "Traceback" not in unknown.done.stderr
    run = place.resume(run, flow(3), "--rerun-changed")
    assert [(job["id"], job["name"]) for job in run.jobs()] == [
        (1, "a~1"), (2, "a~1"), (3, "b"), (4, "a"), (5, "a"), (6, "a")]
    assert run.results() == {"COMPLETED": 6} and run.stdout("a", 2) == b"2\n"
    assert "--resume" in place.call("run", f"{run.directory.name}.yaml", "--run-dir", run.directory.name, "--rerun",
                                    "failed", status=2).stderr


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
        running.process.send_signal(signal.SIGKILL)
        running.wait()
    again = dict(flow, jobs=dict(flow["jobs"], b=dict(flow["jobs"]["b"], command=counted("true"))))
    run = place.resume(run, again, "--cores-per-node", "2", "--hierarchy", "core", status=1)
    assert run.results() == {"COMPLETED": 4, "FAILED": 1, "CANCELED": 1}
    assert run.job("a", 1)["attempts"] == 2 and marks(place)[2] == 2
    assert place.call("kvs", "get", "k.2", run.directory.name).stdout.strip() == "2"
