"""Floods of output, and limits of the shell that mpiflux is started from."""

from __future__ import annotations

import errno
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mpiflux.instance.limits import in_words
from tests.support.mpi import MpiRun, clean_environment
from tests.support.runs import ROOT, Place, marks, until

MOST = 160 << 20
"""Bytes of memory that a rank or a supervisor may have had, flooded or not."""


def peaks(pid: int) -> dict[int, int]:
    """The most memory that a process and those of mpiflux below it have had, in bytes."""
    found = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            found[pid] = int(line.split()[1]) << 10
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if b"mpiflux" in Path(f"/proc/{child}/cmdline").read_bytes():
            found |= peaks(int(child))
    return found


@pytest.mark.parametrize("size", ["100M", pytest.param("1G", marks=pytest.mark.slow),
                                  pytest.param("10G", marks=pytest.mark.slow)])
def test_a_flood_costs_no_memory_and_holds_nobody_up(place: Place, size: str) -> None:
    flood = (f"head -c {size} /dev/zero; echo {{job.id}} >>marks; yes & "
             "while [ ! -e stop ]; do sleep 0.05; done; kill $!")
    flow = {"output_limit": "1MB", "jobs": {
        "flood": {"command": flood, "shell": True, "parameters": {"i": {"range": 2}}},
        "small": {"command": "echo {job.id} >>marks", "shell": True, "parameters": {"i": {"range": 40}}}}}
    running, run = place.begin(flow, "--cores-per-node", "3")
    with running:
        until(lambda: len(marks(place)) == 42, "all that was to be written is written, and other jobs run beside it")
        found = peaks(running.process.pid)
        place.write("stop", "")
        done = running.wait()
    assert done.returncode == 0, done.stderr
    assert len(found) >= 3 and max(found.values()) < MOST
    job = run.job("flood")
    assert 1_000_000 <= len(job["stdout"]) < 1_100_000
    assert '"truncated": ["stdout"]' in place.call("job", "eventlog", "1", run.directory.name, "--json").stdout
    assert (run.directory / "run.db").stat().st_size < 8 << 20


@contextmanager
def limited(place: Place, limit: str) -> Iterator[MpiRun]:
    """A workflow run from a shell with a ``ulimit``."""
    place.write("flow.json", {"jobs": {"a": {"command": "echo {i}", "parameters": {"i": {"range": 60}}}}})
    place.expected.add("r")
    script = f"ulimit {limit}; exec {sys.executable} -m mpiflux run flow.json --run-dir r --cores-per-node 8"
    with MpiRun(["sh", "-c", script], clean_environment({"PYTHONPATH": str(ROOT)}), place.path) as running:
        yield running


def test_few_file_descriptors_are_made_do_with(place: Place) -> None:
    with limited(place, "-Sn 64; ulimit -Hn 64") as running:
        done = running.wait()
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("limit", "status"), [("-n 12", 3), ("-v 200000", 2)])
def test_what_does_not_suffice_is_told_in_one_line(place: Place, limit: str, status: int) -> None:
    with limited(place, limit) as running:
        done = running.wait()
    last = done.stderr.splitlines()[-1]
    assert done.returncode == status and f"ulimit {limit[:2]} allows" in last, done.stderr
    assert "raise it" in last and "Traceback" not in done.stderr


def test_too_few_files_for_a_supervisor_are_told_in_one_line(place: Place) -> None:
    """Whatever it is that does not fit any more: one of these is the reply of the process that forks supervisors."""
    told = []
    for files in (17, 18, 19, 20):
        with limited(place, f"-n {files}") as running:
            done = running.wait()
        assert done.returncode in (0, 3) and "Traceback" not in done.stderr, done.stderr
        told.append(done.stderr)
        shutil.rmtree(place.path / "r", ignore_errors=True)
    assert any("no supervisor can be started: this rank may have no more files open (ulimit -n)" in one for one in told)


def test_errors_of_limits_in_words() -> None:
    assert "ulimit -u" in in_words(OSError(errno.EAGAIN, "")) and "ulimit -u" in in_words(
        RuntimeError("can't start new thread"))
    assert str(resource.getrlimit(resource.RLIMIT_NOFILE)[0]) in in_words(OSError(errno.EMFILE, ""))
    assert in_words(MemoryError()).startswith("out of memory") and "memory" in in_words(OSError(errno.ENOMEM, "no"))
    assert in_words(OSError(errno.EPERM, "")) == in_words(ValueError()) == ""
