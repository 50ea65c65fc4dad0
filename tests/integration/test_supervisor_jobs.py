"""What a job gets from a supervisor and what comes back: output, files, exit status, environment, binding, usage."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpiflux.model import records as r
from mpiflux.model.params import ListColumn, ParamTable
from mpiflux.model.states import Result
from mpiflux.node import outbox, supervisor
from tests.support.node import Node

PYTHON = sys.executable


@pytest.fixture
def node() -> Iterator[Node]:
    with Node() as made:
        yield made


# -- output ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0, 0.1], ids=["short", "long"])
def test_output_is_byte_exact(node: Node, seconds: float) -> None:
    text = (f"import os,time; os.write(1, bytes(range(256)) * 40); time.sleep({seconds});"
            "os.write(2, b'\\r\\n\\0\\xff' * 3); os.write(1, b'\\n')")
    done = node.run(PYTHON, "-c", text)
    assert done.stdout == bytes(range(256)) * 40 + b"\n"
    assert done.stderr == b"\r\n\0\xff" * 3
    assert not done.flags & ~r.FLAG_STREAMED


@pytest.mark.parametrize("size", [65535, 65536, 65537, 200_000, 10 << 20])
def test_output_of_any_length(node: Node, size: int) -> None:
    text = f"import random,sys; sys.stdout.buffer.write(random.Random({size}).randbytes({size}))"
    assert node.run(PYTHON, "-c", text).stdout == random.Random(size).randbytes(size)


def test_interleaved_streams_keep_their_order(node: Node) -> None:
    done = node.run(PYTHON, "-c", "import os\nfor i in range(60000):\n os.write(1 + i % 2, b'%d\\n' % i)")
    assert done.stdout == b"".join(b"%d\n" % i for i in range(0, 60000, 2))
    assert done.stderr == b"".join(b"%d\n" % i for i in range(1, 60000, 2))


@pytest.mark.parametrize("seconds", [0, 0.1], ids=["short", "long"])
def test_output_over_the_limit_is_cut_and_marked(node: Node, seconds: float) -> None:
    done = node.run(PYTHON, "-c", f"import os,time; os.write(2, b'x' * 1000); time.sleep({seconds});"
                    "os.write(1, b'y' * 1001)", output_limit=1000)
    assert (done.stdout, done.stderr) == (b"y" * 1000, b"x" * 1000)
    assert done.flags & r.FLAG_STDOUT_TRUNCATED
    assert not done.flags & r.FLAG_STDERR_TRUNCATED


def test_a_limit_of_nothing_keeps_nothing(node: Node) -> None:
    done = node.sh("echo x", output_limit=0)
    assert done.stdout == b""
    assert done.flags & r.FLAG_STDOUT_TRUNCATED


def test_a_job_that_closes_its_output_and_lives_on(node: Node) -> None:
    done = node.sh("echo first; exec >&- 2>&-; sleep 0.3; exit 4")
    assert (done.stdout, done.returncode) == (b"first\n", 4)
    assert done.seconds >= 0.3


def test_dev_stderr_and_dev_stdout_can_be_reopened(node: Node) -> None:
    done = node.sh("echo one; echo two > /dev/stdout; echo three > /dev/stderr; echo four >> /dev/stderr; echo five")
    assert (done.stdout, done.stderr) == (b"one\ntwo\nfive\n", b"three\nfour\n")


def test_stdin_is_empty(node: Node) -> None:
    assert node.sh("wc -c; readlink /proc/self/fd/0").stdout.split() == [b"0", b"/dev/null"]


def test_a_job_that_makes_its_pipe_non_blocking_does_not_harm_the_next(node: Node) -> None:
    group = node.declare("{what}", shell=True, count=2, params=ParamTable(("what",), (ListColumn((
        f"{PYTHON} -c 'import os; os.set_blocking(1, False); os.set_blocking(2, False)'",
        f"{PYTHON} -c 'import os; print(os.get_blocking(1), os.get_blocking(2))'")),)))
    node.grant(0)
    node.feed(group)
    assert node.wait(2)[1].stdout == b"True True\n"


def test_output_goes_to_the_job_that_wrote_it(node: Node) -> None:
    group = node.declare("echo out {job.index}; test $(({job.index} % 3)) = 0 || echo err {job.index} >&2", shell=True,
                         count=200)
    node.grant(0)
    node.feed(group)
    for index, done in enumerate(node.wait(200)):
        assert done.stdout == b"out %d\n" % index
        assert done.stderr == (b"err %d\n" % index if index % 3 else b"")


def test_a_rank_that_does_not_read_makes_jobs_wait_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "CONGESTED", 1 << 20)
    size = 24 << 20
    with Node() as node:
        pid = node.pids()[0]
        node.run("/bin/true")
        at_first = private(pid)
        node.begin(PYTHON, "-c", f"import os\nfor i in range({size} >> 16): os.write(1, b'%08d' % i * (1 << 13))",
                   output_limit=size)
        node.executors.flush()
        time.sleep(1.0)
        before, memory = cpu(pid), private(pid)
        time.sleep(1.0)
        assert cpu(pid) - before < 0.2, "it spins while it cannot send"
        assert memory - at_first < size / 2
        done = node.wait(2)[1]
    assert done.stdout == b"".join(b"%08d" % i * (1 << 13) for i in range(size >> 16))


def cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def private(pid: int) -> int:
    """Bytes of memory that it does not share with the process that it was forked from."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) << 10


