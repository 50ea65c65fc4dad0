"""Jobs larger than any child's share: borrowed for, run, and given back, while small jobs keep coming."""

from __future__ import annotations

import pytest

from mpiflux.model import messages as m
from mpiflux.model.jobspec import HierarchySpec, JobGroup, LevelSpec, NestedSpec, PolicySpec, Request, Workflow
from mpiflux.model.resources import NodeResources
from mpiflux.model.states import Result
from mpiflux.sched.claims import Claims
from mpiflux.sched.pool import ResourcePool
from mpiflux.sim.chaos import MOST_EVENTS
from mpiflux.sim.cluster import Cluster
from mpiflux.sim.costs import Costs, load_costs
from mpiflux.sim.executor import Outcome
from mpiflux.sim.invariants import Invariants
from mpiflux.sim.machine import build, parse_cluster


class Lengths:
    """Every job of a group takes as long."""

    def __init__(self, **seconds: float) -> None:
        self.seconds = seconds

    def outcome(self, group: JobGroup, index: int, attempt: int) -> Outcome:
        return Outcome(self.seconds[group.name], Result.COMPLETED, 0, False)


def group(number: int, name: str, first: int, count: int, **fields: object) -> JobGroup:
    return JobGroup(number=number, name=name, first_id=first, count=count, command=("x",), **fields)


def levels(*names: str | int) -> HierarchySpec:
    return HierarchySpec(levels=tuple(
        LevelSpec(by="width", width=name) if isinstance(name, int) else LevelSpec(by=name) for name in names))


def play(machine: str, hierarchy: HierarchySpec, lengths: Lengths, *groups: JobGroup,
         policy: str = "fcfs", costs: Costs | None = None, **options: object) -> Cluster:
    invariants = Invariants()
    workflow = Workflow(name="w", hierarchy=hierarchy, groups=groups, policy=PolicySpec(policy, options))
    cluster = Cluster(build(parse_cluster(machine)), workflow, lengths, costs=costs, watcher=invariants)
    cluster.begin()
    while cluster.step():
        assert cluster.engine.events < MOST_EVENTS, cluster.dump()
    cluster.check_over()
    invariants.finish(cluster)
    assert cluster.master.table.counts().completed == sum(one.count for one in groups)
    return cluster


def times(cluster: Cluster, number: int) -> list[tuple[float, float]]:
    """(start, end) of the jobs of a group, from the records."""
    from mpiflux.model.records import PACK, SIZE

    first = cluster.master.table.groups[number]
    found = []
    for data in cluster.master.records:
        for at in range(0, len(data), SIZE):
            record = PACK.unpack_from(data, at)
            if first.first_id <= record[0] < first.stop_id:
                found.append((record[9], record[10]))
    return sorted(found)


@pytest.mark.parametrize("policy", ["fcfs", "easy", "conservative", "priority"])
@pytest.mark.parametrize("names", [("core",), (2,), (2, 2), ("node", "core")])
def test_a_job_of_the_whole_node_runs_among_small_ones(names, policy):
    play("1x(8c)", levels(*names), Lengths(small=1.0, large=2.0), group(0, "small", 1, 64),
         group(1, "large", 65, 3, request=Request(cores=8)), policy=policy)


def test_a_stream_of_small_jobs_cannot_starve_a_large_one():
    """A thousand seconds of small jobs wait behind and around it; it starts when the longest of them has ended."""
    cluster = play("1x(8c)", levels("core"), Lengths(small=1.0, large=1.0), group(0, "small", 1, 8 * 300, priority=16),
                   group(1, "large", 2401, 1, request=Request(cores=8), priority=20))
    begin = times(cluster, 0)[0][0]
    (start, _), = times(cluster, 1)
    assert start - begin < 3.5


