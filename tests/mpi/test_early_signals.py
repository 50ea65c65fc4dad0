"""Signals that reach ranks while these start."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support.mpi import MpiRun
from tests.support.runs import ROOT, Place, Run, ended_by, until

pytestmark = pytest.mark.mpi

HOOK = """\
import os, sys, time
class Wait:
    def find_spec(self, name, path=None, target=None):
        if name == 'mpi4py':
            open(f'here-{os.getpid()}', 'w').close()
            while not os.path.exists('go'): time.sleep(0.01)
sys.meta_path.insert(0, Wait())
"""
"""As ``sitecustomize``: ranks wait before they load MPI until there is a file ``go``."""
RANKS = 3
FLOW = {"jobs": {"a": {"command": "touch ran", "parameters": {"i": {"range": 3}}}}}


def starting(place: Place) -> tuple[MpiRun, Run, list[int]]:
    """A run whose ranks are all in their start, and their pids."""
    place.write("hook/sitecustomize.py", HOOK)
    running, run = place.begin(FLOW, ranks=RANKS, env={"PYTHONPATH": f"{place.path}/hook:{ROOT}"})
    place.expected |= {"hook", run.directory.name}

    def here() -> list[Path]:
        assert running.process.poll() is None, running.stderr
        return list(place.path.glob("here-*"))
    try:
        until(lambda: len(here()) == RANKS, "the ranks start")
    except BaseException:
        running.kill()
        raise
    pids = [int(path.name.removeprefix("here-")) for path in here()]
    for path in here():
        path.unlink()
    return running, run, pids


@pytest.mark.parametrize("whom", ["all", "one"])
def test_a_warning_ends_the_run_once_it_has_come_up(place: Place, whom: str) -> None:
    """One rank alone that was warned, other than rank 0, is no reason to end."""
    running, run, pids = starting(place)
    with running:
        if whom == "one":
            pids = [pid for pid in pids if b"PMI_RANK=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                    or b"OMPI_COMM_WORLD_RANK=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]
            assert len(pids) == 1
        for pid in pids:
            os.kill(pid, signal.SIGUSR1)
        place.write("go", "")
        done = running.wait()
    if whom == "all":
        assert done.returncode in ended_by(signal.SIGUSR1, 0) and "--resume" in done.stdout
        assert run.results() == {"SCHED": 3} and not (place.path / "ran").exists()
        place.resume(run, FLOW)
    else:
        assert done.returncode == 0, done.stderr
    assert run.results() == {"COMPLETED": 3}
    place.expected.add("ran")


def test_term_ends_a_start_that_hangs(place: Place) -> None:
    running, run, pids = starting(place)
    with running:
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        done = running.wait()
        until(lambda: not running.members(), "all have left")
    assert done.returncode and "signal 15" not in done.stdout + done.stderr
    assert not run.directory.exists()
