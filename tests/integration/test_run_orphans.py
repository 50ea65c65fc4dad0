"""Whichever process is killed, and whatever the jobs left in the background: nothing outlives the run."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support import procs
from tests.support.mpi import MpiRun
from tests.support.runs import Place, until

LEAVE = ("setsid sh -c 'trap \"\" TERM; echo x >>begun; sleep 300; :' >/dev/null 2>&1 & "
         "sh -c '(sh -c \"echo x >>begun; sleep 300; :\" >/dev/null 2>&1 &)'; sleep 300")
"""A daemon in a session of its own that does not heed TERM, another whose parents have gone, and the job itself."""


def begun(place: Place) -> int:
    path = place.path / "begun"
    return path.read_text().count("x") if path.exists() else 0


def chain(running: MpiRun) -> list[int]:
    """The rank, its zygote, a supervisor, and a job."""
    table = procs.everyone()
    pids = [running.process.pid]
    while len(pids) < 4:
        children = sorted(p.pid for p in table.values() if p.parent == pids[-1] and not p.zombie)
        if not children:
            break
        pids.append(children[0])
    return pids


@pytest.mark.parametrize("which", range(4), ids=["rank", "zygote", "supervisor", "job"])
def test_after_a_kill_nothing_is_left(place: Place, which: int) -> None:
    place.expected.add("begun")
    running, run = place.begin({"jobs": {"a": {"command": LEAVE, "shell": True, "time_limit": "60s",
                                               "parameters": {"i": {"range": 2}}}}}, "--cores-per-node", "2")
    with running:
        until(lambda: begun(place) >= 4, "the daemons run")
        pids = chain(running)
        assert len(pids) == 4
        os.kill(pids[which], signal.SIGKILL)
        if which == 1:
            # nobody can replace a supervisor now; the jobs go on
            running.signal(signal.SIGTERM)
        elif which == 2:
            until(lambda: begun(place) >= 6, "the lost job runs again")
        if which > 1:
            running.signal(signal.SIGTERM)
        running.wait()
        until(lambda: not [p for p in running.members() if not p.zombie], "everything has ended")
    assert run.results().get("COMPLETED") is None


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2], ids=["USR1", "USR2"])
def test_a_batch_system_s_warning_ends_the_run_resumable(place: Place, number: signal.Signals) -> None:
    place.expected.add("begun")
    running, run = place.begin({"jobs": {"a": {"command": "echo x >>begun; exec sleep 600", "shell": True}}})
    with running:
        until(lambda: begun(place), "the job runs")
        running.signal(number)
        done = running.wait()
    assert done.returncode == 128 + number and "--resume" in done.stdout
    assert f" interrupted: by {number.name};" in (run.directory / "log").read_text()
    assert run.results() == {"SCHED": 1}