@pytest.mark.parametrize("policy", ["fcfs", "easy", "conservative", "priority"])
@pytest.mark.parametrize(("machine", "tree"), [("1x(4c)", "core"), ("4x(2c)", "node")])
def test_a_queue_of_large_jobs_cannot_starve_small_ones_before_it(machine, tree, policy):
    """They take turns: nobody has the machine twice as long as the other while both wait."""
    whole = Request(cores=4) if tree == "core" else Request(tasks=8, nodes=4)
    cluster = play(machine, levels(tree), Lengths(small=10.0, large=10.0), group(0, "small", 1, 80),
                   group(1, "large", 81, 40, request=whole), policy=policy)
    small, large = times(cluster, 0), times(cluster, 1)
    begin = small[0][0]
    rounds = 80 / (4 if tree == "core" else 8)
    assert small[-1][0] - begin < 3 * rounds * 10
    assert large[0][0] - begin < 45
    passed = sum(start < small[-1][0] for start, _ in large)
    assert passed < 2 * rounds


@pytest.mark.parametrize("policy", ["fcfs", "easy", "priority"])
def test_a_large_job_borrows_nothing_while_more_urgent_small_ones_wait(policy):
    cluster = play("2x(4c)", levels("node"), Lengths(small=10.0, large=10.0), group(0, "small", 1, 75, priority=20),
                   group(1, "large", 76, 5, request=Request(nodes=2, tasks=2, cores=4)), policy=policy)
    assert times(cluster, 0)[-1][0] <= times(cluster, 1)[0][0]


@pytest.mark.parametrize("tree", [levels("core"), levels(2)])
def test_at_depth_1_nothing_passes_what_children_were_given_before(tree):
    """The claim of a large job used to take what the first of them were about to start on."""
    cluster = play("1x(4c)", tree, Lengths(first=1.0, large=1.0, last=1.0), group(0, "first", 1, 30),
                   group(1, "large", 31, 3, request=Request(cores=4)), group(2, "last", 34, 8),
                   costs=load_costs(), queue_depth=1)
    first, large, last = (times(cluster, number) for number in range(3))
    assert first[-1][0] <= large[0][0] and large[-1][0] <= last[0][0]


def test_the_rest_of_the_machine_works_on_while_a_part_is_borrowed():
    cluster = play("1x(8c)", levels("core"), Lengths(small=0.5, large=20.0), group(0, "small", 1, 100),
                   group(1, "large", 101, 1, request=Request(cores=4), priority=20))
    (start, end), = times(cluster, 1)
    meanwhile = [one for one in times(cluster, 0) if start < one[0] and one[1] < end]
    assert len(meanwhile) > 50


def test_uneven_children_lend_only_what_is_asked():
    children = (NestedSpec(name="big", share_cores=6), NestedSpec(name="small"))
    play("1x(8c)", HierarchySpec(nested=NestedSpec(children=children)), Lengths(a=1.0, b=1.0, c=1.0),
         group(0, "a", 1, 30), group(1, "b", 31, 5, request=Request(cores=7)),
         group(2, "c", 36, 5, request=Request(cores=5)))


def test_gpus_are_borrowed_with_their_cores():
    play("2x(8c,2g)", levels("node", 2), Lengths(md=1.0, small=0.2), group(0, "small", 1, 200),
         group(1, "md", 201, 6, request=Request(tasks=1, cores=4, gpus=2)))


def test_the_cost_in_idle_cores_is_told():
    cluster = play("1x(4c)", levels("core"), Lengths(small=1.0, large=1.0), group(0, "small", 1, 16),
                   group(1, "large", 17, 2, request=Request(cores=4), priority=20))
    assert cluster.master.borrowed
    for message in cluster.master.borrowed:
        assert message.cores == 4 and 0 <= message.idle <= 4 * message.waited


@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize("policy", ["fcfs", "easy"])
def test_memory_that_no_child_has_alone_is_borrowed_from_several(width, policy):
    """The job's core is one child's, most of its memory the others'."""
    play("1x(6c,60G)", levels(width), Lengths(small=0.5, big=1.0),
         group(0, "small", 1, 60, request=Request(cores=1, memory=1 << 30)),
         group(1, "big", 61, 4, request=Request(cores=1, memory=50 << 30)), policy=policy)


