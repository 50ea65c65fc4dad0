"""What every policy promises, on machines of all kinds: nodes, GPUs, memory, named resources, whole nodes, several."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpiflux.model.jobspec import PolicySpec, Request
from mpiflux.model.resources import NodeResources
from mpiflux.sched.policies import KNOWN, make
from mpiflux.sched.testing import Start, Trial, TrialJob, node

Workload = tuple[list[TrialJob], list[NodeResources], dict[str, int]]
EPS = 1e-6
NAMES = sorted(KNOWN)


@st.composite
def requests(draw: st.DrawFn, nodes: list[NodeResources], shared: dict[str, int]) -> Request:
    cores, gpus = min(len(n.cores) for n in nodes), min(len(n.gpus) for n in nodes)
    kind = draw(st.sampled_from(("one", "one", "gpu", "many", "nodes", "exclusive", "named", "memory")))
    few = draw(st.integers(1, cores))
    if kind == "gpu" and gpus:
        return Request(cores=few, gpus=draw(st.integers(1, gpus)))
    if kind == "many":
        return Request(tasks=draw(st.integers(1, len(nodes) * (cores // few))), cores=few,
                       layout=draw(st.sampled_from(("pack", "spread"))))
    if kind in ("nodes", "exclusive"):
        wanted = draw(st.integers(1, len(nodes)))
        return Request(nodes=wanted, tasks=wanted * draw(st.integers(1, max(1, cores // few))), cores=few,
                       exclusive=kind == "exclusive")
    if kind == "named" and shared:
        return Request(cores=few, consumables={"license": draw(st.integers(1, shared["license"]))})
    if kind == "memory":
        return Request(cores=draw(st.integers(0, cores)), memory=draw(st.integers(1, nodes[0].memory)))
    return Request(cores=few)


@st.composite
def workloads(draw: st.DrawFn, limits: bool = True, most: int = 1) -> Workload:
    cores, gpus, count = draw(st.integers(1, 6)), draw(st.integers(0, 2)), draw(st.integers(1, 4))
    nodes = [node(cores, gpus, i, memory=10) for i in range(count)]
    shared = draw(st.sampled_from(({}, {"license": 3})))
    jobs, arrival = [], 0.0
    for _ in range(draw(st.integers(1, 16))):
        arrival += draw(st.sampled_from((0, 0, 0, 1, 2, 7)))
        seconds = draw(st.integers(1, 10))
        limit = seconds * draw(st.sampled_from((1, 1, 2, 4))) if limits or draw(st.booleans()) else 0
        request = draw(requests(nodes, shared))
        on = tuple(range(count)) if request.nodes == 0 and request.tasks == 1 and draw(st.integers(0, 5)) == 0 else ()
        jobs.append(TrialJob(arrival, seconds, limit, request, count=draw(st.integers(1, most)), on=on))
    return jobs, nodes, shared


def run(name: str, workload: Workload, **options: int) -> Trial:
    jobs, nodes, shared = workload
    trial = Trial(make(PolicySpec(name, dict(options))), jobs, nodes, shared)
    trial.run()
    return trial


def overlaps(one: Start, other: Start) -> bool:
    return one.start < other.end and other.start < one.end


def check_use(starts: Sequence[Start], workload: Workload) -> None:
    """Nothing is given twice; everything ran once."""
    jobs, nodes, shared = workload
    assert sorted(one.job for one in starts) == [j for j, job in enumerate(jobs) for _ in range(job.count)]
    for i, one in enumerate(starts):
        together = [other for other in starts if other.start <= one.start < other.end]
        for name, amount in shared.items():
            assert sum(jobs[other.job].request.consumables.get(name, 0) for other in together) <= amount
        for n in nodes:
            assert sum(s.memory for other in together for s in other.r.shares if s.node == n.node) <= n.memory
        for other in starts[:i]:
            if overlaps(one, other):
                for mine in one.r.shares:
                    for theirs in other.r.shares:
                        assert mine.node != theirs.node or not (
                            set(mine.cores) & set(theirs.cores) or set(mine.gpus) & set(theirs.gpus))


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_job_runs_once_and_nothing_is_given_twice(name: str, data: st.DataObject) -> None:
    workload = data.draw(workloads(limits=False, most=4))
    check_use(run(name, workload).starts, workload)


@pytest.mark.parametrize("name", NAMES)
@given(workload=workloads(limits=False))
@settings(max_examples=20, deadline=None)
def test_the_same_jobs_give_the_same_schedule(name: str, workload: Workload) -> None:
    assert run(name, workload).starts == run(name, workload).starts


@pytest.mark.parametrize(("name", "options"), [
    ("easy", {}), ("conservative", {}), ("conservative", {"queue_depth": 3}), ("fcfs", {"patience": 2}),
    ("priority", {"patience": 0})])
@given(workload=workloads())
@settings(max_examples=80, deadline=None)
def test_promises_are_kept(name: str, options: dict[str, int], workload: Workload) -> None:
    """A place that was promised is never moved to a later time, and the job starts by then."""
    jobs, nodes, shared = workload
    policy = make(PolicySpec(name, dict(options)))
    trial = Trial(policy, jobs, nodes, shared)
    promised: dict[int, float] = {}

    def watch(trial: Trial) -> None:
        for one in policy.reservations:
            assert one.start <= promised.get(one.group, one.start) + EPS
            promised[one.group] = one.start

    trial.watchers.append(watch)
    for one in trial.run():
        assert one.start <= promised.get(one.job, one.start) + EPS


def test_a_place_that_is_due_at_once_is_used_at_once() -> None:
    """Nine tasks find six cores on node 2 and three on node 3, beside a place held there for three from 1 s on."""
    jobs = [TrialJob(0.0, 1.0, 1.0, Request(tasks=2, cores=4)),
            TrialJob(0.0, 1.0, 1.0, Request(nodes=3, tasks=9)),
            TrialJob(0.0, 1.0, 1.0, Request(), on=(0,)),
            TrialJob(0.0, 1.0, 1.0, Request(), on=(0,)),
            TrialJob(0.0, 2.0, 2.0, Request(tasks=9, layout="spread"))]
    for depth in (3, 32):
        starts = run("conservative", (jobs, [node(6, index=i) for i in range(4)], {}), queue_depth=depth).starts
        assert {one.job: one.start for one in starts} == {0: 0.0, 1: 1.0, 2: 0.0, 3: 0.0, 4: 0.0}


@given(workload=workloads(limits=False))
@settings(max_examples=60, deadline=None)
def test_fcfs_at_depth_one_starts_in_order(workload: Workload) -> None:
    starts = [one.start for one in sorted(run("fcfs", workload, queue_depth=1).starts, key=lambda one: one.job)]
    assert starts == sorted(starts)


@given(workload=workloads())
@settings(max_examples=60, deadline=None)
def test_easy_starts_the_head_no_later_than_if_nothing_had_passed_it(workload: Workload) -> None:
    """The promise itself is right: without the jobs behind it, the head starts no earlier than promised at the
    first time when all limits are used up."""
    jobs, nodes, shared = workload
    jobs = [TrialJob(0.0, job.limit, job.limit, job.request) for job in jobs]
    policy = make(PolicySpec("easy"))
    trial = Trial(policy, jobs, nodes, shared)
    trial.run(until=0.0)
    if not policy.reservations:
        return
    head, promise = policy.reservations[0].group, policy.reservations[0].start
    started = {one.job for one in trial.starts}
    alone = [jobs[j] for j in sorted(started) if j < head] + [jobs[head]]
    last = [one for one in run("fcfs", (alone, nodes, shared), queue_depth=1).starts if one.job == len(alone) - 1]
    assert last[0].start == promise


STREAM = 120.0


def stream(limit: float, large: Request, small: Request, seconds: float = 3.0) -> list[TrialJob]:
    """Small jobs that overlap one another for two minutes, and a large one that comes at 5 s."""
    jobs = [TrialJob(at, seconds, limit and limit * (1 + at % 3), small)
            for i in range(int(STREAM)) for at in (float(i), i + 0.5)]
    return [*jobs, TrialJob(5.0, 10.0, limit * 4, large)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("limit", [0.0, 4.0])
@pytest.mark.parametrize(("large", "nodes"), [
    (Request(cores=4), [node(4)]),
    (Request(nodes=2, exclusive=True), [node(2, index=i) for i in range(3)]),
    (Request(tasks=6), [node(2, index=i) for i in range(3)]),
    (Request(cores=2, gpus=2), [node(4, 2)]),
])
def test_a_stream_of_small_jobs_starves_no_large_one(name: str, limit: float, large: Request,
                                                     nodes: list[NodeResources]) -> None:
    options = {"patience": 20} if "patience" in KNOWN[name].options else {}
    small = Request(cores=1, gpus=1) if large.gpus else Request()
    jobs = stream(limit, large, small)
    found = run(name, (jobs, nodes, {}), **options).starts
    start = next(one.start for one in found if one.job == len(jobs) - 1)
    # by then the jobs before it have had their turn, and what ran when patience was over has used up its limit
    assert start <= 5.0 + options.get("patience", 0) + 25.0


def test_without_its_guard_the_stream_would_starve_it() -> None:
    """So that the test above can fail."""
    jobs = stream(4.0, Request(cores=4), Request())
    found = run("fcfs", (jobs, [node(4)], {}), patience=1_000_000).starts
    assert next(one.start for one in found if one.job == len(jobs) - 1) > STREAM


def test_age_wins_over_urgency_in_the_end() -> None:
    """A stream of urgent jobs for days; an hour counts as one point by default."""
    jobs = [TrialJob(600.0 * i, 700.0, 0, Request(), priority=20) for i in range(100)]
    old = [*jobs, TrialJob(0.0, 1.0, 0, Request(), priority=16)]
    for options, latest in (({}, 4.0), ({"ageing": 8}, 0.5), ({"ageing": 0}, 19.0)):
        found = run("priority", (old, [node(1)], {}), **options).starts
        start = next(one.start for one in found if one.job == 100) / 3600
        # there is more to do than is done: what starts then came earlier, by a seventh
        assert latest - 0.01 < start < latest * 7 / 6 + 0.4
