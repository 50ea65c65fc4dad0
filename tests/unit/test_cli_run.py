"""What a person sees of a run, and whole runs from the command line."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mpiflux.cli import progress
from mpiflux.cli.progress import Lines, Printer, Speed
from mpiflux.cli.summary import failures, how_it_ended, last_line, resume_command, summary
from mpiflux.instance.options import RunInfo, RunOptions
from mpiflux.instance.view import View
from mpiflux.model.jobspec import Workflow
from mpiflux.model.resources import NodeResources
from mpiflux.overlay.plan import NodeInfo, make_plan
from mpiflux.store.jobtable import Counts
from tests.support import rundir

ROOT = Path(__file__).parents[2]
NODES = ("node1", "node2")


def info(run_dir="", **more):
    nodes = [NodeInfo(index=i, name=name, ranks=(i,), owner=(i,) * 4,
                      resources=NodeResources(node=i, cores=(0, 1, 2, 3), gpus=(0,))) for i, name in enumerate(NODES)]
    workflow = Workflow(name="demo", source="w.yaml", groups=rundir.GROUPS)
    return RunInfo(workflow, make_plan(nodes), str(run_dir), 2, NODES, 8, 2, **more)


def view(now=10.0, completed=0, failed=0, run=0, canceled=0, timeout=0, total=10, **more):
    inactive = completed + failed + canceled + timeout
    counts = Counts(total, 0, total - inactive - run, run, inactive, completed, failed, canceled, timeout)
    return View(counts, now, 0.0, 8, **more)


def test_speed_and_time_left():
    speed = Speed()
    for tenth in range(100):
        speed.saw(tenth / 10, tenth)
    assert speed.per_second == pytest.approx(10.0) and speed.left(view(total=109, completed=99)) == pytest.approx(1.0)
    for second in range(10, 100):
        speed.saw(float(second), 100)
    # nothing has ended for a minute: the whole run's mean is all that is known
    assert speed.per_second == 0.0 and speed.left(view(total=200, completed=100)) == pytest.approx(99.0)
    assert Speed().left(view()) is None and Speed().per_second == 0.0


def test_a_resumed_run_does_not_count_what_was_done_before():
    speed = Speed()
    speed.saw(0.0, 5000)
    speed.saw(2.0, 5020)
    assert speed.per_second == pytest.approx(10.0)


def test_plain_lines_come_now_and_then(capsys):
    lines, speed = Lines(), Speed()
    for tenth in range(300):
        now = tenth / 10
        seen = view(now, completed=min(tenth, 100), total=1000, run=2)
        speed.saw(now, seen.counts.inactive)
        lines.show(seen, speed)
    said = capsys.readouterr().err.splitlines()
    times = [int(re.match(r"\[ *(\d+)s\]", line)[1]) for line in said]
    assert times == [2, 5, 8, 11, 21]
    assert said[1] == "[    5s]   5 %  50 of 1,000 jobs done, 2 running, 10.0 jobs/s, 1m35s left"


def test_a_line_counts_what_went_wrong():
    text = progress.line(view(completed=1, failed=2, timeout=3, canceled=4), Speed())
    assert "2 failed, 3 timed out, 4 canceled" in text and "left" not in text


def test_header_and_notes(capsys):
    printer = Printer(RunOptions("w.yaml"), "plain")
    printer.begin(info("/runs/a", notes=("cores are pretended",), resumed=3))
    printer.note("a disk is full")
    printer.error("w.yaml:3:1: bad\nsomething else")
    out, err = capsys.readouterr()
    assert out == ""
    for text in ("demo: 10 jobs in 3 groups, 3 of them done before", "2 nodes (node[1-2]), 8 cores, 2 GPUs",
                 "3 schedulers, depth 2, on 2 ranks", "/runs/a", "mpiflux: cores are pretended",
                 "mpiflux: a disk is full", "\nw.yaml:3:1: bad\n", "mpiflux: something else"):
        assert text in err, text
    Printer(RunOptions("w.yaml"), "none").begin(info("/runs/a"))
    assert capsys.readouterr() == ("", "")


def test_an_interruption_is_said_once(capsys):
    printer = Printer(RunOptions("w.yaml"), "none")
    for _ in range(3):
        printer.progress(view(interrupted=signal.SIGINT))
    assert capsys.readouterr().err.count("SIGINT") == 1


def test_streams_that_break_do_not_break_the_run(monkeypatch, tmp_path):
    class Broken(io.StringIO):
        encoding = "utf-8"

        def write(self, text):
            raise BrokenPipeError

        def fileno(self):
            raise ValueError

    monkeypatch.setattr(sys, "stdout", Broken())
    monkeypatch.setattr(sys, "stderr", Broken())
    for style in ("plain", "bar", "none"):
        printer = Printer(RunOptions("w.yaml"), style)
        printer.begin(info(tmp_path))
        printer.progress(view(20.0, completed=1))
        printer.note("x")
        printer.end(view(20.0, completed=10), 0)


def test_the_bar_tells_the_counts(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    monkeypatch.setenv("COLUMNS", "120")
    printer = Printer(RunOptions("w.yaml"), "bar")
    printer.begin(info("/runs/a"))
    printer.progress(view(1.0, completed=2, failed=1, run=4))
    printer.note("a [bold]note[/] stays as it is")
    printer.end(view(2.0, completed=9, failed=1), 1)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert "3/10 done  4 running  1 failed" in text and "a [bold]note[/] stays" in text


def test_summary_of_a_run_with_failures(tmp_path):
    directory = rundir.finished(tmp_path / "a run")
    seen = view(20.0, completed=3, failed=2, timeout=1, canceled=1, total=10, busy=80.0, failures=[2, 3, 4], retried=2)
    text = "\n".join(summary(RunOptions("w.yaml"), info(directory), seen, 1))
    for part in ("7 of 10 jobs done, 21.0 jobs/min, 50 % of 8 cores busy", "   3 completed", "   2 failed",
                 "   1 timed out", "   3 not done", "2 attempts failed and ran again",
                 "sim[1]  job 2  exit 3      ValueError: mass  [31m2", "sim[2]  job 3  SIGSEGV     (nothing on stderr)",
                 "sim[3]  job 4  time limit  exceeded its time limit of 2 s",
                 f"job show 2 {shlex.quote(str(directory))}"):
        assert part in text, part
    assert "\x1b" not in text
    many = failures(info(directory), view(failed=90, timeout=9, failures=[2, 3]))
    assert many[0] == "first 2 of 99 failures:" and many[-1].endswith("--filter failed,timeout")


def test_summary_of_a_run_without():
    text = "\n".join(summary(RunOptions("w.yaml"), info("/r"), view(5.0, completed=10, busy=40.0), 0))
    assert text.split("\n")[1:] == ["demo finished in 5.00s: 10 jobs, 2.0 jobs/s, 100 % of 8 cores busy",
                                    "  10 completed"]


def test_summary_of_an_interrupted_run():
    options = RunOptions("my flow.yaml", overrides={"n": "3 4"}, hierarchy="4x8", fail_fast=True, gpus_per_node=0)
    text = summary(options, info("/r"), view(5.0, completed=4, interrupted=2), 130)
    assert text[1].startswith("demo interrupted after 5.00s: 4 of 10 jobs done") and "  6 not done" in text[3]
    command = text[-1].partition(":  ")[2]
    words = shlex.split(command)
    words = words[words.index("run") + 1:]
    from mpiflux.cli.main import parse
    from mpiflux.cli.run import options_of

    again = options_of(parse(["run", *words])[1])
    assert command == resume_command(options, info("/r")) and again.resume and again.run_dir == "/r"
    assert (again.workflow, again.overrides, again.hierarchy, again.fail_fast, again.gpus_per_node) == (
        "my flow.yaml", {"n": "3 4"}, "4x8", True, 0)


def test_words():
    assert last_line(b"a\nlast one  \n\n \n") == "last one" and last_line(b"\n") == ""
    assert [how_it_ended({"result": r, "returncode": c}) for r, c in (
        ("FAILED", 3), ("FAILED", -9), ("TIMEOUT", -15), ("CANCELED", 0), (None, None))] == [
        "exit 3", "SIGKILL", "time limit", "canceled", ""]


def test_dry_run_says_what_there_is_and_what_cannot_be(capsys):
    Printer(RunOptions("w.yaml", dry_run=True)).dry_run(info(misfits=("job 'train' asks for too much",), notes=("hm",)))
    out = capsys.readouterr().out
    for part in ("demo: 10 jobs in 3 groups", "x[3] × mode[2]", "2 nodes, 2 tasks, 2 cores a task", "after sim",
                 "node1 cores 0-3 gpu 0", "note: hm", "cannot run:\n  job 'train' asks for too much"):
        assert part in out, part
    Printer(RunOptions("w.yaml", dry_run=True)).dry_run(info())
    assert "every job fits" in capsys.readouterr().out


# -- whole runs, one rank, no launcher -----------------------------------------------------------------------------


def mpiflux(*argv, cwd, **more):
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("MPIFLUX_", "PMI_"))}
    return subprocess.run([sys.executable, "-m", "mpiflux", *argv], cwd=cwd, capture_output=True, text=True,
                          timeout=120, env={**environ, "PYTHONPATH": str(ROOT)}, **more)


@pytest.mark.usefixtures("no_leaks")
def test_a_run_from_end_to_end(tmp_path):
    (tmp_path / "w.yaml").write_text("""
