"""Commands that read a run directory."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mpiflux.cli import main
from tests.support import rundir

ROOT = Path(__file__).parents[2]
RECORD = ["id", "name", "index", "params", "state", "result", "returncode", "attempts", "tasks", "nodes", "cores",
          "gpus", "t_submit", "t_start", "t_finish", "utime", "stime", "maxrss", "reason", "truncated"]


@pytest.fixture(autouse=True)
def _nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("MPIFLUX_RUN_DIR", "MPIFLUX_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return str(rundir.finished(tmp_path_factory.mktemp("run") / "done"))


def run(capfdbinary, *argv):
    status = main.main([str(word) for word in argv])
    out, err = capfdbinary.readouterr()
    return status, out.decode("utf-8", "surrogateescape"), err.decode("utf-8", "surrogateescape")


def column(out, name):
    """One column of a table that is aligned by spaces."""
    head, *rows = out.splitlines()
    at = head.index(name)
    if name in ("ID", "EXIT", "TASKS", "TIME"):
        return [row[:at + len(name)].rpartition("  ")[2].strip() for row in rows]
    return [row[at:].split("  ")[0].strip() for row in rows]


def test_the_table(capfdbinary, done):
    status, out, err = run(capfdbinary, "jobs", done)
    assert status == 0
    assert column(out, "JOB") == [f"sim[{i}]" for i in range(6)] + ["train[0]"] + [f"late[{i}]" for i in range(3)]
    assert column(out, "STATUS") == ["COMPLETED", "FAILED", "FAILED", "TIMEOUT", "CANCELED", "COMPLETED", "COMPLETED",
                                     "DEPEND", "DEPEND", "DEPEND"]
    assert column(out, "EXIT") == ["0", "3", "SIGSEGV", "SIGTERM", "", "0", "0", "", "", ""]
    assert column(out, "TIME")[:5] == ["1.50s", "1.50s", "1.50s", "1.50s", "-"] and column(out, "TIME")[6] == "1m20s"
    assert column(out, "INFO")[:4] == ["x=0 mode=fast", "x=0 mode=slow", "x=0.5 mode=fast",
                                       "exceeded its time limit of 2 s"]
    assert "node[1-2]" in out and "0-1;2-3" in out and "\x1b" not in out
    assert err.startswith("10 jobs: 3 completed, 2 failed, 1 timed out, 1 canceled, 3 waiting")


@pytest.mark.parametrize(("text", "ids"), [
    ("failed", [2, 3]), ("FAILED,timeout", [2, 3, 4]), ("sim", [1, 2, 3, 4, 5, 6]), ("sim,completed", [1, 6]),
    ("sim[0-1,3],late.2", [1, 2, 4, 10]), ("7,8", [7, 8]), ("pending", [8, 9, 10]), ("active,cancelled", [5, 8, 9, 10]),
    ("running", []),
])
def test_filters(capfdbinary, done, text, ids):
    status, out, _ = run(capfdbinary, "jobs", done, "--filter", text, "--json")
    assert status == 0 and [record["id"] for record in json.loads(out)] == ids
    _, out, _ = run(capfdbinary, "export", done, "--filter", text)
    assert [int(row["id"]) for row in csv.DictReader(io.StringIO(out))] == ids


def test_json_records_are_the_contract(capfdbinary, done):
    _, out, _ = run(capfdbinary, "jobs", done, "--json")
    records = json.loads(out)
    assert all(list(record) == RECORD for record in records) and len(records) == 10
    _, out, _ = run(capfdbinary, "jobs", "--with-output", "--json", "-n", "2", "--run-dir", done)
    first, second = json.loads(out)
    assert list(first) == [*RECORD, "stdout", "stderr"]
    assert first["stdout"].encode("utf-8", "surrogateescape") == rundir.STDOUT
    assert second["stderr"].encode("utf-8", "surrogateescape") == rundir.STDERR


@pytest.mark.parametrize("words", [
    "job kill sim.1", "job kill 1", "job kill nonsense", "cancel 1", "cancel --all", "cancel --filter run",
    "job cancel sim", "job urgency sim hold", "events", "events sim", "kvs put a 1", "kvs put -N b a 1", "kvs rm a",
    "kvs rm -R a", "kvs watch a", "pub a 1", "sub a", "queue", "queue status", "queue drain", "queue stop",
    "queue start", "queue enable", "queue disable", "uptime", "submit true", "submit --cc 1-2 --wait true",
    "submit --watch true", "bulksubmit --run-dir DONE echo {} ::: 1",
])
def test_what_needs_a_live_instance_says_so(capfdbinary, done, words):
    argv = [done if word == "DONE" else word for word in words.split()]
    at = [] if done in argv else ["--run-dir", done]
    name = " ".join(argv[:2]) if argv[0] in ("job", "kvs") else argv[0]
    place = len(name.split())
    status, out, err = run(capfdbinary, *argv[:place], *at, *argv[place:])
    assert (status, out) == (1, "") and err.count("\n") == 1
    assert err.startswith(f"mpiflux: {name} needs a live instance: ")


def test_a_format_of_ones_own(capfdbinary, done):
    _, out, _ = run(capfdbinary, "jobs", done, "--filter", "2,5,7",
                    "--format", "{id:>3}|{job:<8}|{exit}|{runtime:6.2f}|{params[x]:.1f}|{nodes}|{cores}|{maxrss}")
    assert out.splitlines() == ["  2|sim[1]  |3|  1.50|0.0|node1|0-1|2097152", "  5|sim[4]  |-|     -|1.0|-|-|-",
                                "  7|train[0]|0| 80.00|-|node[1-2]|0-1;2-3|2097152"]
    _, out, _ = run(capfdbinary, "jobs", done, "--filter", "1", "--format", "{params} {stdout}")
    assert out.encode("utf-8", "surrogateescape") == b"x=0 mode=fast " + rundir.STDOUT + b"\n"


@pytest.mark.parametrize(("text", "said"), [
    ("{idd}", "did you mean 'id'"), ("{id.f58}", "here it is {id}"), ("{ntasks:>3}", "here it is {tasks}"),
    ("{id.__class__}", "no field"), ("{name[0]}", "only {name}"), ("{", "--format"),
    ("{id:zz}", "--format"), ("{id:>999999999999999}", "--format"), ("{id:{params.__class__}}", "a width"),
    ("{params.x}", "no field"), ("{params[x].real}", "only {name}"),
])
def test_a_format_that_is_none(capfdbinary, done, text, said):
    status, _, err = run(capfdbinary, "jobs", done, "--format", text)
    assert status == 2 and said in err and "Traceback" not in err


def test_count(capfdbinary, done):
    _, out, err = run(capfdbinary, "jobs", done, "-n", "3")
    assert len(out.splitlines()) == 4 and "3 of 10 shown" in err


def test_a_live_run_shows_what_matters_first(capfdbinary, tmp_path):
    with rundir.live(tmp_path / "live"):
        _, out, err = run(capfdbinary, "jobs", "live")
        assert column(out, "ID") == ["8", "2", "3", "4", "5", "9", "10"] and "going on" in err
        _, out, _ = run(capfdbinary, "jobs", "live", "--json")
        assert [record["id"] for record in json.loads(out)] == [2, 3, 4, 5, 8, 9, 10]
        assert len(json.loads(run(capfdbinary, "jobs", "live", "-a", "--json")[1])) == 10
        _, out, _ = run(capfdbinary, "resources", "live", "--json")
        assert [node["cores_busy"] for node in json.loads(out)["nodes"]] == ["0-1", ""]


def test_show(capfdbinary, done):
    status, out, _ = run(capfdbinary, "job", "show", "sim[1]", done)
    assert status == 0
    for text in ("sim[1]  job 2  FAILED  exit 3", "sim --x 0.0", "node1, cores 0-1", "ran 1.50s", "user 250ms",
                 "memory 2 MiB", "finish    returncode=3 result=FAILED", "ValueError: mass  [31m2"):
        assert text in out, text
    assert "SIGSEGV" in run(capfdbinary, "job", "show", "3", done)[1]
    assert "script of 2 lines" in run(capfdbinary, "job", "show", "train", done)[1]
    assert "echo 'a b'" in run(capfdbinary, "job", "show", "late.0", done)[1]


def test_show_as_json(capfdbinary, done):
    job = json.loads(run(capfdbinary, "job", "show", "7", done, "--json")[1])
    assert list(job) == [*RECORD, "jobspec", "R", "eventlog"]
    assert job["cores"] == ["0-1", "2-3"] and job["R"]["execution"]["nodelist"] == ["node1", "node2"]
    assert [event["name"] for event in job["eventlog"]][-1] == "clean"
    assert "stdout" in json.loads(run(capfdbinary, "job", "show", "7", done, "--json", "--with-output")[1])


def test_eventlog(capfdbinary, done):
    _, out, _ = run(capfdbinary, "job", "eventlog", "2", done)
    assert out.splitlines()[0] == "100.000000 submit urgency=16 name=sim"
    events = json.loads(run(capfdbinary, "job", "eventlog", "2", done, "--json")[1])
    assert [line.split()[1] for line in out.splitlines()] == [event["name"] for event in events]


def test_attach_and_wait_on_a_run_that_is_over(capfdbinary, done):
    assert main.main(["job", "attach", "1", done]) == 0
    assert capfdbinary.readouterr() == (rundir.STDOUT, b"")
    assert main.main(["job", "attach", "2", done]) == 3
    assert capfdbinary.readouterr() == (b"", rundir.STDERR)
    assert [main.main(["job", "wait", str(id), done]) for id in (1, 2, 3, 4, 5)] == [0, 3, 139, 143, 1]
    assert main.main(["job", "wait", "sim", done]) == 143
    status, _, err = run(capfdbinary, "job", "wait", "8", done)
    assert status == 1 and "has not ended" in err


def test_attach_follows_a_live_run(capfdbinary, tmp_path):
    with rundir.live(tmp_path / "live") as journal:
        assert run(capfdbinary, "job", "wait", "8", "live", "-t", "0.01")[0] == 124
        later = threading.Timer(0.3, rundir.end_job_8, [journal])
        later.start()
        status, out, err = run(capfdbinary, "job", "attach", "8", "live")
        later.join()
        assert (status, out, err) == (5, "begin\nmiddle\nend\n", "e\n")


def test_kvs(capfdbinary, done):
    assert run(capfdbinary, "kvs", "ls", done)[:2] == (0, "a.\nraw\njob.\n")
    assert run(capfdbinary, "kvs", "ls", "a", done)[1].split() == ["a.b", "a.text"]
    assert json.loads(run(capfdbinary, "kvs", "ls", "job.2", "--json", "--run-dir", done)[1])[0] == "job.2.jobspec"
    assert run(capfdbinary, "kvs", "get", "a.b", done)[1] == '{"n": [1, 2]}\n'
    assert run(capfdbinary, "kvs", "get", "a.text", done)[1] == "hello\n"
    assert run(capfdbinary, "kvs", "get", "a.text", done, "--json")[1] == '"hello"\n'
    assert main.main(["kvs", "get", "raw", done]) == 0
    assert capfdbinary.readouterr()[0] == b"\x00\xff"
    assert json.loads(run(capfdbinary, "kvs", "get", "raw", done, "--json")[1]) == "\x00\udcff"
    for key in ("nope", "a", "job.99.stdout", "a..b"):
        status, out, err = run(capfdbinary, "kvs", "get", key, done)
        assert (status, out) == (1, "") and err.count("\n") == 1


def test_resources_and_tree(capfdbinary, done):
    _, out, _ = run(capfdbinary, "resources", done)
    assert out.splitlines()[0] == "2 nodes, 8 cores, 2 GPUs, 2 ranks, 1 scheduler"
    assert out.splitlines()[2].split() == ["node[1-2]", "0-3", "0", "1", "GiB"]
    assert [node["node"] for node in json.loads(run(capfdbinary, "resources", done, "--json")[1])["nodes"]] == [
        "node1", "node2"]
    assert run(capfdbinary, "tree", done)[1] == rundir.PLAN + "\n"
    assert json.loads(run(capfdbinary, "tree", done, "--json")[1])["text"] == rundir.PLAN


def test_ways_to_name_the_directory(capfdbinary, done, monkeypatch, tmp_path):
    expected = run(capfdbinary, "job", "eventlog", "2", done)
    assert expected[0] == 0
    assert run(capfdbinary, "job", "eventlog", "2", "--run-dir", done) == expected
    assert run(capfdbinary, "job", "eventlog", done, "2") == expected
    with monkeypatch.context() as patch:
        patch.setenv("MPIFLUX_RUN_DIR", done)
        assert run(capfdbinary, "job", "eventlog", "2") == expected
    with monkeypatch.context() as patch:
        patch.setenv("MPIFLUX_URI", f"rundir://{done}")
        assert run(capfdbinary, "job", "eventlog", "2") == expected
    with monkeypatch.context() as patch:
        patch.chdir(done)
        assert run(capfdbinary, "job", "eventlog", "2") == expected


@pytest.mark.parametrize("words", ["jobs {}", "job show 1 {}", "kvs get a {}", "tree {}", "export --run-dir {}"])
def test_what_is_no_run_directory(capfdbinary, tmp_path, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "run.db").write_text("not a database")
    for name in ("absent", "empty", "wrong"):
        status, out, err = run(capfdbinary, *words.format(name).split())
        assert (status, out) == (2, "") and err.count("\n") == 1 and name in err


def test_wrong_questions(capfdbinary, done):
    for words, said in (("jobs", "which run?"), (f"job show 99 {done}", "no job 99"),
                        (f"job show sim {done}", "6 jobs"),
                        (f"job show smi.1 {done}", "no job 'smi.1'"), (f"jobs {done} --filter faild", "'failed'"),
                        (f"jobs {done} --json --format x", "exclude"), (f"jobs {done} --run-dir /other", "two run")):
        status, out, err = run(capfdbinary, *words.split())
        assert (status, out) == (2, "") and said in err and err.count("\n") == 1, words


def test_a_reader_that_leaves_is_no_error(done):
    for words in ("jobs -a", "export --format json --with-output", "jobs --json", "job show 1"):
        command = f"{sys.executable} -m mpiflux {words} --run-dir {done} | true"
        ran = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert "Traceback" not in ran.stderr and "BrokenPipe" not in ran.stderr


@pytest.mark.parametrize("words", [
    "jobs -a", "export --format csv", "export --format json", "export --output /dev/full", "kvs get job.1.stdout",
    "tree",
])
def test_output_that_cannot_be_written(done, words):
    with open("/dev/full", "wb") as full:
        ran = subprocess.run([sys.executable, "-m", "mpiflux", *words.split(), "--run-dir", done], cwd=ROOT,
                             stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert ran.returncode == 1 and ran.stderr.count("\n") == 1 and "No space left on device" in ran.stderr
    assert ran.stderr.startswith("mpiflux: " + ("/dev/full" if "--output" in words else "standard output"))


def test_a_reader_that_leaves_is_told_by_the_status_alone(done):
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run([sys.executable, "-m", "mpiflux", "export", done], cwd=ROOT, stdout=writer,
                         stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (141, "")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed(done, closed):
    command = f"{sys.executable} -m mpiflux jobs {done} {closed}"
    ran = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0 and "Traceback" not in ran.stderr
    assert ("sim[0]" in ran.stdout) == (">&-" not in closed.split())


def test_colours_on_a_terminal_only(done):
    for no_colour in ("", "1"):
        parent, child = os.openpty()
        environ = {**os.environ, "TERM": "xterm", "NO_COLOR": no_colour}
        try:
            subprocess.run([sys.executable, "-m", "mpiflux", "jobs", done], cwd=ROOT, env=environ, stdout=child,
                           stderr=subprocess.DEVNULL, timeout=60, check=True)
            data = os.read(parent, 65536)
        finally:
            os.close(child)
            os.close(parent)
        assert (b"\x1b[31m" in data) == (not no_colour)
