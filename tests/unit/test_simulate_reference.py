"""What ``mpiflux simulate`` says of a trace is what an independent simulator says, start by start.

The whole way: trace, schedulers, leases, simulated executors, records. :mod:`tests.unit.test_policies_reference` holds
the policies alone to the same simulator.
"""

from __future__ import annotations

import random

import pytest

from mpiflux.model.jobspec import HierarchySpec, PolicySpec, Workflow
from mpiflux.model.records import PACK
from mpiflux.sim.cluster import START, Cluster
from mpiflux.sim.machine import build, parse_cluster
from mpiflux.sim.swf import Trace, TraceJob
from tests.unit.reference_backfill import Job, schedule

DEPTH = {"fcfs": 1, "easy": 10_000, "conservative": 10_000}


def simulated(name: str, cores: int, jobs: list[Job]) -> list[float]:
    """Starts in seconds after the first arrival, in the order of ``jobs``, which come one after the other."""
    trace = Trace(tuple(TraceJob(number, arrival, runtime, size, estimate)
                        for number, (size, estimate, runtime, arrival) in enumerate(jobs)), 0)
    groups, arrivals, behaviour = trace.workload()
    workflow = Workflow(name="trace", hierarchy=HierarchySpec(levels=()), groups=groups,
                        policy=PolicySpec(name, {"queue_depth": DEPTH[name]}))
    cluster = Cluster(build(parse_cluster(f"1x({cores}c)")), workflow, behaviour, arrivals=arrivals)
    cluster.run()
    started = {record[0]: record[9] - START for data in cluster.master.records
               for record in PACK.iter_unpack(data)}
    firsts = {group.number: group.first_id for group in groups}
    return [started[firsts[chunk.group] + chunk.start] for _, chunk in arrivals]


def random_trace(seed: int) -> tuple[int, list[Job]]:
    """Jobs of few sizes, so that many are of one shape, with time limits that are right, or too long, or far too long.
    No two things happen at once: the order of those is nobody's promise."""
    draw = random.Random(seed)
    cores, arrival, jobs = draw.choice((4, 8, 16)), 0, []
    for _ in range(draw.choice((6, 15, 40))):
        runtime = draw.randint(1_000, 60_000)
        estimate = runtime + draw.choice((0, 0, 5_003, 30_017, 100_019))
        jobs.append((draw.choice((1, 1, 2, 3, cores // 2, cores)), estimate, runtime, arrival))
        arrival += draw.randint(1, 20_000)
    return cores, jobs


@pytest.mark.parametrize("name", DEPTH)
@pytest.mark.parametrize("seed", range(40))
def test_every_start_of_a_random_trace_agrees(name: str, seed: int) -> None:
    cores, jobs = random_trace(seed)
    assert simulated(name, cores, jobs) == pytest.approx(schedule(name, cores, jobs), abs=1e-3)


def test_places_move_up_once_for_each_thing_that_happens() -> None:
    """In a long queue what one job leaves can serve another before it, at the next event. That a job runs is none."""
    draw = random.Random(32)
    cores, arrival, jobs = 4, 0, []
    for _ in range(120):
        runtime = draw.randint(1_000, 60_999)
        jobs.append((draw.choice((1, 1, 2, 3, 4)), runtime + draw.choice((0, 0, 7_003, 30_017, 200_019)), runtime,
                     arrival))
        arrival += draw.randint(1, 20_011 if draw.random() < 0.8 else 30)
    assert simulated("conservative", cores, jobs) == pytest.approx(schedule("conservative", cores, jobs), abs=1e-3)


def test_jobs_of_one_shape_keep_their_own_limits() -> None:
    """The second, of 60 seconds, must not pass for one of 7: the wide one would wait for it behind its back."""
    jobs: list[Job] = [(1, 7, 6, 0), (1, 60, 3, 1), (8, 2, 1, 2), (3, 9, 8, 4)]
    assert simulated("easy", 8, jobs) == pytest.approx(schedule("easy", 8, jobs), abs=1e-3)
