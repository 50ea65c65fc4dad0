"""A job that spans nodes, followed, written to and signalled while it runs; ranks that pretend to be nodes."""

from __future__ import annotations

import sys

import pytest

from tests.support.pretend import run_on_nodes, stack_of_nodes
from tests.support.runs import Place, place

__all__ = ["place"]

pytestmark = pytest.mark.mpi

STEER = """
import signal, sys, mpiflux
TASK = '''trap 'echo bye $MPIFLUX_TASK_RANK; exit 0' USR1
read a; echo "$MPIFLUX_TASK_RANK read <$a>"
while :; do sleep 0.02; done'''
with mpiflux.connect() as flux:
    job = flux.submit(["sh", "-c", TASK], tasks=2, nodes=2, input="-", name="wide")
    job.stdin.write("line\\n")
    heard, signalled = "", False
    for piece in job.output("stdout"):
        heard += piece.text
        if "0 read <line>\\n" in heard and "1 read <>\\n" in heard and not signalled:
            assert job.record().state == "RUN"
            signalled = job.signal(signal.SIGUSR1)
    assert sorted(heard.splitlines()[2:]) == ["bye 0", "bye 1"], heard
    assert job.result(30).ok
    assert len(job.record().nodes) == 2
"""


def test_a_job_on_two_nodes_is_talked_to(place: Place) -> None:
    place.write("steer.py", STEER)
    place.expected.add("rank-on-node-1")
    workflow = {"controller": [sys.executable, "steer.py"]}
    run = run_on_nodes(place, stack_of_nodes(place.path), workflow, nodes=3, cores=1)
    assert run.results() == {"COMPLETED": 1}
