"""Links that are cut and the death of rank 0, in virtual time: small cases, and mistakes that the seeds must find."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

import numpy as np
import pytest

from mpiflux.instance import keeper
from mpiflux.model.jobspec import Dependency, HierarchySpec, JobGroup, LevelSpec, Workflow
from mpiflux.node import patience
from mpiflux.sim import chaos, journal, lives
from mpiflux.sim.chaos import play
from mpiflux.sim.cluster import START, Cluster, Deadlock
from mpiflux.sim.engine import Engine
from mpiflux.sim.executor import Outcome
from mpiflux.sim.invariants import Invariants, Violation
from mpiflux.sim.journal import Saved
from mpiflux.sim.links import Cut, CutNetwork
from mpiflux.sim.machine import build, parse_cluster
from mpiflux.sim.rank import SimRank
from mpiflux.sim.trouble import salvage
from mpiflux.store.jobtable import JobTable

TIMEOUT = 3.0
OUT, IN, BOTH = {(1, 0)}, {(0, 1)}, {(0, 1), (1, 0)}


def test_patience_is_that_of_instance_and_supervisors() -> None:
    assert (lives.FENCE, lives.AGAIN) == (keeper.FENCE, patience.AGAIN)


def test_a_cut_link_delivers_late_and_in_order_or_never() -> None:
    engine, came = Engine(), []
    network = CutNetwork(engine, lambda src, dst, now: 1.0, [
        Cut(5.0, 9.0, frozenset({(1, 2)})), Cut(20.0, math.inf, frozenset({(1, 2)}))])
    for when in (1.0, 4.5, 6.0, 8.9, 12.0, 21.0):
        assert network.send("one", 1, 2, when, lambda sent: came.append((sent, engine.now)), when) is (when < 20)
    assert network.send("other", 2, 1, 6.0, lambda: came.append(("back", engine.now)))
    while engine.step():
        pass
    assert came == [(1.0, 2.0), ("back", 7.0), (4.5, 10.0), (6.0, 10.0), (8.9, 10.0), (12.0, 13.0)]
    assert (network.held, network.dropped) == (3, 1)
    assert network.never(1, 2, 20.0) and not network.never(1, 2, 8.0) and not network.never(2, 1, 20.0)


class Lengths:
    """Half of the jobs are over by the time that a rank is given up, and leave room for what it ran."""

    def __init__(self, first: float, second: float) -> None:
        self.seconds = (first, second)

    def outcome(self, group: JobGroup, index: int, attempt: int) -> Outcome:
        return Outcome(self.seconds[2 * index // group.count])


def run(levels: int, second: float, *cuts: tuple[float, float, set[tuple[int, int]]]) -> Cluster:
    """Two nodes of two cores, four jobs, of which the second half is on rank 1."""
    flow = Workflow(name="x", hierarchy=HierarchySpec(levels=(LevelSpec(by="node"),) * levels),
                    groups=(JobGroup(number=0, name="a", first_id=1, count=4),))
    watch = Invariants()
    cluster = Cluster(build(parse_cluster("2x(2c)")), flow, Lengths(3.6, second), watcher=watch, timeout=TIMEOUT,
                      cuts=[Cut(START + start, START + end, frozenset(pairs)) for start, end, pairs in cuts])
    cluster.run()
    watch.finish(cluster)
    assert cluster.master.table.counts().completed == 4
    return cluster


@pytest.mark.parametrize("levels", [0, 1])
@pytest.mark.parametrize("second", [1.0, 20.0])
@pytest.mark.parametrize("cuts", [
    [(0.5, 60.0, BOTH)], [(0.5, 60.0, OUT)], [(0.5, 60.0, IN)], [(0.5, math.inf, BOTH)], [(0.5, math.inf, OUT)],
    [(0.5, 60.0, OUT), (2.9, 60.0, IN)], [(0.5, 60.0, IN), (2.9, 60.0, OUT)]])
def test_who_is_cut_off_ends_its_jobs_before_they_run_elsewhere(levels: int, second: float, cuts: Any) -> None:
    cluster = run(levels, second, *cuts)
    assert cluster.lives is not None and (cluster.lives.left, cluster.lives.given_up) == (1, 0)
    assert cluster.network.held + cluster.network.dropped > 0
    told = second == 1.0 and cuts[0][2] == IN
    assert (max(cluster.master.table.attempt[2:4].tolist()) == 1) is told


def test_who_is_cut_off_for_less_than_its_patience_goes_on() -> None:
    cluster = run(1, 5.0, (1.1, 2.2, BOTH))
    assert cluster.lives is not None and cluster.lives.left == 0 == cluster.master.lost


def test_if_the_cut_off_rank_went_on_it_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lives.Lives.__init__, "__defaults__", (False,))
    with pytest.raises(Violation, match=r"job 3 started as attempt 2 while"):
        run(1, 20.0, (0.5, 60.0, BOTH))
    with pytest.raises((Violation, Deadlock)):
        for seed in range(30):
            play(seed)


def test_if_any_word_of_rank_0_counted_as_an_answer_it_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a rank hears says nothing of whether it is heard."""
    beat = lives.Lives._beat

    def loud(self: lives.Lives, rank: int) -> None:
        before = self._hearts[0].next
        beat(self, rank)
        if rank == 0 and self._hearts[0].next != before:
            self._send(0, 1, self.cluster.now)

    monkeypatch.setattr(lives.Lives, "_beat", loud)
    with pytest.raises(Violation, match=r"job 3 started as attempt 2 while"):
        run(1, 20.0, (0.5, 60.0, OUT), (3.4, 60.0, IN))


