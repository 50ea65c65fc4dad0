"""Open MPI 5 with ULFM lets ranks live on without one that dies, and tells them of it."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support import chaos, procs
from tests.support.mpi import MpiRun, installed_stack
from tests.support.runs import Place, until

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(
    installed_stack().name != "openmpi", reason="ULFM is Open MPI's")]


def rank_pid(running: MpiRun, rank: int) -> int:
    """What a rank has forked has its variables too, and it for a parent."""
    table, found = procs.everyone(), {}
    for one in running.members():
        try:
            with open(f"/proc/{one.pid}/environ", "rb") as file:
                if f"OMPI_COMM_WORLD_RANK={rank}".encode() in file.read().split(b"\0"):
                    found[one.pid] = one.parent
        except OSError:
            continue
    (pid,) = (pid for pid, parent in found.items() if parent not in found and table[pid].comm != "mpiflux-zygote")
    return pid


def test_a_run_goes_on_without_a_rank_that_was_killed(place: Place) -> None:
    place.expected.add("marks")
    marks = place.write("marks", "")
    name = place.new()
    running = place.start("run", place.write("flow.yaml", chaos.FLOW).name, "--run-dir", name, "--cores-per-node", "8",
                          "--hierarchy", "2x2", ranks=4, options=("--with-ft", "ulfm"))
    with running:
        until(lambda: len(marks.read_text().splitlines()) >= 10, "jobs begin")
        os.kill(rank_pid(running, 2), signal.SIGKILL)
        done = running.wait()
    assert done.returncode == 1, done.stderr
    assert "rank 2 on " in done.stderr and "is lost (its process is gone)" in done.stderr
    ends = chaos.ends_of(place.path / name)
    assert [end[1] for end in ends] == ["COMPLETED"] * chaos.FIRST + (
        ["COMPLETED"] * 4 + ["FAILED"]) * (chaos.SECOND // 5)
