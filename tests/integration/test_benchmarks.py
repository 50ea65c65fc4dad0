"""That the scripts of ``tests/benchmarks`` run, each with as little to do as can be; no figure is looked at."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.leaks import LeakCheck
from tests.support.runs import ROOT

SCRIPTS = ROOT / "tests/benchmarks"
QUICK = {
    "bench_borrowing.py": ["--cores", "2", "--jobs", "1"],
    "bench_figure3.py": ["--most", "4096"],
    "bench_node.py": ["--jobs", "200", "--rounds", "1"],
    "bench_placement.py": ["--seconds", "0.01"],
    "bench_simulated.py": ["2"],
    "calibrate.py": ["--jobs", "6000"],
}
LONG = {
    "bench_decisions.py": ["--seconds", "0.01"],
    "bench_breakdown.py": ["8000"],
    "bench_coordination.py": ["0.02"],
    "bench_faults.py": ["1"],
    "bench_hardships.py": ["1"],
    "bench_icf.py": ["30", "1"],
    "bench_idle.py": ["2"],
    "bench_keeping.py": ["500", "1"],
    "bench_latency.py": ["5"],
    "bench_memory.py": ["2000"],
    "bench_million.py": ["2", "1000"],
    "bench_mixed.py": ["2", "1", "node"],
    "bench_modules.py": [],
    "bench_peers.py": ["200"],
    "bench_pilot2.py": ["4"],
    "bench_rundir.py": ["1000"],
    "bench_start.py": ["1", "2"],
    "bench_syscalls.py": ["500"],
    "bench_throughput.py": ["200", "1"],
    "summary.py": ["million"],
}


def ran(script: str, words: list[str], directory: Path) -> None:
    done = subprocess.run([sys.executable, str(SCRIPTS / script), *words], capture_output=True, text=True,
                          cwd=directory, stdin=subprocess.DEVNULL, timeout=280,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert not done.returncode, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) > 1


def test_none_is_forgotten() -> None:
    here = {path.name for pattern in ("bench_*.py", "calibrate.py", "summary.py") for path in SCRIPTS.glob(pattern)}
    assert here == {*QUICK, *LONG}


@pytest.mark.parametrize("script", QUICK)
def test_quick(script: str, tmp_path: Path, no_leaks: LeakCheck) -> None:
    ran(script, QUICK[script], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("script", LONG)
def test_long(script: str, tmp_path: Path, no_leaks: LeakCheck) -> None:
    ran(script, LONG[script], tmp_path)
