"""Jobs that leave a daemon behind, and whether that is still there."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests.support import procs
from tests.support.runs import until

PYTHON = sys.executable
DAEMON = """\
import os, sys, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
if 'deaf' in sys.argv:
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if 'silent' in sys.argv:
    null = os.open('/dev/null', os.O_RDWR)
    os.dup2(null, 1); os.dup2(null, 2)
with open(sys.argv[1] + '.new', 'w') as file: file.write(str(os.getpid()))
os.rename(sys.argv[1] + '.new', sys.argv[1])
if 'anonymous' in sys.argv:
    os.execve(sys.executable, [sys.executable, '-S', '-c', 'import time; time.sleep(600)'], {})
time.sleep(600)
"""


@pytest.fixture
def daemon(tmp_path: Path) -> str:
    """A command, to be followed by a file for its pid and by its manners, that leaves a daemon behind."""
    path = tmp_path / "daemon.py"
    path.write_text(DAEMON)
    return f"{PYTHON} -S {path}"


def alive(pid: int) -> bool:
    found = procs.stat(pid)
    return found is not None and not found.zombie


def pid_in(path: Path) -> int:
    """The number that somebody will write there."""
    until(path.exists, f"{path} was written")
    return int(path.read_text())


def soon_gone(*pids: int, limit: float = 5.0) -> None:
    deadline = time.monotonic() + limit
    while left := [pid for pid in pids if alive(pid)]:
        assert time.monotonic() < deadline, f"still there: {[str(procs.stat(pid)) for pid in left]}"
        time.sleep(0.01)
