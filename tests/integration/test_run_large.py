"""Ensembles of a million: they start at once, nothing holds them expanded, and their run directory stays small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.runs import ROOT, Place, marks, ready

STRESS = str(ROOT / "docs/examples/stress.yaml")
MILLION = 1_000_000


def resident(pid: int) -> int:
    """Bytes of a process's memory at its peak."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) << 10


@pytest.mark.parametrize("ranks", [0, pytest.param(4, marks=pytest.mark.mpi)])
def test_a_million_jobs_that_start_nothing(place: Place, ranks: int) -> None:
    name = place.new()
    options = ["--hierarchy", "2x2", "--cores-per-node", "4"] if ranks else []
    done = place.call("run", STRESS, "--set", f"n={MILLION}", "--exec", "null", "--run-dir", name, *options,
                      ranks=ranks, timeout=120)
    assert "1,000,000 completed" in done.stdout
    size = sum(path.stat().st_size for path in (place.path / name).iterdir())
    assert size < 120 * MILLION
    shown = json.loads(place.call("job", "show", str(MILLION), name, "--json").stdout)
    assert (shown["result"], shown["index"], shown["params"]) == ("COMPLETED", MILLION - 1, {"i": MILLION - 1})
    last = place.call("jobs", name, "--filter", "noop[999998-999999]", "--format", "{id} {status}").stdout
    assert last == "999999 COMPLETED\n1000000 COMPLETED\n"


def test_the_first_of_ten_million_jobs_start_at_once_and_rank_0_stays_small(place: Place) -> None:
    flow = {"jobs": {"a": {"command": "echo {job.id} >>marks; sleep 0.05", "shell": True, "parameters": {
        "x": {"linspace": [0, 1, 10_000]}, "y": {"range": 1000}}}}}
    running, run = place.begin(flow)
    with running:
        ready(place, 20, running)
        peak = resident(running.process.pid)
        running.signal(2)
        assert running.wait().returncode == 130
    assert peak < 600 << 20, f"{peak / 1e7:.0f} bytes a job that has not started"
    ran = sorted(marks(place))
    assert ran[-1] < 2000, "later jobs ran before earlier ones"
    assert run.meta()["state"] == "interrupted"