# -- files -----------------------------------------------------------------------------------------------------------


def test_files_of_a_job(node: Node, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"from a file\n")
    done = node.sh("cat; echo out; echo err >&2", cwd=str(tmp_path), input="in", output="o-{job.index}", error="e")
    assert (done.stdout, done.stderr, done.returncode) == (b"", b"", 0)
    assert (tmp_path / "o-0").read_bytes() == b"from a file\nout\n"
    assert (tmp_path / "e").read_bytes() == b"err\n"


def test_one_file_for_both_streams(node: Node, tmp_path: Path) -> None:
    (tmp_path / "both").write_bytes(b"old and longer than what follows it\n" * 10)
    node.sh("echo one; echo two >&2; echo three", cwd=str(tmp_path), output="both", error="both")
    assert (tmp_path / "both").read_bytes() == b"one\ntwo\nthree\n"


def test_one_stream_to_a_file_and_the_other_captured(node: Node, tmp_path: Path) -> None:
    done = node.sh("echo one; echo two >&2", output=str(tmp_path / "o"))
    assert (done.stdout, done.stderr, (tmp_path / "o").read_bytes()) == (b"", b"two\n", b"one\n")


@pytest.mark.parametrize("keys", [{"input": "missing"}, {"output": "no/such/dir"}, {"error": "no/such/dir"},
                                  {"output": "."}])
def test_files_that_cannot_be_opened(node: Node, tmp_path: Path, keys: dict[str, str]) -> None:
    done = node.run("/bin/true", cwd=str(tmp_path), **keys)
    assert (done.result, done.returncode) == (Result.FAILED, 126)
    assert done.flags & r.FLAG_NOT_STARTED
    name = next(iter(keys.values()))
    assert name in done.reason and ("No such file" in done.reason or "directory" in done.reason)
    assert node.sh("echo ok").stdout == b"ok\n"


# -- ends ------------------------------------------------------------------------------------------------------------


def test_every_exit_code(node: Node) -> None:
    group = node.declare("exit {job.index}", shell=True, count=256)
    node.grant(0)
    node.feed(group)
    for code, done in enumerate(node.wait(256)):
        assert (done.returncode, done.result) == (code, Result.FAILED if code else Result.COMPLETED)
        assert not done.reason


DEADLY = [s for s in signal.Signals if s not in (
    signal.SIGCHLD, signal.SIGCONT, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGURG,
    signal.SIGWINCH) and s < 32]


@pytest.mark.parametrize("number", DEADLY, ids=[s.name for s in DEADLY])
def test_death_by_every_signal(number: int) -> None:
    # a fresh supervisor each: what its own ancestors ignored must not be ignored by jobs
    with Node() as node:
        done = node.sh(f"ulimit -c 0; kill -{int(number)} $$; sleep 5")
    assert (done.returncode, done.result) == (-number, Result.FAILED)


def test_signals_are_neither_ignored_nor_blocked(node: Node) -> None:
    shown = node.run("cat", "/proc/self/status").stdout.decode().splitlines()
    masks = {line[:6]: int(line[7:], 16) for line in shown if line.startswith(("SigBlk", "SigIgn", "SigCgt"))}
    glibc_s_own = 3 << 31
    assert {name: mask & ~glibc_s_own for name, mask in masks.items()} == {"SigBlk": 0, "SigIgn": 0, "SigCgt": 0}


def test_a_command_that_does_not_exist(node: Node) -> None:
    done = node.run("surely-not-there")
    assert (done.returncode, done.result, done.flags & r.FLAG_NOT_STARTED) == (127, Result.FAILED, r.FLAG_NOT_STARTED)
    assert done.reason == "surely-not-there: command not found"


