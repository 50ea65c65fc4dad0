"""Named resources: read, counted at the root, lent with cores, and never in use twice."""

from __future__ import annotations

import pytest

from mpiflux.model.jobspec import HierarchySpec, JobGroup, LevelSpec, PolicySpec, Request, Workflow
from mpiflux.model.messages import Borrow, Chunk, Declare, ExecutorLost, Lend, NodeShare, Part, ResourceSet, Submit
from mpiflux.model.records import PACK
from mpiflux.model.resources import NodeResources
from mpiflux.overlay.address import MASTER
from mpiflux.overlay.plan import PlannedScheduler
from mpiflux.sched.assembly import assemble
from mpiflux.sched.meter import Meter
from mpiflux.sched.pool import PoolError, ResourcePool
from mpiflux.sched.scheduler import Scheduler
from mpiflux.sim.cluster import START, Cluster
from mpiflux.sim.compare import CannotSimulate, Variant, simulate
from mpiflux.sim.costs import Costs
from mpiflux.sim.executor import Outcome
from mpiflux.sim.invariants import Invariants, Violation
from mpiflux.sim.machine import ClusterError, build, cluster_consumables, parse_cluster, supplied
from mpiflux.spec import WorkflowError, load

TREES = [(), ("node",), ("node", "core"), ("numa",)]


def record(job: int, attempt: int) -> bytes:
    return PACK.pack(job, attempt, 1, 0, 0, 1, 0, 0, 1.0, 1.0, 2.0, 0, 0, 0, 0, 0, 0)


def test_a_meter_gives_out_no_more_than_there_is_and_gets_it_back() -> None:
    meter = Meter({"license": 5})
    asked = meter.asked(Request(consumables={"license": 2, "bb": 7, "none": 0}))
    assert asked == (("license", 2),)
    assert meter.room(asked, 10) == 2
    meter.take([7, 8], 1, asked)
    assert meter.free == {"license": 1}
    meter.ended(record(7, 1) + record(99, 1))
    assert meter.free == {"license": 3}
    meter.ended(record(8, 3))
    assert meter.free == {"license": 3}, "the record of another attempt ends nothing"
    meter.give([8, 8, 7])
    assert meter.free == meter.totals


def test_who_was_refused_is_not_passed_by_in_the_same_round() -> None:
    meter = Meter({"license": 3, "power": 3})
    meter.take([1], 1, (("license", 2),))
    assert meter.room((("license", 3),), 1) == 0
    assert meter.room((("license", 1),), 1) == 0
    assert meter.room((("power", 1),), 1) == 1
    meter.over()
    assert meter.room((("license", 1),), 1) == 1


def test_what_is_lent_has_its_named_resources_with_it() -> None:
    pool = ResourcePool([NodeResources(node=0, cores=(0, 1), consumables={"bb": 10})])
    lent = ResourceSet((NodeShare(0, (0,), (), 0, 0, (("bb", 8),)),))
    pool.remove(lent)
    asks = Request(consumables={"bb": 3})
    assert pool.alloc(asks) is None and pool.capacity(asks) == 0
    with pytest.raises(PoolError, match="3 bb to be lent"):
        pool.remove(ResourceSet((NodeShare(0, (), (), 0, 0, (("bb", 3),)),)))
    pool.restore(lent)
    r = pool.alloc(asks)
    assert r is not None and r.shares[0].named == (("bb", 3),)
    assert not pool.is_free(ResourceSet((NodeShare(0, (), (), 0, 0, (("bb", 8),)),)))
    pool.free(r, asks)
    assert pool.is_free(ResourceSet((NodeShare(0, (), (), 0, 0, (("bb", 10),)),)))


class Seconds:
    def outcome(self, group: JobGroup, index: int, attempt: int) -> Outcome:
        return Outcome(1.0)


def _groups() -> tuple[JobGroup, ...]:
    requests = [(12, Request(consumables={"license": 1})), (3, Request(consumables={"license": 3, "bb": 40})),
                (8, Request(consumables={"bb": 30})),
                (2, Request(nodes=2, tasks=2, consumables={"license": 2, "bb": 120})),
                (5, Request(tasks=5, consumables={"bb": 70})), (20, Request())]
    first, groups = 1, []
    for number, (count, request) in enumerate(requests):
        groups.append(JobGroup(number=number, name=f"g{number}", first_id=first, count=count, request=request))
        first += count
    return tuple(groups)


@pytest.mark.parametrize("policy", ["fcfs", "easy", "conservative", "priority"])
@pytest.mark.parametrize("tree", TREES)
def test_nothing_is_given_twice_at_any_level_and_all_jobs_end(tree: tuple[str, ...], policy: str) -> None:
    machine = supplied(build(parse_cluster("3x(4c,2n)")), {"license": 3}, {"bb": 100})
    workflow = Workflow(name="x", hierarchy=HierarchySpec(levels=tuple(LevelSpec(by=by) for by in tree)),
                        policy=PolicySpec(policy), groups=_groups())
    watch = Invariants()
    watch.watch(machine)
    cluster = Cluster(machine, workflow, Seconds(), watcher=watch)
    cluster.run()
    watch.finish(cluster)
    # three licences: 12 + 3 × 3 + 2 × 2 licence-seconds
    assert cluster.now - START >= 25 / 3


