"""What jobs write comes back as it was written, and what became of them is what a shell would have said."""

from __future__ import annotations

import json
import os
import sys

import pytest

import mpiflux
from tests.support import commands
from tests.support.runs import Place


def test_every_byte_is_what_a_shell_gives(place: Place) -> None:
    commands.make_files(place)
    run = place.run(commands.workflow(), status=1)
    assert len(run.jobs()) == len(commands.LISTS) + len(commands.SHELL) + len(commands.SCRIPTS)
    assert commands.differences(run, place) == []


@pytest.mark.parametrize(("command", "code", "reason"), [
    (["no-such-program-anywhere", "x"], 127, "no-such-program-anywhere"),
    (["./missing"], 127, "./missing"),
    (["./data"], 126, "Permission denied"),
    (["/"], 126, "/"),
])
def test_what_cannot_be_executed_is_that_jobs_own_failure(
        place: Place, command: list[str], code: int, reason: str) -> None:
    commands.make_files(place)
    run = place.run({"jobs": {"bad": {"command": command}, "good": {"command": "echo well"}}}, status=1)
    bad, good = run.jobs()
    assert (bad["result"], bad["returncode"]) == ("FAILED", code)
    assert reason in bad["reason"]
    assert (good["result"], good["stdout"]) == ("COMPLETED", "well\n")
    assert run.done is not None and reason in run.done.stdout


def test_output_over_the_limit_is_dropped_and_marked(place: Place) -> None:
    flood = "import sys; sys.stdout.write('x' * 500000); sys.stderr.write('y' * 2000); sys.exit(0)"
    run = place.run({"output_limit": "100kB", "jobs": {"flood": {"command": [sys.executable, "-c", flood]}}})
    job = run.job("flood")
    assert job["result"] == "COMPLETED"
    assert job["stdout"].startswith("x" * 100_000) and len(job["stdout"].rstrip("x")) - 100_000 < 1000
    assert job["stdout"].count("x") < 110_000
    assert job["stderr"] == "y" * 2000
    shown = json.loads(place.call("job", "show", "1", run.directory.name, "--json").stdout)
    assert shown["truncated"] == ["stdout"]
    name = run.directory.name
    assert "only the beginning of its stdout was kept" in place.call("job", "attach", "1", name).stderr
    table = place.call("export", name, "--format", "csv", "--with-output").stdout
    assert table.splitlines()[0].endswith("stdout,stderr,truncated") and table.rstrip().endswith(",stdout")
    with mpiflux.connect(str(run.directory)) as flux:
        assert flux.job(1).truncated == ["stdout"]


def test_the_output_event_counts_what_was_sent_before_the_end(place: Place) -> None:
    flow = {"output_limit": "1000", "jobs": {
        "cut": {"command": "yes abc | head -c 5000; sleep 1.2; echo end", "shell": True},
        "whole": {"command": "echo one; echo two >&2; sleep 1.2; echo three", "shell": True}}}
    run = place.run(flow, "--cores-per-node", "2")
    assert run.stdout("cut") == (b"abc\n" * 250) and run.stdout("whole") == b"one\nthree\n"
    expected = [{"stdout": 1000, "stderr": 0, "truncated": ["stdout"]}, {"stdout": 10, "stderr": 4}]
    for id, context in enumerate(expected, 1):
        shown = json.loads(place.call("job", "show", str(id), run.directory.name, "--json").stdout)
        assert [event["context"] for event in shown["eventlog"] if event["name"] == "output"] == [context]
    assert "stdout, 1,000 bytes, cut off by output_limit" in place.call("job", "show", "1", run.directory.name).stdout


def test_measured_times_and_memory_are_those_of_the_process(place: Place) -> None:
    burn = "import time; e = time.process_time() + 0.4\nwhile time.process_time() < e: pass"
    fill = "x = bytearray(200 << 20); import time; time.sleep(0.1)"
    run = place.run({"jobs": {"burn": {"command": [sys.executable, "-c", burn]},
                              "fill": {"command": [sys.executable, "-c", fill]},
                              "sleep": {"command": "sleep 0.3"}}})
    burnt, filled, slept = run.jobs()
    assert 0.38 <= burnt["utime"] + burnt["stime"] <= 2.0
    assert 200 << 20 <= filled["maxrss"] <= 300 << 20
    assert slept["t_finish"] - slept["t_start"] >= 0.3
    assert slept["utime"] + slept["stime"] < 0.2
    for job in (burnt, filled, slept):
        assert job["t_submit"] <= job["t_start"] <= job["t_finish"]


def test_the_store_gives_output_as_bytes_to_pipes(place: Place) -> None:
    """``job attach`` and ``kvs get`` write what the job wrote, undecodable bytes and all."""
    run = place.run({"jobs": {"b": {"command": [sys.executable, "-c", commands.BYTES]}}})
    name = run.directory.name
    attached = os.fsencode(place.call("job", "attach", "1", name).stdout)
    assert attached == bytes(range(256)) * 7
    keys = place.call("kvs", "ls", "job.1", name).stdout.split()
    stored = next(key for key in keys if key.endswith("stdout"))
    full = stored if stored.startswith("job.") else f"job.1.{stored}"
    assert os.fsencode(place.call("kvs", "get", full, name).stdout) == bytes(range(256)) * 7
