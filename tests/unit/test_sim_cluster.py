"""The whole instance in virtual time, under random trouble decided by a seed, its invariants checked at every step."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection

import pytest

from mpiflux.model.jobspec import HierarchySpec, JobGroup, LevelSpec, Workflow
from mpiflux.model.messages import NodeShare, Regroup, Report, ResourceSet
from mpiflux.model.records import PACK
from mpiflux.model.states import Result
from mpiflux.overlay.regroup import Regrouping
from mpiflux.sim.chaos import play, scenario
from mpiflux.sim.cluster import START, Cluster, Deadlock
from mpiflux.sim.costs import Costs
from mpiflux.sim.engine import Engine
from mpiflux.sim.executor import Outcome
from mpiflux.sim.invariants import Invariants, Violation
from mpiflux.sim.machine import build, parse_cluster

SEEN: Counter[str] = Counter()
"""What the seeds of this process have met."""


# 1047: a rank is lost whose cores a borrower uses, and its successor hears of claim and return in one batch
# 3519: the job that has the only licence dies with the supervisors of both its nodes, and nothing else happens any more
# 6715: a job that died with its supervisors nine times dies with rank 0
@pytest.mark.parametrize("seed", [*range(200), 1047, 3519, 6715])
def test_invariants_hold_under_trouble(seed: int) -> None:
    SEEN.update(play(seed).seen)
    SEEN["seeds"] += 1


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_soak() -> None:
    """``tests/benchmarks/bench_simulated.py`` plays the same and tells what it saw."""
    for seed in range(1000, 6000):
        play(seed)


@pytest.mark.parametrize("seed", [3, 14, 30, 33])
def test_a_seed_replays_exactly(seed: int) -> None:
    first, second = play(seed).cluster, play(seed).cluster
    assert first.master.records == second.master.records
    assert (first.now, first.engine.events) == (second.now, second.engine.events)


def test_trouble_is_made() -> None:
    """What the seeds of this file stand for is varied enough to mean something."""
    made = [scenario(seed) for seed in range(200)]
    kinds = [what for one in made for _, what, _ in one.faults]
    wanted = ("kill", "cancel", "stop", "stall rank", "stall executor", "kill rank")
    assert {kind: kinds.count(kind) > 10 for kind in wanted} == dict.fromkeys(wanted, True)
    assert all(scenario(seed).trouble.timeout or scenario(seed).deaths for seed in (30, 33))
    cuts = Counter(kind for one in made for kind in one.trouble.kinds)
    assert set(cuts) == {f"{who}, {way}" for who in ("pair", "side") for way in ("one way", "both ways")}
    assert min(cuts.values()) > 5 and sum(len(one.trouble.cuts) > 1 for one in made) > 10
    ends = [cut.end for one in made for cut in one.trouble.cuts]
    assert sum(map(math.isinf, ends)) > 10 < sum(map(math.isfinite, ends))
    assert sum(len(one.trouble.frozen) for one in made) > 10
    assert sum(bool(one.deaths) for one in made) > 40 and sum(len(one.deaths) > 1 for one in made) > 15
    groups = [group for one in made for group in one.workflow.groups]
    assert sum(bool(group.after) for group in groups) > 20
    assert sum(bool(group.retries) for group in groups) > 50
    assert sum(bool(group.time_limit) for group in groups) > 50


def test_trouble_has_effects() -> None:
    """What is made also happens, as far as it was watched: a cut that nothing passes by tests nothing."""
    if SEEN["seeds"] < 200:
        pytest.skip("only part of the seeds was played")
    for what, least in {"rank 0 killed": 50, "batches held back": 50, "batches dropped": 50, "kill rank": 50,
                        "ranks that left by themselves": 20, "supervisors that left by themselves": 15,
                        "living ranks given up": 5, "jobs lost and run again": 500, "interrupted": 2}.items():
        assert SEEN[what] >= least, (what, SEEN)


def test_without_fences_the_race_is_found() -> None:
    """Leases under way to a supervisor that died reach its successor, unless its rank waits for the scheduler."""
    with pytest.raises((Violation, Deadlock)):
        for seed in range(300):
            play(seed, fences=False)


def test_if_the_root_went_on_before_all_ranks_have_regrouped_it_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of schedulers that are no more would still run where they are tried again."""
    lose = Regrouping.lose

    def hasty(self: Regrouping, ranks: Collection[int]) -> Regroup:
        told = lose(self, ranks)
        self._awaited = {0}
        return told

    monkeypatch.setattr(Regrouping, "lose", hasty)
    # a scheduler may also be handed jobs of a group that it was never told of, and says so by a KeyError
    with pytest.raises((Violation, Deadlock, KeyError)):
        for seed in range(600):
            play(seed)


# -- the invariants bite -----------------------------------------------------------------------------------------

ONE = ResourceSet((NodeShare(0, (1, 2)),))
OTHER = ResourceSet((NodeShare(0, (2, 3)),))


def test_a_core_used_twice_is_found() -> None:
    watch = Invariants()
    watch.leased(7, 1, ONE)
    with pytest.raises(Violation, match="core 0 2 used by lease 0x2 and 0x1"):
        watch.leased(8, 2, OTHER)


def test_a_core_may_be_used_again() -> None:
    watch = Invariants()
    watch.leased(7, 1, ONE)
    watch.released(7, 1)
    watch.leased(8, 2, OTHER)
    watch.executor_died(8)
    watch.leased(7, 3, ONE)


