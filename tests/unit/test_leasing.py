"""Leases on executors: order, bounds, and what becomes of everything when executors end, return or lose jobs."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpiflux.model import messages as m
from mpiflux.model.jobspec import HierarchySpec, JobGroup, PolicySpec, Request, Workflow
from mpiflux.model.records import PACK
from mpiflux.model.resources import NodeResources
from mpiflux.model.states import Result
from mpiflux.sched.catalog import Catalog
from mpiflux.sched.handed import MOST_AHEAD
from mpiflux.sched.leasing import Leasing
from mpiflux.sched.policies import make
from mpiflux.sched.pool import ResourcePool
from mpiflux.sched.scheduler import Scheduler
from mpiflux.sim.cluster import START, Cluster
from mpiflux.sim.executor import Outcome
from mpiflux.sim.invariants import resources_of
from mpiflux.sim.machine import build, parse_cluster

PARENT = 99
CORES_EACH = 2
REQUESTS = (Request(), Request(cores=2), Request(cores=3, gpus=1), Request(tasks=2, cores=2))


class Bench:
    """A leaf scheduler over executors of two cores each, played by hand."""

    def __init__(self, cores: int = 6, depth: int = 1) -> None:
        self.executors = tuple(range(100, 100 + -(-cores // CORES_EACH)))
        self.pool = ResourcePool([NodeResources(node=0, cores=tuple(range(cores)), gpus=(0, 1))])
        catalog = Catalog()
        self.below = Leasing(3, PARENT, self.pool, lambda node, core: 100 + max(core, 0) // CORES_EACH, self.executors,
                             catalog)
        self.scheduler = Scheduler(3, PARENT, make(PolicySpec("fcfs", {"queue_depth": depth})), self.below, catalog)
        self.now = 10.0
        for number, request in enumerate(REQUESTS):
            self.tell(m.Declare(JobGroup(number=number, name=f"g{number}", first_id=1 + number * 1000, count=1000,
                                         request=request)))
        self.fed: dict[tuple[int, int], list[m.Chunk]] = {}
        """(executor, shape) to what it has."""
        self.leases: dict[int, dict[int, m.Grant]] = {executor: {} for executor in self.executors}
        self.order: list[list[int]] = []
        """Job ids fed, by settle."""
        self.up: list[m.Message] = []
        self.acks: list[int] = []
        self.below_told: list[tuple[int, m.Message]] = []

    def tell(self, message: m.Message, src: int = PARENT) -> None:
        self.scheduler.receive(src, message, self.now)

    def submit(self, *chunks: m.Chunk) -> None:
        self.tell(m.Submit(chunks))

    def settle(self) -> None:
        fed: list[int] = []
        for dst, message in self.scheduler.settle(self.now):
            if dst == PARENT:
                self.up.append(message)
            elif isinstance(message, m.Grant):
                self.leases[dst][message.lease] = message
            elif isinstance(message, m.Feed):
                self.fed.setdefault((dst, message.shape), []).extend(message.chunks)
                fed += [job for chunk in message.chunks for job in self.below.catalog.ids(chunk)]
            elif isinstance(message, m.ExecutorLost):
                self.acks.append(dst)
            else:
                self.below_told.append((dst, message))
        if fed:
            self.order.append(fed)

    def has(self, executor: int) -> int:
        return sum(len(chunk) for (who, _), chunks in self.fed.items() if who == executor for chunk in chunks)

    def end(self, executor: int, n: int, seconds: float) -> int:
        """The executor ends up to ``n`` jobs, and the leases that have nothing left to do."""
        records, done = [], []
        for (who, shape), chunks in self.fed.items():
            while who == executor and chunks and len(records) < n:
                first, rest = chunks[0].split(1)
                chunks[:1] = [rest] if rest is not None else []
                job = self.below.catalog.ids(first)[0]
                records.append(PACK.pack(job, first.attempt, 1, 0, 0, 1, 3, 0, 0, 0, self.now, 0, 0, 0, 0, 0, 0))
                done.append((shape, first.group, 1, seconds))
        self.tell(m.Report(b"".join(records), idle=self.unused(executor), done=tuple(done)), src=executor)
        return len(records)

    def unused(self, executor: int) -> tuple[int, ...]:
        """Leases of shapes with nothing left in line; they are over."""
        idle = [lease for lease, grant in self.leases[executor].items()
                if not self.fed.get((executor, grant.shape))]
        for lease in idle:
            del self.leases[executor][lease]
        return tuple(idle)

    def check(self) -> None:
        held = [one for mine in self.leases.values() for grant in mine.values() for one in resources_of(grant.r)]
        assert len(held) == len(set(held))
        cores = sum(kind == "core" for kind, _, _ in held)
        assert self.pool.free_cores == self.pool.total_cores - cores


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 12)), min_size=1, max_size=12), st.integers(4, 9),
       st.randoms(use_true_random=False))
def test_fcfs_at_depth_one_hands_out_in_order(sizes: list[tuple[int, int]], cores: int, rng: random.Random) -> None:
    bench = Bench(cores)
    at = [0, 0, 0, 0]
    wanted: list[int] = []
    for group, n in sizes:
        bench.submit(m.Chunk(group, at[group], at[group] + n))
        wanted += range(1 + group * 1000 + at[group], 1 + group * 1000 + at[group] + n)
        at[group] += n
    while sum(map(len, bench.order)) < len(wanted) or any(map(bench.has, bench.executors)):
        bench.settle()
        bench.check()
        bench.now += 0.01
        seconds = rng.choice((0.001, 0.2))
        ended = sum(bench.end(executor, rng.randrange(0, 4), seconds) for executor in bench.executors)
        if not ended:
            assert any(bench.end(executor, 1, seconds) for executor in bench.executors), "jobs wait and none runs"
    # within one decision executors are told in any order; from one to the next none overtakes another
    position = {job: place for place, job in enumerate(wanted)}
    place = 0
    for fed in bench.order:
        assert sorted(position[job] for job in fed) == list(range(place, place + len(fed)))
        place += len(fed)
    bench.settle()
    bench.check()


def test_long_jobs_are_not_given_ahead_and_short_ones_within_bounds() -> None:
    bench = Bench(2)
    bench.submit(m.Chunk(0, 0, 1000))
    bench.settle()
    assert bench.has(100) == 2  # nothing is known yet: one job a lease
    bench.end(100, 1, 5.0)
    bench.settle()
    assert bench.has(100) == 2
    most = 0
    for _ in range(40):
        bench.end(100, 2, 1e-5)
        bench.settle()
        most = max(most, bench.has(100))
    assert 2 * 20 < most <= 2 * (1 + MOST_AHEAD)


def test_what_comes_back_starts_first() -> None:
    bench = Bench(2)
    bench.submit(m.Chunk(0, 0, 400))
    for _ in range(4):
        bench.settle()
        bench.end(100, 2, 0.001)
    bench.settle()
    (key, chunks), = bench.fed.items()
    kept, back = chunks[0].split(2)
    returned = tuple((key[1], chunk) for chunk in [back, *chunks[1:]] if chunk is not None)
    bench.fed[key] = [kept]
    first = returned[0][1].start
    bench.tell(m.Report(returned=returned), src=100)
    bench.settle()
    assert bench.has(100) == 2, "it has two leases and two jobs, and jobs now pass for slow"
    bench.end(100, 2, 5.0)
    bench.settle()
    assert bench.order[-1] == [first + 1, first + 2]  # ids count from 1


def test_a_lost_executor_loses_its_jobs_and_its_leases() -> None:
    bench = Bench(6)
    bench.submit(m.Chunk(0, 0, 20, 1, 4))
    bench.settle()
    lost = [job for (who, _), chunks in bench.fed.items() if who == 101 for chunk in chunks
            for job in bench.below.catalog.ids(chunk)]
    assert len(lost) == 2
    bench.up.clear()
    bench.fed = {key: chunks for key, chunks in bench.fed.items() if key[0] != 101}
    bench.leases[101].clear()
    bench.tell(m.ExecutorLost(101), src=101)
    bench.settle()
    assert bench.acks == [101]
    report = next(message for message in bench.up if isinstance(message, m.Report))
    records = [PACK.unpack_from(report.records, at)[:3] for at in range(0, len(report.records), PACK.size)]
    assert records == [(job, 4, Result.LOST) for job in lost]
    assert bench.has(101) == 2, "its cores are free at once, for the one in its place"
    bench.check()


@pytest.mark.parametrize("interrupted", [False, True])
def test_stop_is_answered_when_executors_have_stopped_or_died(interrupted: bool) -> None:
    bench = Bench(4)
    bench.submit(m.Chunk(0, 0, 20))
    bench.settle()
    bench.tell(m.Stop(5.0))
    bench.settle()
    assert [dst for dst, message in bench.below_told if isinstance(message, m.Stop)] == [100, 101]
    bench.tell(m.Stopped(), src=100)
    bench.settle()
    assert not any(isinstance(message, m.Stopped) for message in bench.up)
    if interrupted:
        bench.tell(m.ExecutorLost(101), src=101)
    else:
        bench.tell(m.Stopped(), src=101)
    bench.settle()
    assert isinstance(bench.up[-1], m.Stopped)
    assert sum(isinstance(message, m.Stopped) for message in bench.up) == 1
    assert bench.scheduler.queue.jobs == 0


def test_a_cancelled_job_that_comes_back_ends() -> None:
    bench = Bench(2)
    bench.submit(m.Chunk(0, 0, 4))
    bench.settle()
    (key, chunks), = bench.fed.items()
    ids = [job for chunk in chunks for job in bench.below.catalog.ids(chunk)]
    bench.tell(m.Cancel((ids[1],), "not wanted"))
    bench.settle()
    assert [dst for dst, message in bench.below_told if isinstance(message, m.Cancel)] == [100]
    bench.fed[key] = []
    bench.up.clear()
    bench.order.clear()
    bench.tell(m.Report(returned=tuple((key[1], chunk) for chunk in chunks), idle=bench.unused(100)), src=100)
    bench.settle()
    report = next(message for message in bench.up if isinstance(message, m.Report))
    assert PACK.unpack(report.records)[:3] == (ids[1], 1, Result.CANCELED)
    assert report.reasons == {ids[1]: "not wanted"}
    assert ids[1] not in bench.order[0] and ids[0] in bench.order[0]


def test_cancel_of_everything_spares_what_comes_later() -> None:
    bench = Bench(2)
    bench.submit(m.Chunk(0, 0, 4))
    bench.settle()
    bench.tell(m.Cancel((), "not wanted"))
    bench.submit(m.Chunk(1, 0, 1))
    bench.settle()
    ended = [PACK.unpack_from(message.records, at)[0] for message in bench.up if isinstance(message, m.Report)
             for at in range(0, len(message.records), PACK.size)]
    assert ended == [3, 4]
    bench.end(100, 2, 0.01)
    bench.settle()
    assert bench.order[-1] == [1001]


class Long:
    def outcome(self, group: JobGroup, index: int, attempt: int) -> Outcome:
        return Outcome(1.0 + random.Random(f"{group.number}/{index}").random())


def test_in_a_run_at_depth_one_no_job_starts_before_its_elders() -> None:
    groups = []
    for number, request in enumerate(REQUESTS * 3):
        groups.append(JobGroup(number=number, name=f"g{number}", first_id=1 + 10 * number, count=10, request=request))
    workflow = Workflow(name="x", hierarchy=HierarchySpec(levels=()), groups=tuple(groups),
                        policy=PolicySpec("fcfs", {"queue_depth": 1}))
    cluster = Cluster(build(parse_cluster("1x(8c,2g)")), workflow, Long())
    cluster.run()
    started: dict[int, float] = {}
    for data in cluster.master.records:
        for at in range(0, len(data), PACK.size):
            record = PACK.unpack_from(data, at)
            started[record[0]] = record[9]
    times = [started[job] for job in sorted(started)]
    assert len(times) == 120 and times == sorted(times)
    assert times[0] == pytest.approx(START)


class Planned:
    """A scheduler over one executor of eight cores, whose every step a test takes by hand."""

    def __init__(self, *groups: JobGroup, memory: int = 0, shared: dict[str, int] | None = None,
                 policy: str = "easy") -> None:
        self.pool = ResourcePool([NodeResources(node=0, cores=tuple(range(8)), memory=memory)], shared)
        self.catalog = Catalog()
        self.below = Leasing(3, PARENT, self.pool, lambda node, core: 100, (100,), self.catalog)
        self.policy = make(PolicySpec(policy))
        self.scheduler = Scheduler(3, PARENT, self.policy, self.below, self.catalog)
        self.grants: list[m.Grant] = []
        self.fed: list[int] = []
        for group in groups:
            self.scheduler.receive(PARENT, m.Declare(group), 0.0)

    def step(self, now: float, message: m.Message, src: int = 100) -> list[m.Message]:
        self.scheduler.receive(src, message, now)
        return self.settle(now)

    def settle(self, now: float) -> list[m.Message]:
        out = [message for _, message in self.scheduler.settle(now)]
        for one in out:
            if isinstance(one, m.Grant):
                self.grants.append(one)
            elif isinstance(one, m.Feed):
                self.fed += [job for chunk in one.chunks for job in self.catalog.ids(chunk)]
        return out

    def submit(self, now: float, group: int, n: int = 1) -> None:
        self.step(now, m.Submit((m.Chunk(group, 0, n),)), PARENT)

    def ended(self, now: float, jobs: list[int], group: int, seconds: float, idle: tuple[m.Grant, ...] = ()) -> None:
        records = b"".join(PACK.pack(job, 1, 1, 0, 0, 1, 3, 0, 0, 0, now, 0, 0, 0, 0, 0, 0) for job in jobs)
        self.step(now, m.Report(records, idle=tuple(grant.lease for grant in idle),
                                done=((self.grants[0].shape, group, len(jobs), seconds * len(jobs)),)))

    def started(self, now: float, job: int, grant: m.Grant) -> None:
        self.step(now, m.Report(started=PACK.pack(job, 1, 0, 0, 0, 1, 3, grant.r_id, now, now, 0, 0, 0, 0, 0, 0, 1)))

    def place(self) -> float:
        (held,) = self.policy.reservations  # type: ignore[attr-defined]
        return held.start


def one(number: int, limit: float, request: Request = REQUESTS[0], count: int = 1) -> JobGroup:
    return JobGroup(number=number, name=f"g{number}", first_id=1 + number * 1000, count=count, request=request,
                    time_limit=limit)


def test_what_was_fed_ahead_and_is_over_changes_no_end() -> None:
    """300 jobs of milliseconds with a limit of ten minutes, beside one of six seconds: when they are over, that one
    ends by its own limit, and the wide job behind it is promised that."""
    run = Planned(one(0, 7.0), one(1, 600.0, count=300), one(2, 2.0, Request(tasks=8)), one(3, 9.0, Request(tasks=3)))
    run.submit(0.0, 0)
    run.submit(0.0, 1, 300)
    long, *others = run.grants
    assert len(others) == 7
    run.ended(0.01, run.fed[1:8], 1, 0.005)
    given = run.fed[8:]
    assert len(given) > 40, "some are fed ahead"
    run.submit(0.02, 2)
    assert run.place() > 600.0, "any of them may hang, on any lease"
    while given:
        done, run.fed = given, []
        run.ended(0.4, done, 1, 0.005)
        given = run.fed
    assert run.scheduler.queue.jobs == 1
    run.step(0.44, m.Report(idle=tuple(grant.lease for grant in others)))
    assert run.place() == 7.0
    before = len(run.grants)
    run.submit(4.0, 3)
    assert len(run.grants) == before, "three tasks of nine seconds would be in the way"
    run.started(4.1, 1, long)
    assert run.place() == 7.0


def test_a_job_on_another_lease_than_it_was_granted_ends_there() -> None:
    """An executor may start a job on a lease that just became idle, and end the one that was granted for it."""
    run = Planned(one(0, 5.0), one(1, 50.0), one(2, 2.0, Request(tasks=8)))
    run.submit(0.0, 0)
    run.submit(1.0, 1)
    first, second = run.grants
    run.ended(1.2, [1], 0, 1.2, idle=(second,))  # the long one runs on the first lease
    run.submit(2.0, 2)
    assert run.place() == 51.0
    run.started(2.0, 1001, first)
    assert run.place() == 52.0


def test_a_job_with_a_long_limit_stands_in_no_line_whose_end_was_promised() -> None:
    """Whatever is in line may run on any lease of the line: all of these would end ten minutes later."""
    run = Planned(one(0, 0.05, count=300), one(1, 600.0, count=3), one(2, 2.0, Request(tasks=7)))
    for group in (0, 1):
        run.submit(0.0, group)
        run.ended(0.02, [run.fed[-1]], group, 0.02, idle=(run.grants[-1],))
    run.step(1.0, m.Submit((m.Chunk(0, 1, 16),)), PARENT)
    line = run.grants[2:]
    assert len(line) == 3, "fifteen jobs are in line for three leases"
    run.submit(1.0, 2)
    promised = run.place()
    assert promised < 1.2
    run.step(1.0, m.Submit((m.Chunk(1, 1, 3),)), PARENT)
    *_, apart = run.grants
    assert run.fed[-1] == 1002 and len(run.grants) == 6, "one job starts, on the core that the wide one leaves"
    assert apart.shape not in {grant.shape for grant in line}
    assert run.place() == promised
    run.ended(1.1, run.fed[2:-1], 0, 0.02, idle=tuple(line))
    assert run.fed[-1] == 2001
    records = PACK.pack(1002, 1, 1, 0, 0, 1, 3, 0, 0, 0, 1.2, 0, 0, 0, 0, 0, 0)
    run.step(1.2, m.Report(records, idle=(apart.lease,), done=((apart.shape, 1, 1, 0.02),)))
    assert run.fed[-1] == 1003


def test_the_place_of_the_first_in_the_queue_is_not_given_to_those_in_line() -> None:
    """They have their leases; where others are shorter, an executor has more in line than a lease of these may have."""
    run = Planned(one(0, 0.05, count=300), one(1, 60.0, count=300), one(2, 2.0))
    run.submit(0.0, 0)
    run.ended(0.02, [1], 0, 0.02, idle=(run.grants[0],))
    run.step(1.0, m.Submit((m.Chunk(0, 1, 43),)), PARENT)
    line = run.grants[1:]
    assert len(line) == 7
    run.submit(1.0, 1, 2)
    assert [grant.shape for grant in run.grants[8:]] == [line[0].shape], "who plans nothing lets those in line have it"
    run.ended(1.01, [2], 0, 0.02)
    run.submit(1.02, 2)
    promised = run.place()
    run.step(1.03, m.Report(idle=(line[0].lease,)))
    assert run.fed[-1] == 1001 and run.place() <= promised


@pytest.mark.parametrize("half", [Request(cores=4), Request(tasks=4)])
def test_a_place_is_used_when_it_is_due_though_nothing_else_happens(half: Request) -> None:
    """A job that starts a little late is in the way of the last one's place for as long. So there is no other place for
    the one between them than its own: it keeps that, and uses it when its time comes."""
    run = Planned(*[one(number, limit, half) for number, limit in enumerate([5.0, 5.02, 3.0, 10.0, 1.0])],
                  policy="conservative")
    for group in range(5):
        run.submit(0.0, group)
    first, second = run.grants
    assert [place.start for place in run.policy.reservations] == [5.0, 5.02, 8.0]  # type: ignore[attr-defined]
    for job, group, grant in ((1, 0, first), (1001, 1, second)):
        records = PACK.pack(job, 1, 1, 0, 0, 4, 3, 0, 0, 0, 5.01, 0, 0, 0, 0, 0, 0)
        run.step(5.01, m.Report(records, idle=(grant.lease,), done=((grant.shape, group, 1, 5.0),)))
    assert run.fed == [1, 1001, 2001]
    assert run.scheduler.due == 5.02
    run.settle(5.015)
    assert run.fed == [1, 1001, 2001]
    run.settle(5.02)
    assert run.fed == [1, 1001, 2001, 3001]


def test_jobs_that_changed_leases_are_known_from_reports() -> None:
    run = Planned(one(0, 5.0), one(1, 50.0), one(2, 2.0, Request(tasks=7)))
    run.submit(0.0, 0)
    run.submit(0.0, 1)
    run.submit(0.0, 2)
    assert run.place() == 5.0
    run.started(0.06, 1001, run.grants[0])
    run.started(0.07, 1, run.grants[1])
    assert run.place() == pytest.approx(5.07)
    run.ended(3.0, [1], 0, 3.0, idle=(run.grants[1],))
    assert len(run.fed) == 3, "seven cores are free, whatever is expected of the eighth"


@pytest.mark.parametrize(("request_", "said"), [
    (Request(memory=15 << 30), "it asks for 1 core, 15 GiB of memory; free here: 7 of 8 cores, 11 GiB of 31 GiB "
                               "memory: it waits for memory"),
    (Request(consumables={"license": 1}), "it asks for 1 core, 1 license; free here: 7 of 8 cores, 0 of 2 license: "
                                          "it waits for license"),
    (Request(tasks=8), "it asks for 8 tasks of 1 core each; free here: 7 of 8 cores: it waits for cores"),
])
def test_the_resource_that_is_missing_is_named(request_: Request, said: str) -> None:
    taken = Request(memory=20 << 30, consumables={"license": 2})
    run = Planned(one(0, 0.0, taken), one(1, 0.0, request_), memory=31 << 30, shared={"license": 2})
    run.submit(0.0, 0)
    run.submit(0.0, 1)
    out = run.step(0.0, m.Explain(1001, 1, 0), PARENT)
    (told,) = [message for message in out if isinstance(message, m.Explained)]
    assert told.facts[0][0] == said
