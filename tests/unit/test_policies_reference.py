"""Schedules of mpiflux's policies are those of an independent simulator, start by start."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mpiflux.model.jobspec import PolicySpec, Request
from mpiflux.sched.policies import make
from mpiflux.sched.testing import Trial, TrialJob, node
from tests.unit.reference_backfill import Job, schedule

DEPTH = {"fcfs": 1, "easy": 10_000, "conservative": 10_000}


def starts(name: str, cores: int, jobs: list[Job]) -> list[float]:
    policy = make(PolicySpec(name, {"queue_depth": DEPTH[name]}))
    trial = Trial(policy, [TrialJob(arrival, runtime, estimate, Request(cores=size))
                           for size, estimate, runtime, arrival in jobs], [node(cores)])
    found: list[float] = [-1.0] * len(jobs)
    for one in trial.run():
        found[one.job] = one.start
    return found


@st.composite
def workloads(draw: st.DrawFn) -> tuple[int, list[Job]]:
    cores = draw(st.integers(1, 12))
    jobs = draw(st.lists(st.tuples(st.integers(1, cores), st.integers(1, 12), st.integers(1, 12),
                                   st.integers(0, 25)), min_size=1, max_size=25))
    return cores, [(size, estimate, min(runtime, estimate), arrival) for size, estimate, runtime, arrival in jobs]


@pytest.mark.parametrize("name", DEPTH)
@given(workload=workloads())
@example(workload=(4, [(3, 10, 5, 0), (3, 10, 10, 0), (1, 12, 12, 0), (2, 5, 5, 1), (4, 3, 3, 2), (1, 9, 9, 2)]))
@settings(max_examples=150, deadline=None)
def test_every_start_agrees(name: str, workload: tuple[int, list[Job]]) -> None:
    cores, jobs = workload
    assert starts(name, cores, jobs) == schedule(name, cores, jobs)


@pytest.mark.parametrize("name", DEPTH)
@pytest.mark.parametrize("seed", range(4))
def test_long_seeded_workloads_agree(name: str, seed: int) -> None:
    draw = random.Random(seed)
    cores, arrival, jobs = 64, 0, []
    for _ in range(100 if name == "conservative" else 300):  # the reference is cubic there
        arrival += draw.choice((0, 0, 1, 5, 20))
        runtime = draw.randint(1, 100)
        jobs.append((min(1 << draw.randint(0, 6), cores), runtime * draw.choice((1, 1, 2, 5)), runtime, arrival))
    assert starts(name, cores, jobs) == schedule(name, cores, jobs)


def test_the_policies_differ() -> None:
    """So that agreement is not for want of anything to decide."""
    jobs: list[Job] = [(6, 10, 10, 0), (8, 10, 10, 0), (2, 30, 30, 0), (2, 8, 8, 0), (2, 25, 25, 1)]
    assert len({tuple(schedule(name, 8, jobs)) for name in DEPTH}) >= 2