def test_what_cannot_be_executed(node: Node, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("echo hello\n")
    (tmp_path / "garbled").write_bytes(b"\x7fELF\x02\x01\x01" + b"\0" * 20)
    (tmp_path / "garbled").chmod(0o755)
    (tmp_path / "lost").write_text("#!/no/such/interpreter\n")
    (tmp_path / "lost").chmod(0o755)
    expected = {"plain": (126, "ermission denied"), ".": (126, "ermission denied"), "lost": (127, "interpreter"),
                "plain/x": (126, "ot a directory")}
    for name, (code, word) in expected.items():
        done = node.run(str(tmp_path / name))
        assert (done.returncode, done.flags & r.FLAG_NOT_STARTED) == (code, r.FLAG_NOT_STARTED), name
        assert word in done.reason, name
    done = node.run(str(tmp_path / "garbled"))
    assert done.result is Result.FAILED


def test_found_on_the_path_but_not_executable(tmp_path: Path) -> None:
    (tmp_path / "prog").write_text("")
    with Node(environ={"PATH": str(tmp_path)}) as node:
        done = node.run("prog")
    assert (done.returncode, done.reason) == (126, "prog: is not executable")


def test_a_relative_command_is_looked_up_in_its_directory(node: Node, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "hello").write_text("#!/bin/sh\necho hello from $PWD\n")
    (tmp_path / "bin" / "hello").chmod(0o755)
    assert node.run("bin/hello", cwd=str(tmp_path)).stdout == f"hello from {tmp_path}\n".encode()
    done = node.run("hello", cwd=str(tmp_path), env={"PATH": "bin:/bin"})
    assert done.stdout == f"hello from {tmp_path}\n".encode()


@pytest.mark.parametrize("command", [("/bin/true",), ("true",), ("./true",)])
def test_a_directory_that_does_not_exist(node: Node, tmp_path: Path, command: tuple[str, ...]) -> None:
    done = node.run(*command, cwd=str(tmp_path / "gone"))
    assert done.returncode == 126
    assert f"working directory {tmp_path / 'gone'} does not exist" in done.reason


def test_an_executable_script_without_an_interpreter_line(node: Node, tmp_path: Path) -> None:
    (tmp_path / "script").write_text("echo $0 $1\n")
    (tmp_path / "script").chmod(0o755)
    assert node.run(str(tmp_path / "script"), "x").stdout == f"{tmp_path}/script x\n".encode()


# -- scripts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head, shown", [
    ("", b"sh"), ("#!/bin/sh\n", b"sh"), ("#!/bin/bash\n", b"bash"), ("#!/usr/bin/env bash\n", b"bash"),
    ("#! /bin/bash -e\n", b"bash"), ("#!/bin/bash\r\n", b"bash"), ("#!\n", b"sh")])
def test_scripts(node: Node, head: str, shown: bytes) -> None:
    script = head + 'ps -o comm= -p $$\nfalse\nfor i in 1 2; do echo "job {job.id}"; done\n'
    done = node.run(script=script)
    words = done.stdout.split()
    assert words[0] == shown, done
    if "-e" in head:
        assert (done.returncode, len(words)) == (1, 1)
    else:
        assert words[1:] == [b"job", b"%d" % done.id] * 2


def test_a_script_in_another_language(node: Node) -> None:
    assert node.run(script=f"#!{PYTHON} -I\nimport sys\nprint(sys.flags.isolated)\n").stdout == b"1\n"


def test_a_script_whose_interpreter_is_missing(node: Node) -> None:
    done = node.run(script="#!/no/such/thing -x\nhello\n")
    assert (done.returncode, done.reason) == (127, "/no/such/thing: command not found")


# -- arguments and environment ---------------------------------------------------------------------------------------


def printed(environment: bytes) -> dict[bytes, bytes]:
    return dict(item.split(b"=", 1) for item in environment.split(b"\0") if item)


