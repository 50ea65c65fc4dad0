"""``controller:`` in a workflow file: a program beside the jobs that submits more."""

from __future__ import annotations

import sys

import pytest

from tests.integration.test_live import RANKS
from tests.support.runs import Place, place

__all__ = ["place"]

STEER = """
import sys, mpiflux
with mpiflux.connect() as flux:
    assert flux.wait("first").completed == 3
    more = flux.submit_many(["echo", "more {i}"], params={"i": [1, 2]}, name="more")
    assert more.wait().ok
    # it does not wait for the last one: the run does
    flux.submit(["sleep", "0.3"], name="last")
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("status", [0, 3])
def test_a_controller_submits_more_and_its_failure_is_told(place: Place, ranks: int, status: int) -> None:
    place.write("steer.py", STEER)
    workflow = {"controller": [sys.executable, "steer.py", str(status)],
                "jobs": {"first": {"command": ["true"], "parameters": {"i": {"range": 3}}}}}
    run = place.run(workflow, ranks=ranks, status=min(status, 1))
    assert run.results() == {"COMPLETED": 6}
    assert run.stdout("more", 1) == b"more 2\n"
    assert run.done is not None
    assert ("ended with exit status 3" in run.done.stderr) is bool(status), run.done.stderr


def test_a_controller_alone_and_one_that_cannot_be_executed(place: Place) -> None:
    run = place.run({"controller": [sys.executable, "-c", "import mpiflux\nmpiflux.connect().submit(['true'])"]})
    assert run.results() == {"COMPLETED": 1}
    run = place.run({"controller": "no-such-program --really", "jobs": {"a": {"command": "true"}}}, status=1)
    assert run.results() == {"COMPLETED": 1}
    assert run.done is not None and "no-such-program: No such file" in run.done.stderr
