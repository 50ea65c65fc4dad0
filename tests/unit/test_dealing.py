"""Dealing to children: who gets which job, and how many at a time."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpiflux.model import messages as m
from mpiflux.model.jobspec import HierarchySpec, JobGroup, LevelSpec, PolicySpec, Request, Workflow
from mpiflux.model.records import PACK
from mpiflux.model.resources import NodeResources
from mpiflux.sched.catalog import Catalog
from mpiflux.sched.children import LOOKAHEAD, Child
from mpiflux.sched.dealing import Dealing
from mpiflux.sched.policies import make
from mpiflux.sched.pool import ResourcePool
from mpiflux.sched.scheduler import Action, Scheduler
from mpiflux.sim.cluster import START, Cluster
from mpiflux.sim.executor import Outcome
from mpiflux.sim.machine import build, parse_cluster

PARENT = 99


class Family:
    """A scheduler over children of so many cores each, and what it sent them."""

    def __init__(self, cores: list[int], distribution: str, requests: tuple[Request, ...] = (Request(),)) -> None:
        self.children = [Child(i + 1, ResourcePool([NodeResources(node=i, cores=tuple(range(n)))]))
                         for i, n in enumerate(cores)]
        self.dealing = Dealing(self.children, distribution, catalog := Catalog())
        self.scheduler = Scheduler(0, PARENT, make(PolicySpec()), self.dealing, catalog)
        for number, request in enumerate(requests):
            self.receive(m.Declare(JobGroup(number=number, name=f"g{number}", first_id=1 + number * 100_000,
                                            count=100_000, request=request)))
        self.now = 0.0
        self.has: dict[int, list[m.Chunk]] = {child.endpoint: [] for child in self.children}
        self.child_of: dict[int, int] = {}
        self.up: list[m.Message] = []

    def receive(self, message: m.Message, src: int = PARENT) -> None:
        self.scheduler.receive(src, message, getattr(self, "now", 0.0))

    def submit(self, *chunks: m.Chunk) -> None:
        self.receive(m.Submit(chunks))

    def settle(self) -> list[Action]:
        actions = self.scheduler.settle(self.now)
        for dst, message in actions:
            if isinstance(message, m.Submit):
                for chunk in message.chunks:
                    self.has[dst].append(chunk)
                    for job in self.dealing.catalog.ids(chunk):
                        assert self.child_of.setdefault(job, dst) == dst, f"job {job} was sent twice"
            elif dst == PARENT:
                self.up.append(message)
        return actions

    def end(self, child: int, n: int) -> int:
        """The child reports its first ``n`` jobs as ended; how many that were."""
        records = []
        while n > len(records) and self.has[child]:
            chunk = self.has[child].pop(0)
            first, rest = chunk.split(n - len(records))
            if rest is not None:
                self.has[child].insert(0, rest)
            records += [PACK.pack(job, first.attempt, 1, 0, 0, 1, child, 0, 0, 0, self.now, 0, 0, 0, 0, 0, 0)
                        for job in self.dealing.catalog.ids(first)]
        if records:
            self.receive(m.Report(b"".join(records)), src=child)
        return len(records)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 400),
       st.sampled_from(["pull", "round_robin", "least_loaded", "by_key"]), st.randoms(use_true_random=False))
def test_windows_are_bounded_and_every_job_is_sent_once(cores: list[int], count: int, distribution: str,
                                                        rng: random.Random) -> None:
    family = Family(cores, distribution)
    family.submit(m.Chunk(0, 0, count))
    left = count
    while left:
        before = {child.endpoint: child.outstanding for child in family.children}
        family.settle()
        for child, capacity in zip(family.children, cores, strict=True):
            window = capacity + max(1, math.ceil(child.rate * LOOKAHEAD))
            assert child.outstanding <= max(window, before[child.endpoint])
            assert child.outstanding == sum(map(len, family.has[child.endpoint])) == len(child.held)
        family.now += rng.choice((0.001, 0.03, 2.0))
        ended = sum(family.end(child.endpoint, rng.randrange(0, 60)) for child in family.children)
        if not ended:
            ended = next((done for child in family.children if (done := family.end(child.endpoint, 1))), 0)
            assert ended, "jobs are left, and no child has any"
        left -= ended
    assert sorted(family.child_of) == list(range(1, count + 1))


@given(st.integers(1, 7), st.lists(st.integers(1, 60), min_size=1, max_size=8))
def test_round_robin_deals_the_nth_job_to_the_nth_child(children: int, sizes: list[int]) -> None:
    family = Family([2] * children, "round_robin")
    at = 0
    for size in sizes:
        family.submit(m.Chunk(0, at, at + size))
        at += size
        family.settle()
    while any(family.end(child.endpoint, 1000) for child in family.children):
        family.now += 0.01
        family.settle()
    assert family.child_of == {job: 1 + (job - 1) % children for job in range(1, at + 1)}


@given(st.integers(1, 8), st.integers(1, 16), st.integers(1, 100))
def test_pull_gives_equal_children_equal_shares(children: int, cores: int, count: int) -> None:
    family = Family([cores] * children, "pull")
    family.submit(m.Chunk(0, 0, count))
    family.settle()
    loads = [child.outstanding for child in family.children]
    assert max(loads) - min(loads) <= 1
    assert sum(loads) >= min(count, cores * children)


def test_a_child_that_can_never_hold_a_job_gets_none() -> None:
    family = Family([2, 8, 4], "round_robin", (Request(cores=4),))
    family.submit(m.Chunk(0, 0, 30))
    for _ in range(40):
        family.settle()
        family.now += 0.1
        family.end(2, 5)
        family.end(3, 5)
    assert len(family.child_of) == 30
    assert set(family.child_of.values()) == {2, 3}


def test_a_group_is_declared_to_a_child_once_and_before_its_jobs() -> None:
    family = Family([2, 2], "pull", (Request(), Request(cores=2)))
    seen: dict[int, list[int]] = {1: [], 2: []}
    for i in range(20):
        family.submit(m.Chunk(i % 2, 4 * i, 4 * i + 4))
        for dst, message in family.settle():
            if isinstance(message, m.Declare):
                seen[dst].append(message.group.number)
            elif isinstance(message, m.Submit):
                assert {chunk.group for chunk in message.chunks} <= set(seen[dst])
        family.now += 0.1
        family.end(1, 9)
        family.end(2, 9)
    assert sorted(seen[1]) == sorted(seen[2]) == [0, 1]


def test_what_is_cancelled_in_line_ends_here_and_what_was_sent_ends_below() -> None:
    family = Family([1, 1], "round_robin")
    family.submit(m.Chunk(0, 0, 40))
    family.settle()
    sent = set(family.child_of)
    family.receive(m.Cancel(tuple(range(1, 21)), "not wanted"))
    actions = family.settle()
    ended = [PACK.unpack_from(message.records, at)[0] for dst, message in actions
             if dst == PARENT and isinstance(message, m.Report) for at in range(0, len(message.records), PACK.size)]
    assert sorted(ended) == sorted(set(range(1, 21)) - sent)
    assert {dst for dst, message in actions if isinstance(message, m.Cancel)} == {1, 2}


class Lengths:
    def outcome(self, group: JobGroup, index: int, attempt: int) -> Outcome:
        return Outcome(random.Random(index).lognormvariate(3.0, 1.0))


@pytest.mark.parametrize(("distribution", "bound"), [("pull", 1.0), ("least_loaded", 1.0)])
def test_uneven_jobs_are_balanced_within_a_job_each(distribution: str, bound: float) -> None:
    """No greedy schedule is longer than its work on all cores plus its longest job (Graham 1969); a window holds
    one job more than that."""
    workflow = Workflow(name="x", hierarchy=HierarchySpec(levels=(LevelSpec(by="node"),), distribution=distribution),
                        groups=(JobGroup(number=0, name="a", first_id=1, count=400),))
    cluster = Cluster(build(parse_cluster("5x(4c)")), workflow, Lengths())
    cluster.run()
    lengths = [Lengths().outcome(workflow.groups[0], i, 1).seconds for i in range(400)]
    assert cluster.now - START <= sum(lengths) / 20 + bound * 2 * max(lengths)


@pytest.mark.parametrize(("request_", "said"), [
    (Request(memory=3 << 30), "and the schedulers below that can hold it have as much as they can take: "
                              "memory is what there is least of"),
    (Request(consumables={"bb": 9}), "more bb than any scheduler below has: it starts on what they lend"),
    (Request(memory=9 << 30, consumables={"bb": 9}), "more memory and bb than any scheduler below has"),
    (Request(cores=5, memory=1), "more cores than any scheduler below has"),
    (Request(), "and the schedulers below that can hold it have as much as they can take"),
])
def test_what_is_missing_below_is_named(request_: Request, said: str) -> None:
    children = [Child(i + 1, ResourcePool([NodeResources(node=i, cores=tuple(range(4)), memory=4 << 30,
                                                         consumables={"bb": 5})])) for i in range(2)]
    dealing = Dealing(children, "pull", catalog := Catalog())
    scheduler = Scheduler(0, PARENT, make(PolicySpec()), dealing, catalog)
    scheduler.receive(PARENT, m.Declare(JobGroup(number=0, name="g", first_id=1, count=50, request=request_)), 0.0)
    scheduler.receive(PARENT, m.Submit((m.Chunk(0, 0, 50),)), 0.0)
    scheduler.settle(0.0)
    scheduler.receive(PARENT, m.Explain(50, 0, 49), 0.0)
    (told,) = [message for _, message in scheduler.settle(0.0) if isinstance(message, m.Explained)]
    assert said in told.facts[0][0]


class Mixed:
    """A few short ones, a long one, and many short ones."""

    def __init__(self, lengths: list[float]) -> None:
        self.lengths = lengths

    def outcome(self, group: JobGroup, index: int, attempt: int) -> Outcome:
        return Outcome(self.lengths[index])


@pytest.mark.parametrize(("machine", "levels", "long"), [
    ("1x(2c)", ("node", "core"), 1), ("3x(2c)", ("node",), 4), ("3x(2c)", ("node", "core"), 4),
    ("4x(8c)", ("node",), 20)])
@pytest.mark.parametrize("distribution", ["pull", "least_loaded", "round_robin"])
def test_short_jobs_behind_long_ones_go_elsewhere(machine: str, levels: tuple[str, ...], long: int,
                                                  distribution: str) -> None:
    """Nobody is idle for long beside jobs that wait: by the end of the long ones all the others have been done."""
    lengths = [0.002] * 20 + [30.0] * long + [0.002] * 1500
    workflow = Workflow(name="x", hierarchy=HierarchySpec(levels=tuple(LevelSpec(by=by) for by in levels),
                                                          distribution=distribution),
                        groups=(JobGroup(number=0, name="a", first_id=1, count=len(lengths)),))
    cluster = Cluster(build(parse_cluster(machine)), workflow, Mixed(lengths))
    cluster.run()
    assert cluster.now - START < 35.0
