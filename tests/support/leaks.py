"""Proof that a test leaves nothing behind: no process, zombie, descriptor, unix socket or temporary file.

The fixture :func:`no_leaks` gives each test a fresh, short TMPDIR (unix socket paths must fit in 108 bytes) and an
environment variable of its own that every process of the test inherits, so that a daemon is found even after it has
left our session and our process tree. After the test, what goes away by itself within ``GRACE`` seconds is no leak.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import procs

MARK = "LEAK_MARK"
"""Name of the environment variable; its value is one test's own."""
GRACE = 5.0
"""Seconds that processes get to end by themselves."""
LAUNCHERS_OWN = ("ompi.", "prte.", "pmix-", "openmpi-sessions-")
"""Beginnings of names in TMPDIR that Open MPI's mpiexec makes for itself and leaves there when it is killed."""


def open_fds() -> set[tuple[int, str]]:
    """Our own descriptors and what they are open on."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
        except OSError:  # the descriptor of the listing itself
            continue
    return found


def unix_sockets(prefix: str) -> set[str]:
    """Bound unix sockets of any process, by path (``@`` is an abstract name), below ``prefix``."""
    with open("/proc/net/unix") as file:
        rows = [line.rstrip("\n").split(maxsplit=7) for line in file]
    return {row[7] for row in rows if len(row) == 8 and row[7].lstrip("@").startswith(prefix)}


class LeakCheck:
    """What was there before; :meth:`leaks` compares. Set ``environ`` for whatever the test starts."""

    def __init__(self, mark: str, tmp: Path) -> None:
        self.mark = mark
        self.tmp = tmp
        self.environ = {MARK: mark, "TMPDIR": str(tmp)}
        self._processes = procs.descendants(os.getpid(), procs.everyone())
        self._ids = {(p.pid, p.born) for p in self._processes}
        self._fds = open_fds()
        self._files = self.files()

    def files(self) -> set[Path]:
        """What is in the test's directory, but for what an MPI launcher keeps there."""
        top = [path for path in self.tmp.glob("*") if not path.name.startswith(LAUNCHERS_OWN)]
        return {path for start in top for path in (start, *start.rglob("*"))}

    def processes(self) -> set[procs.Process]:
        """Ours by descent or by mark, that were not there before."""
        table = procs.everyone()
        ours = procs.descendants(os.getpid(), table) | procs.marked(MARK, self.mark, table)
        return {p for p in ours if (p.pid, p.born) not in self._ids and p.pid != os.getpid()}

    def leaks(self) -> list[str]:
        """Everything that is left now, in words."""
        found = [str(p) for p in sorted(self.processes(), key=lambda p: p.pid)]
        found += [f"descriptor {fd} on {target}" for fd, target in sorted(open_fds() - self._fds)]
        found += [f"unix socket {path}" for path in sorted(unix_sockets(str(self.tmp)))]
        found += [f"file {path}" for path in sorted(self.files() - self._files)]
        return found

    def settle(self, grace: float | None = None) -> list[str]:
        """What is still left after at most ``grace`` seconds, ``GRACE`` unless said otherwise."""
        gc.collect()  # an object in a reference cycle is not a descriptor that the program lost
        deadline = time.monotonic() + (GRACE if grace is None else grace)
        while (found := self.leaks()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    def clean(self) -> None:
        """Kill the processes that are left and remove the directory, so that the next test starts clean."""
        procs.kill_until_none(self.processes)
        shutil.rmtree(self.tmp, ignore_errors=True)


@pytest.fixture
def no_leaks(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LeakCheck]:
    """Fails the test that leaves something behind, naming it."""
    tmp_path_factory.getbasetemp()  # pytest's own directory is not to be made inside the test's
    check = LeakCheck(uuid.uuid4().hex, Path(tempfile.mkdtemp(prefix="mf-")))
    for name, value in check.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tempfile, "tempdir", str(check.tmp))
    yield check
    found = check.settle()
    check.clean()
    if found:
        pytest.fail("left behind:\n  " + "\n  ".join(found[:20]), pytrace=False)
