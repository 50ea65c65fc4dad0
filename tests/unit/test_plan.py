"""The hierarchy plan: worked trees, uneven shares, words, and that no resource is lost or dealt twice."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpiflux.model.jobspec import HierarchySpec, JobGroup, LevelSpec, NestedSpec, PolicySpec, Request
from mpiflux.model.resources import NodeResources
from mpiflux.overlay.plan import (
    NodeInfo,
    Plan,
    PlanError,
    PlannedScheduler,
    ShapeError,
    draw,
    explain_misfits,
    make_plan,
)


def nodes(count: int, cores: int = 8, gpus: int = 0, domains: int = 2, ranks: int = 1) -> list[NodeInfo]:
    """``ranks`` ranks a node that share its cores out in runs."""
    return [NodeInfo(
        index=i, name=f"n{i + 1}", ranks=tuple(range(i * ranks, (i + 1) * ranks)),
        owner=tuple(i * ranks + c * ranks // cores for c in range(cores)),
        resources=NodeResources(
            node=i, cores=tuple(range(cores)), numa=tuple(c * domains // cores for c in range(cores)),
            gpus=tuple(range(gpus)), gpu_numa=tuple(g * domains // gpus for g in range(gpus)), memory=1000,
            consumables={"burst_buffer": 7})) for i in range(count)]


def levels(*names: str | int) -> HierarchySpec:
    return HierarchySpec(levels=tuple(
        LevelSpec(by="width", width=n) if isinstance(n, int) else LevelSpec(by=n) for n in names))


def nested(*children: NestedSpec) -> HierarchySpec:
    return HierarchySpec(nested=NestedSpec(children=children))


def held(s: PlannedScheduler) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    return [(n.node, n.cores, n.gpus) for n in s.resources]


def by_name(plan: Plan) -> dict[str, PlannedScheduler]:
    return {s.name: s for s in plan.schedulers}


def group(name: str, **request: object) -> JobGroup:
    return JobGroup(number=0, name=name, first_id=1, count=1, request=Request(**request))  # type: ignore[arg-type]


def test_default_is_one_scheduler_a_node() -> None:
    assert [s.name for s in make_plan(nodes(1)).schedulers] == ["root"]
    plan = make_plan(nodes(3, ranks=2))
    assert [(s.name, s.parent, s.rank, s.depth) for s in plan.schedulers] == [
        ("root", -1, 0, 0), ("node n1", 0, 0, 1), ("node n2", 0, 2, 1), ("node n3", 0, 4, 1)]
    assert plan.depth == 2 and make_plan(nodes(3), levels()).depth == 1


def test_node_core_on_the_rank_that_owns_the_core() -> None:
    plan = make_plan(nodes(2, cores=4, gpus=2, ranks=2), levels("node", "core"))
    assert [s.id for s in plan.schedulers] == list(range(11)), "breadth first"
    assert plan.schedulers[2].children == (7, 8, 9, 10)
    cores = by_name(plan)
    assert held(cores["core n2/2"]) == [(1, (2,), (1,))] and cores["core n2/2"].rank == 3
    assert held(cores["core n2/3"]) == [(1, (3,), ())] and cores["core n1/1"].rank == 0
    assert not cores["core n1/0"].resources[0].whole and cores["node n1"].resources[0].whole
    assert cores["core n1/0"].resources[0].memory == 250


def test_numa_level_takes_its_own_gpus() -> None:
    info = nodes(1, cores=4, gpus=2)[0]
    r = info.resources
    odd = NodeResources(node=0, cores=r.cores, numa=(0, 1, 0, 1), gpus=(0, 1), gpu_numa=(1, 1), memory=10)
    plan = make_plan([NodeInfo(index=0, name="n1", ranks=(0,), owner=info.owner, resources=odd)], levels("numa"))
    assert [held(s) for s in plan.leaves] == [[(0, (0, 2), ())], [(0, (1, 3), (0, 1))]]
    assert [s.name for s in plan.leaves] == ["numa n1/0", "numa n1/1"]


def test_width_splits_cores_nearly_equally_across_nodes() -> None:
    plan = make_plan(nodes(2, cores=8, gpus=4), levels(3))
    assert [held(s) for s in plan.leaves] == [
        [(0, (0, 1, 2, 3, 4), (0, 1, 2))], [(0, (5, 6, 7), (3,)), (1, (0, 1), (0,))],
        [(1, (2, 3, 4, 5, 6, 7), (1, 2, 3))]]


def test_empty_parts_are_left_out_in_words() -> None:
    plan = make_plan(nodes(1, cores=2), levels(4, 8))
    assert plan.notes == ("width 4,8 makes 32 leaf schedulers; 2 cores make 2 of them",)
    assert len(plan.leaves) == 2 and plan.depth == 3
    mixed = make_plan(nodes(2, cores=2), levels("node", 3))
    assert mixed.notes == ("level 2, width 3: makes 6 schedulers; 4 cores make 4 of them",)
    assert make_plan(nodes(2, cores=4), levels(2, 4)).notes == ()


def test_a_level_with_one_child_is_kept() -> None:
    assert [s.name for s in make_plan(nodes(1), levels("node")).schedulers] == ["root", "node n1"]
    assert make_plan(nodes(1), levels(1, 1)).depth == 3


def test_nodes_without_cores_are_named() -> None:
    empty = NodeInfo(index=2, name="login", ranks=(9,), owner=(), resources=NodeResources(node=2, cores=()))
    plan = make_plan([*nodes(2), empty])
    assert plan.notes == ("node login has no cores to run anything on and is left out",)
    assert len(plan.schedulers) == 3


def test_policies_and_distribution_by_level() -> None:
    easy = PolicySpec("easy", {"depth": 3})
    plan = make_plan(nodes(2), HierarchySpec(distribution="round_robin", levels=(
        LevelSpec(by="node", policy=easy, distribution="pull"), LevelSpec(by="core"))), PolicySpec("priority"))
    root, first = plan.schedulers[:2]
    assert (root.policy.name, root.distribution) == ("priority", "pull")
    assert (first.policy, first.distribution) == (easy, "round_robin")
    assert plan.leaves[0].policy.name == "priority"


def test_uneven_shares() -> None:
    plan = make_plan(nodes(4, gpus=4), nested(
        NestedSpec(name="big", share_nodes=2, policy=PolicySpec("easy")),
        NestedSpec(name="cores", share_cores=6),
        NestedSpec(name="rest", children=(NestedSpec(share_gpus=1), NestedSpec()))))
    tree = by_name(plan)
    assert held(tree["big"]) == [(0, tuple(range(8)), (0, 1, 2, 3)), (1, tuple(range(8)), (0, 1, 2, 3))]
    assert held(tree["cores"]) == [(2, (0, 1, 2, 3, 4, 5), (0, 1, 2))]
    assert held(tree["rest"]) == [(2, (6, 7), (3,)), (3, tuple(range(8)), (0, 1, 2, 3))]
    assert held(tree["part 2.0"]) == [(2, (6, 7), (3,))]
    assert tree["big"].policy.name == "easy" and tree["rest"].policy.name == "fcfs" and plan.notes == ()


def test_shares_of_several_kinds_at_once() -> None:
    plan = make_plan(nodes(2, gpus=4), nested(
        NestedSpec(name="a", share_nodes=2, share_cores=8, share_gpus=2), NestedSpec(name="b")))
    tree = by_name(plan)
    assert held(tree["a"]) == [(0, (0, 1, 2, 3), (0,)), (1, (0, 1, 2, 3), (0,))]
    assert held(tree["b"]) == [(0, (4, 5, 6, 7), (1, 2, 3)), (1, (4, 5, 6, 7), (1, 2, 3))]
    both = by_name(make_plan(nodes(2, gpus=4), nested(
        NestedSpec(name="a", share_cores=6, share_gpus=6), NestedSpec(name="b"))))
    assert held(both["a"]) == [(0, (0, 1, 2, 3), (0, 1, 2, 3)), (1, (0, 1), (0, 1))]


def test_gpu_share_brings_the_near_cores() -> None:
    plan = make_plan(nodes(1, gpus=4), nested(NestedSpec(name="a", share_gpus=2), NestedSpec(name="b", share_gpus=2)))
    assert [held(s) for s in plan.leaves] == [[(0, (0, 1, 2, 3), (0, 1))], [(0, (4, 5, 6, 7), (2, 3))]]


def test_what_no_child_takes_is_not_in_r() -> None:
    plan = make_plan(nodes(3, gpus=2), nested(NestedSpec(name="a", share_nodes=1), NestedSpec(name="b", share_cores=4)))
    assert plan.notes == ("root: 12 cores and 3 GPUs of n[2-3] are in no child's share: nothing will run there",)
    assert held(plan.schedulers[0]) == [(0, tuple(range(8)), (0, 1)), (1, (0, 1, 2, 3), (0,))]
    assert [n.whole for n in plan.schedulers[0].resources] == [True, False]
    stray = make_plan(nodes(2, gpus=2), nested(NestedSpec(name="a", share_nodes=1, share_gpus=1), NestedSpec(name="b")))
    assert stray.notes == ("root: 1 GPU of n1 are in no child's share: nothing will run there",)
    assert held(stray.schedulers[0])[0] == (0, tuple(range(8)), (0,))


def test_nothing_left_for_a_child() -> None:
    plan = make_plan(nodes(1), nested(NestedSpec(name="a", share_nodes=1), NestedSpec(
        name="b", children=(NestedSpec(), NestedSpec()))))
    assert [s.name for s in plan.schedulers] == ["root", "a"]
    assert plan.notes == ("b: no core of root is left for it; it is left out",)


@pytest.mark.parametrize(("spec", "words"), [
    (nested(NestedSpec(name="a", share_nodes=3)), "child 'a' asks for 3 nodes; 2 of 2 are left whole"),
    (nested(NestedSpec(share_cores=1), NestedSpec(share_nodes=2)), "child number 2 asks for 2 nodes; 1 of 2"),
    (nested(NestedSpec(name="a", share_cores=17)), "child 'a' asks for 17 cores; 16 of its parent's are left"),
    (nested(NestedSpec(name="a", share_gpus=1)), "child 'a' asks for 1 GPU; none of its parent's are left"),
    (nested(NestedSpec(name="a", share_nodes=1, share_cores=9)), "a node there has 8 cores and 0 GPUs"),
    (levels("rack"), "level 'rack' is unknown; there are node, numa, core, width"),
    (levels(0), "a width of 0"),
    (HierarchySpec(levels=(LevelSpec(),), nested=NestedSpec()), "not both"),
])
def test_wrong_hierarchies(spec: HierarchySpec, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        make_plan(nodes(2), spec)


def test_all_shares_that_are_too_large_are_told() -> None:
    deep = nested(NestedSpec(children=(NestedSpec(share_cores=9),)), NestedSpec(children=(NestedSpec(share_gpus=1),)))
    for spec in (deep, nested(NestedSpec(share_nodes=3), NestedSpec(share_cores=99))):
        with pytest.raises(ShapeError) as error:
            make_plan(nodes(2), spec)
        assert len(error.value.mistakes) == 2


def test_wrong_nodes() -> None:
    good = nodes(1)[0]
    with pytest.raises(PlanError, match="no node was found"):
        make_plan([])
    with pytest.raises(PlanError, match="has no rank"):
        make_plan([NodeInfo(index=0, name="n1", ranks=(), owner=good.owner, resources=good.resources)])
    with pytest.raises(PlanError, match="0 owners for 8 cores"):
        make_plan([NodeInfo(index=0, name="n1", ranks=(0,), owner=(), resources=good.resources)])
    with pytest.raises(PlanError, match="twice"):
        make_plan([good, good])


def test_draw() -> None:
    assert draw(make_plan(nodes(32, cores=4, gpus=1, domains=1), levels("node"))) == """\
