"""Tables of jobs for other programs."""

from __future__ import annotations

import csv
import io
import json
import os

import pytest

from mpiflux.cli import main
from mpiflux.report.export import column_names, flat, write_csv, write_json
from mpiflux.store.reader import open_run
from tests.support import rundir


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return rundir.finished(tmp_path_factory.mktemp("run") / "done")


@pytest.fixture(scope="module")
def records(done):
    with open_run(done) as reader:
        return list(reader.jobs(with_output=True))


def table(path):
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def test_csv(records):
    file = io.StringIO()
    write_csv(file, records, column_names(rundir.GROUPS))
    head, *rows = csv.reader(io.StringIO(file.getvalue()))
    assert head == ["id", "name", "index", "params.x", "params.mode", "state", "result", "returncode", "attempts",
                    "tasks", "nodes", "cores", "gpus", "t_submit", "t_start", "t_finish", "utime", "stime", "maxrss",
                    "reason"]
    assert rows[1] == ["2", "sim", "1", "0.0", "slow", "INACTIVE", "FAILED", "3", "1", "1", "node1", "0-1", "", "100.0",
                       "102.0", "103.5", "0.25", "0.5", "2097152", ""]
    seventh = dict(zip(head, rows[6], strict=True))
    assert (seventh["params.x"], seventh["nodes"], seventh["cores"], seventh["gpus"]) == ("", "node[1-2]", "0-1;2-3",
                                                                                         "0;0")
    assert dict(zip(head, rows[9], strict=True))["t_start"] == ""


def test_truth_values_and_odd_hosts(records):
    record = {**records[0], "params": {"flag": True, "n": 1}, "nodes": ["a b"]}
    file = io.StringIO()
    write_csv(file, [record], ["params.flag", "params.n", "nodes"])
    assert file.getvalue().splitlines()[1] == "true,1,a b" and flat(record)["nodes"] == "a b"


def test_json_is_the_records(records):
    for chosen in (records, records[:1], []):
        file = io.StringIO()
        write_json(file, chosen)
        assert json.loads(file.getvalue()) == chosen


def test_files_by_their_names(done, tmp_path, capfd):
    assert main.main(["export", str(done), "--output", str(tmp_path / "t.csv"), "--with-output"]) == 0
    rows = table(tmp_path / "t.csv")
    assert len(rows) == 10 and rows[0]["stdout"].encode("utf-8", "surrogateescape") == rundir.STDOUT
    assert rows[1]["stderr"].encode() == rundir.STDERR
    assert main.main(["export", str(done), "-o", str(tmp_path / "t.json"), "--filter", "train,completed"]) == 0
    assert [record["id"] for record in json.loads((tmp_path / "t.json").read_text())] == [7]
    assert sorted(os.listdir(tmp_path)) == ["t.csv", "t.json"]
    assert "10 jobs" in capfd.readouterr().err


def test_only_columns_of_the_groups_that_are_there(done, tmp_path):
    main.main(["export", str(done), "-o", str(tmp_path / "t.csv"), "--filter", "late"])
    assert "params.x" not in table(tmp_path / "t.csv")[0]


def test_a_file_that_cannot_be_written(done, tmp_path, capfd):
    assert main.main(["export", str(done), "--output", str(tmp_path / "no" / "t.csv")]) == 1
    err = capfd.readouterr().err
    assert "cannot be written" in err and err.count("\n") == 1


def test_parquet(done, tmp_path, capfd):
    path = tmp_path / "t.parquet"
    try:
        import pyarrow.parquet as pq
    except ImportError:
        assert main.main(["export", str(done), "-o", str(path)]) == 2
        assert "pyarrow" in capfd.readouterr().err and not os.listdir(tmp_path)
        return
    assert main.main(["export", str(done), "-o", str(path), "--with-output"]) == 0
    rows = pq.read_table(path).to_pylist()
    assert [row["id"] for row in rows] == list(range(1, 11))
    assert rows[4]["params.x"] == 1.0 and rows[6]["params.x"] is None and rows[1]["returncode"] == 3
    assert rows[0]["stdout"] == rundir.STDOUT.decode("utf-8", "replace") and rows[9]["t_start"] is None
    assert os.listdir(tmp_path) == ["t.parquet"]


def test_parquet_needs_a_file(done, capfd):
    assert main.main(["export", str(done), "--format", "parquet"]) == 2
    assert "--output" in capfd.readouterr().err