def test_the_environment_of_a_job() -> None:
    outer = {"PATH": os.environ["PATH"], "HOME": "/here", "MPIFLUX_RUN_DIR": "/run", "MPIFLUX_URI": "rundir:///run",
             # of an outer instance, and of the launcher's own GPUs
             "MPIFLUX_JOB_ID": "77", "MPIFLUX_TASK_RANK": "5", "MPIFLUX_CORES": "9", "HIP_VISIBLE_DEVICES": "3",
             "CUDA_VISIBLE_DEVICES": "0,1", "GPU_DEVICE_ORDINAL": "1", "OVER": "outer", "BOTH": "outer"}
    with Node(environ=outer, gpus=((0, "nvidia", "0"), (1, "nvidia", "1"))) as node:
        done = node.run("env", "-0", cores=(1,), gpus=(1,), name="sim", count=1,
                        env={"OVER": "{job.index}/{job.attempt}", "BOTH": "job's", "MPIFLUX_JOB_INDEX": "lie"})
        plain = node.run("env", "-0")
    raw = done.stdout
    environment = printed(raw)
    assert len(environment) == raw.count(b"\0"), "a variable is there twice"
    assert environment == {
        b"PATH": os.environb[b"PATH"], b"HOME": b"/here", b"MPIFLUX_RUN_DIR": b"/run",
        b"MPIFLUX_URI": b"rundir:///run", b"MPIFLUX_JOB_ID": b"%d" % done.id, b"MPIFLUX_JOB_NAME": b"sim",
        b"MPIFLUX_JOB_INDEX": b"0", b"MPIFLUX_ATTEMPT": b"1", b"MPIFLUX_TASK_RANK": b"0",
        b"MPIFLUX_TASK_COUNT": b"1", b"MPIFLUX_LOCAL_RANK": b"0", b"MPIFLUX_CORES": b"1", b"MPIFLUX_GPUS": b"1",
        b"MPIFLUX_NODE": b"here", b"MPIFLUX_NODE_LIST": b"here", b"CUDA_VISIBLE_DEVICES": b"1", b"OVER": b"0/1",
        b"BOTH": b"job's"}
    assert printed(plain.stdout)[b"CUDA_VISIBLE_DEVICES"] != b"0,1"
    assert printed(plain.stdout)[b"MPIFLUX_GPUS"] == b""


def test_gpu_variables_of_the_launcher_are_gone_where_there_are_no_gpus() -> None:
    outer = {"PATH": os.environ["PATH"], "ROCR_VISIBLE_DEVICES": "0", "HIP_VISIBLE_DEVICES": "0"}
    with Node(environ=outer) as node:
        assert not [name for name in printed(node.run("env", "-0").stdout) if name.endswith(b"VISIBLE_DEVICES")]
        assert b"HIP_VISIBLE_DEVICES=9" in node.run("env", env={"HIP_VISIBLE_DEVICES": "9"}).stdout


def test_many_variables(node: Node) -> None:
    wanted = {f"VAR_{i}": f"value {i} = {i}" for i in range(200)}
    wanted |= {"UTF": "schön ☃", "LINES": "a\nb", "EMPTY": "", "BRACES": "{{}}"}
    environment = printed(node.run("env", "-0", env=wanted).stdout)
    for name, value in wanted.items():
        assert environment[name.encode()] == value.replace("{{}}", "{}").encode()


def test_the_outer_environment_need_not_be_text() -> None:
    outer = {"PATH": os.environ["PATH"], "RAW": os.fsdecode(b"\xff\xfe raw"), os.fsdecode(b"NAME\xff"): "x"}
    with Node(environ=outer) as node:
        environment = printed(node.run("env", "-0").stdout)
    assert environment[b"RAW"] == b"\xff\xfe raw"
    assert environment[b"NAME\xff"] == b"x"


def test_arguments_of_any_kind(node: Node) -> None:
    words = ["", " ", "a b", "*", "'\"", "\\", "ü☃", "a\nb", "-n"]
    text = "import sys,os; sys.stdout.write(repr([os.fsencode(a) for a in sys.argv[1:]]))"
    assert node.run(PYTHON, "-c", text, *words).stdout.decode() == repr([os.fsencode(word) for word in words])


@pytest.mark.parametrize("keys", [{"command": ("/bin/echo", "a\0b")}, {"env": {"X": "{job.index}\0"}},
                                  {"env": {"X": "a\0b"}}])
def test_a_nul_byte_is_refused_and_not_cut(node: Node, keys: dict[str, object]) -> None:
    command = keys.pop("command", ("/bin/echo", "x"))
    done = node.run(*command, **keys)  # type: ignore[misc, arg-type]
    assert (done.returncode, done.stdout) == (126, b"")
    assert "NUL byte" in done.reason
    assert node.sh("echo ok").stdout == b"ok\n"


