"""Variables whose values reach the jobs that name them, and no file."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

from tests.support.runs import Place, marks, ready

VALUE = "s3cr3t-0123456789"


def holding(directory: Path, value: str = VALUE) -> list[str]:
    """The files that have the value in them."""
    return [str(path.relative_to(directory)) for path in directory.rglob("*")
            if path.is_file() and value.encode() in path.read_bytes()]


def test_a_secret_reaches_who_names_it_and_nothing_that_is_kept(place: Place) -> None:
    flow: dict[str, Any] = {"jobs": {
        "named": {"command": "printf %s $KEY | wc -c", "shell": True, "secrets": ["KEY"]},
        "other": {"command": "printf %s $KEY | wc -c", "shell": True}}}
    run = place.run(flow, ranks=2, env={"KEY": VALUE})
    assert run.stdout("named") == b"17\n" and run.stdout("other") == b"0\n"
    name = run.directory.name
    shown = place.call("job", "show", "1", name, "--json", "--with-output").stdout
    assert json.loads(shown)["jobspec"]["secrets"] == ["KEY"]
    shown += place.call("job", "eventlog", "1", name).stdout + place.call("kvs", "ls", "-R", name).stdout
    assert VALUE not in shown and not holding(place.path)


def test_without_the_variable_nothing_starts_and_a_resumption_reads_it_again(place: Place) -> None:
    flow: dict[str, Any] = {"secrets": ["KEY"], "jobs": {"a": {
        "command": "echo $KEY >told; echo {job.id} >>marks; sleep 60", "shell": True}}}
    place.write("flow.json", flow)
    refused = place.call("run", "flow.json", "--run-dir", "none", status=2)
    assert "secrets: KEY is not set" in refused.stderr and "flow.json:1:" in refused.stderr
    running, run = place.begin(flow, env={"KEY": VALUE})
    with running:
        ready(place, 1, running)
        running.process.send_signal(signal.SIGKILL)
        running.wait()
    place.expected |= {"told"}
    assert marks(place)[1] == 1 and (place.path / "told").read_text() == VALUE + "\n"
    (place.path / "told").unlink()
    name = run.directory.name
    place.call("run", f"{name}.yaml", "--run-dir", name, "--resume", status=2)
    place.write(f"{name}.yaml", {**flow, "jobs": {"a": {"command": "echo $KEY >told", "shell": True}}})
    place.call("run", f"{name}.yaml", "--run-dir", name, "--resume", env={"KEY": "another"})
    assert (place.path / "told").read_text() == "another\n"
    (place.path / "told").unlink()
    assert not holding(place.path) and not holding(place.path, "another")


def test_a_submission_brings_its_own(place: Place) -> None:
    steer = ("mpiflux submit --wait --secret KEY sh -c 'echo ${#KEY}' && mpiflux submit --secret NONE true; "
             "mpiflux job show 1 --json")
    place.write("mpiflux", f'#!/bin/sh\nexec {sys.executable} -m mpiflux "$@"\n').chmod(0o755)
    name = place.new()
    done = place.call("start", "--run-dir", name, "--", "sh", "-c",
                      f"PATH=.:$PATH KEY={VALUE[::-1]}; export KEY PATH; {steer}")
    assert "--secret=NONE: no variable" in done.stderr
    assert json.loads(done.stdout[done.stdout.index("{"):done.stdout.rindex("}") + 1])["jobspec"]["secrets"] == ["KEY"]
    assert place.call("job", "attach", "1", name).stdout == "17\n" and not holding(place.path / name, VALUE[::-1])