33 schedulers, depth 2, 32 nodes, 128 cores, 32 GPUs
root: n[1-32] cores 0-3 gpu 0 · policy fcfs · deals by pull · rank 0
├─ node n1: n1 cores 0-3 gpu 0 · policy fcfs · rank 0
└─ … 31 more like this, to node n32"""
    assert draw(make_plan(nodes(2, cores=2), levels(1, 2, 2), PolicySpec("fcfs", {"queue_depth": 8}))) == """\
8 schedulers, depth 4, 2 nodes, 4 cores, 0 GPUs
root: n[1-2] cores 0-1 · policy fcfs (queue_depth 8) · deals by pull · rank 0
└─ part 0: n[1-2] cores 0-1 · policy fcfs (queue_depth 8) · deals by pull · rank 0
   ├─ part 0.0: n1 cores 0-1 · policy fcfs (queue_depth 8) · deals by pull · rank 0
   │  ├─ part 0.0.0: n1 core 0 · policy fcfs (queue_depth 8) · rank 0
   │  └─ part 0.0.1: n1 core 1 · policy fcfs (queue_depth 8) · rank 0
   └─ part 0.1: n2 cores 0-1 · policy fcfs (queue_depth 8) · deals by pull · rank 1
      ├─ part 0.1.0: n2 core 0 · policy fcfs (queue_depth 8) · rank 1
      └─ part 0.1.1: n2 core 1 · policy fcfs (queue_depth 8) · rank 1"""


def test_misfits_are_what_the_whole_instance_cannot_hold() -> None:
    plan = make_plan(nodes(2, gpus=2), levels("node"), consumables={"license": 3})
    jobs = [group("fits", cores=8), group("wide", nodes=2), group("huge", cores=9),
            group("licensed", consumables={"license": 2}), group("dear", consumables={"license": 4})]
    assert explain_misfits(plan, jobs) == [
        "job 'huge' asks for 9 cores a task; the largest node has 8, in the whole instance",
        "job 'dear' asks for 4 license; there are 3, in the whole instance"]
    uneven = make_plan(nodes(2, gpus=2), nested(NestedSpec(name="gpu", share_gpus=3), NestedSpec(name="cpu")))
    assert explain_misfits(uneven, [group("md", gpus=1, tasks=4)]) == []
    (text,) = explain_misfits(uneven, [group("md", gpus=1, tasks=5)])
    assert "there is room for 4" in text


uneven_nodes = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 4), st.integers(1, 3)), min_size=1, max_size=4)
any_levels = st.lists(st.sampled_from(["node", "numa", "core", 1, 2, 3, 5]), max_size=3)


def of(shapes: list[tuple[int, int, int]]) -> list[NodeInfo]:
    return [NodeInfo(index=i, name=f"h{i}", ranks=(i,), owner=(i,) * cores, resources=NodeResources(
        node=i, cores=tuple(range(10, 10 + cores)), numa=tuple(c % domains for c in range(cores)),
        gpus=tuple(range(gpus)), gpu_numa=tuple(g % 3 - 1 for g in range(gpus)), memory=1001,
        consumables={"power": 13})) for i, (cores, gpus, domains) in enumerate(shapes)]


def totals(schedulers: list[PlannedScheduler]) -> tuple[Counter[tuple[str, int, int]], int, int]:
    things: Counter[tuple[str, int, int]] = Counter()
    parts = [n for s in schedulers for n in s.resources]
    for n in parts:
        things.update([("core", n.node, c) for c in n.cores] + [("gpu", n.node, g) for g in n.gpus])
    return things, sum(n.memory for n in parts), sum(n.consumables["power"] for n in parts)


@settings(max_examples=200, deadline=None)
@given(uneven_nodes, any_levels)
def test_every_level_deals_out_all_and_nothing_twice(shapes: list[tuple[int, int, int]],
                                                     names: list[str | int]) -> None:
    info = of(shapes)
    plan = make_plan(info, levels(*names), consumables={"license": 5})
    whole = totals([plan.schedulers[0]])
    assert max(whole[0].values()) == 1 and whole[1:] == (1001 * len(info), 13 * len(info))
    assert [s.consumables for s in plan.schedulers] == [{"license": 5}] + [{}] * (len(plan.schedulers) - 1)
    assert sum(len(n.resources.cores) + len(n.resources.gpus) for n in info) == len(whole[0])
    for s in plan.schedulers:
        assert s.id == 0 or s.id in plan.schedulers[s.parent].children
        assert sum(len(n.cores) for n in s.resources) > 0
        first = s.resources[0]
        assert s.rank == (0 if s.id == 0 else first.node)
        if s.children:
            kids = [plan.schedulers[c] for c in s.children]
            assert all(k.parent == s.id and k.depth == s.depth + 1 for k in kids)
            assert totals(kids) == totals([s])
            if isinstance(names[s.depth], int):
                sizes = [sum(len(n.cores) for n in k.resources) for k in kids]
                assert max(sizes) - min(sizes) <= 1 and len(sizes) == min(int(names[s.depth]), sum(sizes))
        else:
            assert s.depth == len(names)
    assert [s.depth for s in plan.schedulers] == sorted(s.depth for s in plan.schedulers)
    assert draw(plan).count("\n") >= plan.depth


shares = st.builds(NestedSpec, share_nodes=st.sampled_from([0, 0, 1]), share_cores=st.sampled_from([0, 0, 1, 3]),
                   share_gpus=st.sampled_from([0, 0, 1, 2]))


@settings(max_examples=200, deadline=None)
@given(uneven_nodes, st.lists(shares, min_size=1, max_size=4))
def test_explicit_shares_give_what_they_say(shapes: list[tuple[int, int, int]], children: list[NestedSpec]) -> None:
    info = of(shapes)
    try:
        plan = make_plan(info, nested(*children), consumables={"license": 5})
    except PlanError:
        return
    kids = list(plan.schedulers[1:])
    assert kids
    assert totals(kids) == totals([plan.schedulers[0]])
    assert max(totals(kids)[0].values(), default=1) == 1
    if not plan.notes:
        assert len(kids) == len(children)
        for spec, kid in zip(children, kids, strict=True):
            if spec.share_nodes:
                assert len(kid.resources) == spec.share_nodes
            if spec.share_cores:
                assert sum(len(n.cores) for n in kid.resources) == spec.share_cores
            if spec.share_gpus:
                assert sum(len(n.gpus) for n in kid.resources) == spec.share_gpus
