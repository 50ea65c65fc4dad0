"""``submit --label-io``: the program that puts a task's number before each line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from mpiflux.client import label


def _run(script: str, *, rank: str = "3", stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-IS", label.__file__, "/bin/sh", "-c", script], input=stdin, timeout=60,
                          capture_output=True, env={**os.environ, "MPIFLUX_TASK_RANK": rank})


@pytest.mark.parametrize(("script", "out", "err"), [
    ("echo a; echo b >&2; printf 'c\\n\\nd'", b"3: a\n3: c\n3: \n3: d\n", b"3: b\n"),
    ("true", b"", b""),
    ("printf 'one '; sleep 0.1; echo line", b"3: one line\n", b""),
    ("cat", b"3: from stdin\n", b""),
    ("printf '\\377\\n'", b"3: \xff\n", b"")])
def test_lines_are_labelled(script: str, out: bytes, err: bytes) -> None:
    done = _run(script, stdin=b"from stdin\n")
    assert (done.stdout, done.stderr, done.returncode) == (out, err, 0)


@pytest.mark.parametrize(("script", "returncode"), [("exit 7", 7), ("kill -9 $$", -9), ("kill -15 $$", -15)])
def test_the_end_is_the_commands(script: str, returncode: int) -> None:
    assert _run(f"echo x; {script}").returncode == returncode


def test_a_program_that_is_not_there() -> None:
    done = subprocess.run([sys.executable, label.__file__, "/nowhere"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 127 and "/nowhere" in done.stderr


def test_who_is_left_behind_with_the_pipes_is_not_waited_for() -> None:
    with subprocess.Popen([sys.executable, label.__file__, "/bin/sh", "-c", "sleep 1000 & echo $!"], text=True,
                          stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        pid = int(running.stdout.readline().removeprefix("0: "))
        assert running.wait(60) == 0
        os.kill(pid, signal.SIGKILL)


def test_long_lines_are_cut_and_nothing_is_lost() -> None:
    size = label._LONGEST + label._LONGEST // 2
    done = _run(f"head -c {size} /dev/zero", rank="0")
    pieces = done.stdout.split(b"\n")
    assert len(pieces) == 3 and b"".join(piece.removeprefix(b"0: ") for piece in pieces) == bytes(size)