def test_a_job_that_runs_twice_is_found() -> None:
    watch = Invariants()
    watch.leased(7, 1, ONE)
    watch.job_started(7, 1, 5, 1)
    with pytest.raises(Violation, match="job 5 started as attempt 2 while"):
        watch.job_started(7, 1, 5, 2)


def test_an_attempt_that_starts_twice_is_found() -> None:
    watch = Invariants()
    watch.leased(7, 1, ONE)
    watch.job_started(7, 1, 5, 1)
    watch.job_ended(7, 5, 1, Result.COMPLETED)
    with pytest.raises(Violation, match="attempt 1 of job 5 started twice"):
        watch.job_started(7, 1, 5, 1)


def test_a_second_end_is_found() -> None:
    watch = Invariants()
    watch.final(5, 1)
    with pytest.raises(Violation, match="twice"):
        watch.final(5, 2)


def _workflow(count: int = 4) -> Workflow:
    return Workflow(name="x", hierarchy=HierarchySpec(levels=(LevelSpec(by="node"),)),
                    groups=(JobGroup(number=0, name="a", first_id=1, count=count),))


class Constant:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def outcome(self, group: JobGroup, index: int, attempt: int) -> Outcome:
        return Outcome(self.seconds)


def test_a_lost_message_is_a_deadlock() -> None:
    cluster = Cluster(build(parse_cluster("2x(2c)")), _workflow(), Constant(1.0))
    scheduler = cluster.schedulers[1]
    receive = scheduler.receive

    def forgetful(src: int, message: object, now: float) -> None:
        if not isinstance(message, Report):
            receive(src, message, now)  # type: ignore[arg-type]

    scheduler.receive = forgetful  # type: ignore[method-assign]
    with pytest.raises(Deadlock, match="jobs are left"):
        cluster.run()


def test_what_is_left_is_found() -> None:
    watch = Invariants()
    cluster = Cluster(build(parse_cluster("2x(2c)")), _workflow(), Constant(1.0), watcher=watch)
    cluster.run()
    watch.finish(cluster)
    cluster.schedulers[1].queue.jobs += 1
    with pytest.raises(Violation, match="queue of 1"):
        watch.finish(cluster)


# -- virtual time ------------------------------------------------------------------------------------------------


def test_a_cancelled_event_is_nothing_to_wait_for() -> None:
    engine, rung = Engine(10.0), []
    first, second, last = (engine.at(when, rung.append, when) for when in (11.0, 12.0, 99.0))
    engine.cancel(second)
    assert (engine.pending, engine.next_time) == (2, 11.0)
    engine.cancel(last)
    assert engine.step() and not engine.step()
    assert (rung, engine.now, engine.pending) == ([11.0], 11.0, 0)
    engine.cancel(engine.at(12.0, rung.append, 12.0))
    assert engine.next_time == math.inf and first != second


def test_an_ideal_run_takes_what_its_jobs_take() -> None:
    cluster = Cluster(build(parse_cluster("2x(2c)")), _workflow(10), Constant(7.0))
    cluster.run()
    ends = [cluster.now - START]
    assert ends[0] == pytest.approx(3 * 7.0, abs=0.1)  # 10 jobs on 4 cores: three rounds
    assert cluster.master.table.counts().completed == 10


def test_costs_take_time() -> None:
    costs = Costs(spawn=0.5, process=1.0, reap=0.25, local=0.1, remote=0.2)
    cluster = Cluster(build(parse_cluster("1x(1c)")), _workflow(1), Constant(0.0), costs=costs)
    cluster.run()
    # submitted, fed over a socket, started, run, ended; the news goes back the same way
    assert cluster.now - START >= 0.1 + 0.5 + 1.0 + 0.25 + 0.1
    executor = next(one for one in cluster.executors.values() if one.busy)
    assert executor.busy == pytest.approx(0.75)


def test_the_quantum_changes_little() -> None:
    costs = Costs(spawn=1e-4, process=7e-4, reap=2e-5, turn=2e-5, batch=1e-5, local=5e-6, remote=1e-5)
    ends = []
    for quantum in (0.0, 0.004):
        cluster = Cluster(build(parse_cluster("2x(8c)")), _workflow(20_000), Constant(0.0), costs=costs,
                          quantum=quantum)
        cluster.run()
        ends.append(cluster.now - START)
    assert ends[1] == pytest.approx(ends[0], rel=0.1)


def test_an_idle_rank_notices_mpi_late_and_a_supervisor_at_once() -> None:
    costs = Costs(poll=1.0, poll_longest=4.0, remote=0.1)
    cluster = Cluster(build(parse_cluster("2x(1c)")), _workflow(2), Constant(20.0), costs=costs)
    cluster.run()
    started = {}
    for data in cluster.master.records:
        for at in range(0, len(data), PACK.size):
            record = PACK.unpack_from(data, at)
            started[record[6]] = record[9] - START
    assert started == {1: 0.0, 2: pytest.approx(1.0)}  # by scheduler: rank 1 looks 1 s after it began to wait
    # the news of the second job's end waits until rank 0 looks: its pauses since the first one's end are 1, 2 s
    assert cluster.now - START == pytest.approx(20 + 1 + 2, abs=0.2)