def test_late_reports_are_refused_twice_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """By whom they come from, and by their attempts."""
    def arrive(self: SimRank, src: int, items: Any) -> None:
        if self.alive:
            self._inbox += items
            self.wake(self._next_look())

    monkeypatch.setattr(SimRank, "arrive_by_mpi", arrive)
    assert run(0, 1.0, (0.5, 60.0, BOTH)).master.refused == 2
    apply = JobTable.apply

    def lenient(self: JobTable, records: Any, batch: Any, pos: Any = 0, *, replay: bool = False) -> Any:
        records, rows = records.copy(), records["id"].astype("i8") - 1
        records["attempt"] = self.attempt[rows]
        self.state[rows] = np.minimum(self.state[rows], 3)
        return apply(self, records, batch, pos, replay=replay)

    monkeypatch.setattr(JobTable, "apply", lenient)
    with pytest.raises(Violation, match="the end of job 3 was recorded twice"):
        run(0, 1.0, (0.5, 60.0, BOTH))


# -- the death of rank 0 -------------------------------------------------------------------------------------------

LED = Workflow(name="x", groups=(
    JobGroup(number=0, name="a", first_id=1, count=4),
    JobGroup(number=1, name="b", first_id=5, count=4, after=(Dependency("a", "each"),))))


def killed(after: float) -> tuple[Cluster, Invariants]:
    watch = Invariants()
    cluster = Cluster(build(parse_cluster("1x(2c)")), LED, Lengths(1.0, 2.0), watcher=watch)
    cluster.begin()
    while cluster.engine.next_time <= START + after:
        cluster.step()
    return cluster, watch


@pytest.mark.parametrize("after", [0.0, 0.5, 1.02, 1.2, 3.0, 4.5, 6.04])
@pytest.mark.parametrize("machine", ["1x(2c)", "3x(1c)"])
def test_another_instance_goes_on_with_what_was_committed(after: float, machine: str) -> None:
    cluster, watch = killed(after)
    for seed in range(4):
        saved = salvage(random.Random(seed), cluster, START + after)
        following = watch.go_on(saved)
        done = set(following.finals)
        second = Cluster(build(parse_cluster(machine)), LED, Lengths(1.0, 2.0), watcher=following, saved=saved,
                         start=START + after + 5)
        second.run()
        following.finish(second)
        assert following.starts == 8 - len(done) and second.master.table.counts().completed == 8


def test_nothing_is_built_on_what_a_kill_takes_back() -> None:
    _, watch = killed(3.2)
    assert 5 in watch.running
    with pytest.raises(Violation, match="job 5 was started, and the end of job 1 before it is lost"):
        watch.go_on(Saved(LED.groups, START, ()))


def test_a_journal_that_says_something_else_is_found() -> None:
    cluster, watch = killed(1.2)
    watch.finals[1] = 2
    with pytest.raises(Violation, match="job 1 is in the journal as 1, and ended as 2"):
        watch.go_on(salvage(random.Random(0), cluster, math.inf))


def plant_a_journal_that_commits_late(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(rng: random.Random, cluster: Cluster, now: float) -> Saved:
        entries = cluster.master.entries
        return Saved(cluster.master.workflow.groups, START, tuple(entries[:len(entries) // 2]))

    monkeypatch.setattr(chaos, "salvage", half)


def plant_attempts_that_are_not_superseded(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(left: Any, now: float) -> Any:
        found = resume(left, now)
        found.table.state[found.lost["id"].astype("i8") - 1] = 2
        return dataclasses.replace(found, lost=found.lost[:0])

    resume = journal.resume
    monkeypatch.setattr(journal, "resume", forgetful)


def plant_a_reader_that_skips_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    def skipping(self: journal.Left, saved: Saved) -> None:
        entries = list(saved.entries)
        ends = [at for at, entry in enumerate(entries) if entry.ended]
        if ends:
            entries[ends[0]] = entries[ends[0]]._replace(data=entries[ends[0]].data[:-72])
        init(self, dataclasses.replace(saved, entries=tuple(entries)))

    init = journal.Left.__init__
    monkeypatch.setattr(journal.Left, "__init__", skipping)


@pytest.mark.parametrize(("plant", "told"), [
    (plant_a_journal_that_commits_late, "before it is lost"),
    (plant_attempts_that_are_not_superseded, "started twice"),
    (plant_a_reader_that_skips_a_record, r"started (twice|after its end was recorded)")])
def test_mistakes_of_a_resumption_are_found(monkeypatch: pytest.MonkeyPatch, plant: Any, told: str) -> None:
    plant(monkeypatch)
    with pytest.raises(Violation, match=told):
        for seed in range(60):
            play(seed)