jobs:
  good: {command: "echo {x}", parameters: {x: [1, 2, 3]}}
  bad: {command: "echo no luck >&2; exit 7", shell: true}
  never: {command: "echo", after: [bad]}
""")
    done = mpiflux("w.yaml", "--run-dir", "r", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "3 completed" in done.stdout and "bad[0]  job 4  exit 7  no luck" in done.stdout
    assert "5 jobs in 3 groups" in done.stderr and "\x1b" not in done.stdout + done.stderr
    listed = mpiflux("jobs", "r", "--json", "--with-output", cwd=tmp_path)
    assert [(job["result"], job["returncode"], job["stdout"]) for job in json.loads(listed.stdout)][:4] == [
        ("COMPLETED", 0, "1\n"), ("COMPLETED", 0, "2\n"), ("COMPLETED", 0, "3\n"), ("FAILED", 7, "")]
    again = mpiflux("w.yaml", "--run-dir", "r", cwd=tmp_path)
    assert again.returncode == 2 and "--resume" in again.stderr and again.stdout == ""


@pytest.mark.usefixtures("no_leaks")
def test_a_dry_run_and_a_wrong_workflow_leave_nothing(tmp_path):
    (tmp_path / "w.yaml").write_text("jobs:\n  a: {command: ls}\n")
    (tmp_path / "bad.yaml").write_text("jobs:\n  a: {comand: ls}\n")
    dry = mpiflux("w.yaml", "--dry-run", cwd=tmp_path)
    assert dry.returncode == 0 and "a  1  1 core" in re.sub("  +", "  ", dry.stdout) and "root:" in dry.stdout
    bad = mpiflux("bad.yaml", cwd=tmp_path)
    assert bad.returncode == 2 and re.search(r"^bad.yaml:\d+:\d+: .*command", bad.stderr, re.MULTILINE)
    assert sorted(os.listdir(tmp_path)) == ["bad.yaml", "w.yaml"]


@pytest.mark.usefixtures("no_leaks")
def test_an_interrupted_run_goes_on_by_the_command_it_prints(tmp_path):
    (tmp_path / "w.yaml").write_text("jobs:\n  a: {command: 'test -e go || exec sleep 60', shell: true}\n"
                                     "  b: {command: 'true'}\n")
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-m", "mpiflux", "w.yaml", "--run-dir", "r", "--cores-per-node", "2"],
                               cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "1 of 2 jobs done, 1 running" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    command = next(line for line in out.splitlines() if line.startswith("go on with:")).partition(":")[2].split()
    (tmp_path / "go").touch()
    done = mpiflux(*command[command.index("run"):], cwd=tmp_path)
    assert done.returncode == 0 and "2 completed" in done.stdout and "1 of them done before" in done.stderr


@pytest.mark.usefixtures("no_leaks")
def test_the_bar_leaves_the_terminal_clean(tmp_path):
    (tmp_path / "w.yaml").write_text("jobs:\n  a: {command: sleep 0.3, parameters: {i: {range: 4}}}\n")
    parent, child = os.openpty()
    data = b""
    try:
        process = subprocess.Popen([sys.executable, "-m", "mpiflux", "w.yaml", "--run-dir", "r"], cwd=tmp_path,
                                   env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}, stdout=child,
                                   stderr=child)
        os.close(child)
        while True:
            try:
                part = os.read(parent, 65536)
            except OSError:
                break
            if not part:
                break
            data += part
        assert process.wait(60) == 0
    finally:
        os.close(parent)
    text = data.decode()
    assert "━" in text and text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l") and "4 completed" in text