@pytest.mark.parametrize("machine", ["1x(3c,7G)", "1x(4c,7G)", "1x(8c,7G)"])
def test_a_whole_node_of_unequal_children(machine):
    play(machine, levels(3), Lengths(small=0.5, whole=1.0), group(0, "small", 1, 40),
         group(1, "whole", 41, 3, request=Request(cores=1, exclusive=True)))


def test_uneven_shares_lend_a_whole_node_and_its_memory():
    children = (NestedSpec(name="big", share_cores=6), NestedSpec(name="small"))
    play("1x(8c,11G)", HierarchySpec(nested=NestedSpec(children=children)), Lengths(a=1.0, b=1.0, c=1.0),
         group(0, "a", 1, 30), group(1, "b", 31, 5, request=Request(cores=1, exclusive=True)),
         group(2, "c", 36, 5, request=Request(cores=2, memory=10 << 30)))


def on_each(number: int, name: str, first: int, nodes: int, times: int, **asks: int) -> JobGroup:
    """A ``per: node`` group, so often on every node."""
    return group(number, name, first, nodes * times, request=Request(per_node=True, **asks), on=tuple(range(nodes)))


@pytest.mark.parametrize("policy", ["fcfs", "easy", "conservative", "priority"])
@pytest.mark.parametrize(("machine", "names", "asks"), [
    ("3x(4c)", (2,), {"cores": 3}),
    ("3x(4c)", (2, 2), {"cores": 3}),
    ("3x(4c,64GiB)", (2,), {"cores": 1, "memory": 48 << 30}),
    ("1x(16c,64GiB)+2x(2c,64GiB)", (2,), {"cores": 0, "memory": 48 << 30}),
    ("1x(16c,64GiB)+2x(2c,64GiB)", (2, 2), {"cores": 0, "memory": 48 << 30}),
])
def test_a_job_for_one_node_of_which_no_child_has_enough(machine, names, asks, policy):
    """Some child could hold such a job, but not on that node."""
    play(machine, levels(*names), Lengths(small=0.5, mon=1.0), group(0, "small", 1, 60),
         on_each(1, "mon", 61, 3, 2, **asks), policy=policy)


@pytest.mark.parametrize(("machine", "names", "nodes"), [("2x(16c,64GiB)", (3,), 2), ("3x(2c,4GiB)", (2, "node"), 3)])
def test_a_place_on_one_node_is_not_given_back_for_a_job_of_another(machine, names, nodes):
    """Whose jobs are first in the queue takes turns: each used to return what had been borrowed for the other."""
    large = (60 << 30) if nodes == 2 else 4 << 30
    play(machine, levels(*names), Lengths(a=5.0, b=1.0, c=1.0), on_each(0, "a", 1, nodes, 8, cores=0, memory=large),
         on_each(1, "b", 1 + 8 * nodes, nodes, 3, cores=0),
         group(2, "c", 1 + 11 * nodes, 40, request=Request(cores=2)))


@pytest.mark.parametrize("distribution", ["pull", "round_robin", "least_loaded"])
def test_all_children_with_a_part_of_a_node_run_what_is_for_it(distribution):
    """Two jobs for the node at once, one in each half of it."""
    hierarchy = HierarchySpec(levels=(LevelSpec(by="width", width=2),), distribution=distribution)
    cluster = play("1x(4c)", hierarchy, Lengths(mon=10.0), on_each(0, "mon", 1, 1, 4, cores=2))
    starts = [start for start, _ in times(cluster, 0)]
    assert starts[3] - starts[0] < 15


def test_claims_that_are_dropped_with_a_lost_node_leave_none_behind() -> None:
    pool = ResourcePool((NodeResources(node=0, cores=(0, 1)),))
    claims = Claims(pool)
    claims.add(1, [m.NodeShare(node=0, cores=(0,))], 0.0, era=3)
    assert claims.era == 3
    claims.drop({0})
    assert not claims and claims.era < 0 and claims.collect(1.0) == []
