"""The commands that read a run directory: while the run goes on, and when it has ended."""

from __future__ import annotations

import csv
import io
import json
import signal
import threading
import time
from pathlib import Path

import pytest

from mpiflux.store import runlock
from mpiflux.store.journal import Journal
from mpiflux.store.reader import open_run
from tests.support.runs import Place, counted, ready, until


def test_a_live_run_answers_every_query(place: Place) -> None:
    flow = {"jobs": {"done": {"command": "echo finished", "priority": 31},
                     "now": {"command": counted("echo partial; sleep {s}"), "shell": True,
                             "parameters": {"s": [60, 60, 60]}},
                     "later": {"command": "true", "after": "now"}}}
    running, run = place.begin(flow, "--cores-per-node", "2")
    name = run.directory.name
    with running:
        ready(place, 2, running)
        until(lambda: run.results().get("RUN") == 2, "two are seen to run")
        shown = json.loads(place.call("jobs", name, "-a", "--json").stdout)
        assert [job["state"] for job in shown] == ["INACTIVE", "RUN", "RUN", "SCHED", "DEPEND"]
        assert "now[0]" in place.call("jobs", name).stdout
        until(lambda: run.stdout("now", 0) == b"partial\n", "output of a running job is there")
        record = json.loads(place.call("job", "show", "now.0", name, "--json").stdout)
        assert record["state"] == "RUN" and record["t_start"] and record["nodes"]
        assert "start" in place.call("job", "eventlog", "2", name).stdout
        assert place.call("kvs", "ls", "job.1", name).stdout
        owned = json.loads(place.call("resources", name, "--json").stdout)
        assert owned["nodes"][0]["cores_busy"] == "0-1"
        assert "root" in place.call("tree", name).stdout
        assert len(place.call("export", name, "--format", "csv").stdout.splitlines()) == 6
        assert len(json.loads(place.call("export", name, "--format", "json").stdout)) == 5
        # somebody else must not write to it meanwhile
        busy = place.call("run", f"{name}.yaml", "--run-dir", name, "--resume", status=2)
        assert "Traceback" not in busy.stderr and name in busy.stderr
        running.signal(signal.SIGINT)
        assert running.wait().returncode == 130


def test_exports_of_a_finished_run(place: Place) -> None:
    flow = {"jobs": {"a": {"command": "printf '%s' '\"{x}\",\n'", "shell": True, "parameters": {"x": [1.5, 2, "z,z"]}},
                     "b": {"command": "exit 3", "shell": True}}}
    run = place.run(flow, status=1)
    name = run.directory.name
    place.expected |= {"out.csv", "out.json"}
    place.call("export", name, "--output", "out.csv", "--with-output")
    place.call("export", name, "--output", "out.json", "--with-output")
    rows = list(csv.DictReader(io.StringIO((place.path / "out.csv").read_text(), newline="")))
    records = json.loads((place.path / "out.json").read_text())
    assert records == run.jobs()
    assert [row["stdout"] for row in rows] == [record["stdout"] for record in records] == [
        '"1.5",\n', '"2",\n', '"z,z",\n', ""]
    assert [row["params.x"] for row in rows] == ["1.5", "2", "z,z", ""]
    assert [row["returncode"] for row in rows] == ["0", "0", "0", "3"]
    filtered = json.loads(place.call("export", name, "--format", "json", "--filter", "failed").stdout)
    assert [record["id"] for record in filtered] == [4]


def test_a_file_that_its_writer_has_just_made_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.db").touch()
    monkeypatch.setattr(runlock, "held", lambda directory: True)

    def write() -> None:
        time.sleep(0.2)
        Journal(tmp_path, durable=False).close()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with open_run(str(tmp_path)) as reader:
            assert reader.total == 0
    finally:
        writer.join()