def test_arguments_as_long_as_the_kernel_takes_them(node: Node) -> None:
    word = "x" * 131_000
    assert node.run(PYTHON, "-c", "import sys; print(len(sys.argv[1]))", word).stdout == b"131000\n"
    done = node.run("/bin/echo", "x" * 140_000)
    assert (done.returncode, done.result) == (126, Result.FAILED)
    assert "longer than the kernel takes" in done.reason
    assert node.run("/bin/echo", "short").stdout == b"short\n"


# -- tasks and binding -----------------------------------------------------------------------------------------------

SHOW = "import os; print(os.environ['MPIFLUX_TASK_RANK'], sorted(os.sched_getaffinity(0)))"


def needs_two_cpus() -> list[int]:
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        pytest.skip("has one CPU only")
    return usable[:2]


def test_a_job_is_bound_to_its_cores() -> None:
    first, second = needs_two_cpus()
    with Node([(first,), (second,)]) as node:
        assert node.run(PYTHON, "-c", SHOW, cores=(0,)).stdout == b"0 [%d]\n" % first
        assert node.run(PYTHON, "-c", SHOW, cores=(1,)).stdout == b"0 [%d]\n" % second
        assert node.run(PYTHON, "-c", SHOW, cores=(0, 1)).stdout == b"0 [%d, %d]\n" % (first, second)


def test_pretended_cores_bind_nothing() -> None:
    first = needs_two_cpus()[0]
    with Node([(first,), (), ()]) as node:
        node.run("/bin/true", cores=(0,))
        for core in (1, 2):
            done = node.run(PYTHON, "-c", SHOW, cores=(core,))
            assert done.stdout.decode() == f"0 {sorted(os.sched_getaffinity(0))}\n"


def test_the_tasks_of_a_job() -> None:
    first, second = needs_two_cpus()
    show = ("import os; told = [os.environ['MPIFLUX_' + n] for n in ('TASK_RANK', 'LOCAL_RANK', 'TASK_COUNT')]\n"
            "os.write(1, ' '.join([*told, str(sorted(os.sched_getaffinity(0))) + '\\n']).encode())")
    with Node([(first,), (second,)]) as node:
        done = node.run(PYTHON, "-c", show, cores=(0, 1), tasks=2)
        assert sorted(done.stdout.splitlines()) == [b"0 0 2 [%d]" % first, b"1 1 2 [%d]" % second]
        assert (done.tasks, done.result) == (2, Result.COMPLETED)
        # the next job of one task is not told of two
        assert node.sh("echo $MPIFLUX_TASK_RANK $MPIFLUX_TASK_COUNT").stdout == b"0 1\n"


def test_all_tasks_have_to_end(node: Node) -> None:
    done = node.sh("test $MPIFLUX_TASK_RANK = 0 || { sleep 0.3; echo last; }", tasks=2, cores=(0, 1))
    assert done.stdout == b"last\n"
    assert done.seconds >= 0.3


def test_one_failed_task_ends_the_others(node: Node) -> None:
    done = node.sh("test $MPIFLUX_TASK_RANK = 0 && exec sleep 60; sleep 0.05; exit 5", tasks=3, cores=(0, 1, 1))
    assert (done.result, done.returncode) == (Result.FAILED, 5)
    assert "exit code 5" in done.reason
    assert done.seconds < 10


# -- usage -----------------------------------------------------------------------------------------------------------


def test_usage(node: Node) -> None:
    done = node.run(PYTHON, "-S", "-c", "import os,time\nend = time.process_time() + 0.2\n"
                    "while time.process_time() < end: os.getppid()\nb'x' * (200 << 20)")
    assert 0.15 < done.utime + done.stime < 5
    assert done.utime > 0 and done.stime > 0
    assert 200 << 10 <= done.maxrss < 260 << 10
    assert done.seconds >= 0.2


def test_usage_counts_what_the_job_waited_for(node: Node) -> None:
    done = node.sh(f"{PYTHON} -S -c \"b'x' * (100 << 20)\"; true")
    assert done.maxrss >= 100 << 10


def test_the_clock_of_the_records_is_not_the_machine_s() -> None:
    offset = 1000.0 - time.monotonic()
    with Node(offset=offset) as node:
        done = node.run("/bin/true")
    assert 1000 <= done.t_start <= done.t_finish < 1000 + 60


def test_long_jobs_are_reported_as_started(node: Node) -> None:
    group = node.begin("sleep", "0.2")
    node.until(lambda: node.started)
    assert node.started == [(group.first_id, 1)]
    assert not node.ended
    node.wait()
    assert supervisor.YOUNG < 0.2