def _root_with_a_wide_job() -> Scheduler:
    """The root above two nodes of a core: job 1 runs on both and has the only licence, job 2 waits for it."""
    parts = [NodeResources(node=node, cores=(0,)) for node in (0, 1)]
    planned = PlannedScheduler(id=0, parent=-1, children=(1, 2), rank=0, depth=0, name="root", resources=tuple(parts),
                               policy=PolicySpec("fcfs"), distribution="pull", consumables={"license": 1})
    root = assemble(planned, MASTER, lambda child: [parts[child - 1]], {(0, 0): 100, (1, 0): 101})
    wide = JobGroup(number=0, name="wide", first_id=1, count=2, request=Request(nodes=2, tasks=2,
                                                                                consumables={"license": 1}))
    root.receive(MASTER, Declare(wide), 1.0)
    root.receive(MASTER, Submit((Chunk(0, 0, 2),)), 1.0)
    for child, message in root.settle(1.0):
        if isinstance(message, Borrow):
            root.receive(child, Lend(message.token, 0.0), 1.0)
    assert _begun(root.settle(1.0)) == [(100, 1), (101, 1)]
    return root


def _begun(actions: list[tuple[int, object]]) -> list[tuple[int, int]]:
    """(executor, job) of the parts that start."""
    return [(executor, message.id) for executor, message in actions if isinstance(message, Part)]


def test_what_died_with_its_supervisors_gives_back_before_the_next_decision() -> None:
    """There may be none after it."""
    root = _root_with_a_wide_job()
    root.receive(100, ExecutorLost(100), 2.0)
    assert not _begun(root.settle(2.0)), "its other part is still to end"
    root.receive(101, ExecutorLost(101), 2.0)
    assert _begun(root.settle(2.0)) == [(100, 2), (101, 2)]


def test_the_watch_sees_what_is_given_twice() -> None:
    machine = supplied(build(parse_cluster("2x(4c)")), {"license": 1}, {"bb": 10})
    watch = Invariants()
    watch.watch(machine)
    watch.leased(7, 1, ResourceSet((NodeShare(0, (0,), (), 0, 1, (("bb", 6),)),)))
    with pytest.raises(Violation, match="bb of node 0"):
        watch.leased(7, 2, ResourceSet((NodeShare(0, (1,), (), 0, 1, (("bb", 6),)),)))
    watch._asking.append((range(1, 9), {"license": 1}))
    watch.leased(7, 3, ResourceSet((NodeShare(0, (2,)),)))
    watch.job_started(7, 3, 1, 1)
    with pytest.raises(Violation, match="2 license are in use; there are 1"):
        watch.part_started(7, Part(2, 1, 0, 1, 0, (1,), NodeShare(0, (3,)), ""))


def test_simulate_counts_their_use_and_refuses_what_never_fits() -> None:
    group = JobGroup(number=0, name="a", first_id=1, count=8, request=Request(consumables={"license": 1}))
    workflow = Workflow(name="x", groups=(group,), consumables={"license": 2})
    found = simulate(Variant("v", None, PolicySpec()), build(parse_cluster("2x(8c)")), workflow, Seconds(),
                     Costs(commit=0.0))
    assert found.makespan == pytest.approx(4, abs=0.1)
    assert found.utilisation["license"] == pytest.approx(1, abs=0.05)
    dear = JobGroup(number=0, name="a", first_id=1, count=1, request=Request(consumables={"license": 3}))
    with pytest.raises(CannotSimulate, match="asks for 3 license; there are 2"):
        simulate(Variant("v", None, PolicySpec()), build(parse_cluster("2x(8c)")),
                 Workflow(name="x", groups=(dear,), consumables={"license": 2}), Seconds(), None)  # type: ignore[arg-type]


def test_a_workflow_declares_them() -> None:
    text = b"""\
resources: {instance: {license: 10}, node: {burst_buffer: 1600GB}}
jobs:
  a: {command: x, resources: {license: 2, burst_buffer: 1.5TiB}}
"""
    workflow = load("w.yaml", text=text)
    assert (workflow.consumables, workflow.node_consumables) == ({"license": 10}, {"burst_buffer": 1600 * 10**9})
    assert workflow.groups[0].request.consumables == {"license": 2, "burst_buffer": 3 << 39}


@pytest.mark.parametrize(("text", "word"), [
    ("resources: {node: {cores: 3}}", "found out from the machine"),
    ("resources: {nodes: {a: 3}}", "did you mean 'node'"),
    ("resources: {node: {a: -3}}", "at least 0"), ("resources: {node: {a: lots}}", "a whole number, or a size"),
    ("resources: {node: {a: 1}, instance: {a: 1}}", "give it once"),
    ("resources: {node: {a-: 1, 2b: 1}}", "cannot name"),
])
def test_what_is_wrong_is_said(text: str, word: str) -> None:
    with pytest.raises(WorkflowError, match=word):
        load("w.yaml", text=f"{text}\njobs: {{a: {{command: x}}}}\n".encode())


def test_a_cluster_declares_them(tmp_path: object) -> None:
    path = f"{tmp_path}/racks.yaml"
    with open(path, "w", encoding="utf-8") as file:
        file.write("racks: [{cores: 2, count: 2, consumables: {bb: 1.6TB}}]\nconsumables: {license: 4}\n")
    machine = build(parse_cluster(path), consumables=cluster_consumables(path))
    machine = supplied(machine, {"license": 9, "power": 5}, {"bb": 1, "disk": 2})
    assert machine.consumables == {"license": 4, "power": 5}
    assert machine.nodes[1].resources.consumables == {"bb": 1_600_000_000_000, "disk": 2}
    with open(path, "w", encoding="utf-8") as file:
        file.write("racks: [{cores: 2}]\nconsumables: {license: many}\n")
    with pytest.raises(ClusterError, match="'many' is no amount"):
        cluster_consumables(path)
