"""Trees that regroup around lost ranks: all that lives is there, nothing is there twice, nothing of theirs is left."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpiflux.model.jobspec import HierarchySpec, JobGroup, LevelSpec, NestedSpec, PolicySpec, Request
from mpiflux.model.tree import TreeNode
from mpiflux.overlay import address
from mpiflux.overlay.plan import make_plan
from mpiflux.overlay.regroup import Regrouping, Tree
from mpiflux.sim.machine import Machine, NodeType, build

HIERARCHIES = (
    HierarchySpec(levels=()), HierarchySpec(levels=(LevelSpec(by="node"),)),
    HierarchySpec(levels=(LevelSpec(by="node"), LevelSpec(by="core"))),
    HierarchySpec(levels=(LevelSpec(by="width", width=2), LevelSpec(by="width", width=3))),
    HierarchySpec(levels=(LevelSpec(by="width", width=2), LevelSpec(by="node"), LevelSpec(by="core"))),
    HierarchySpec(nested=NestedSpec(children=(NestedSpec(children=(NestedSpec(), NestedSpec())), NestedSpec()))))


def tree_of(machine: Machine, hierarchy: HierarchySpec) -> Tree:
    plan = make_plan(machine.nodes, hierarchy, PolicySpec())
    return Tree((TreeNode(s.id, s.parent, s.children, s.rank, s.policy, s.distribution, s.resources, s.consumables)
                 for s in plan.schedulers), machine.table)


def cores_of(node: TreeNode) -> list[tuple[int, int]]:
    return [(part.node, core) for part in node.resources for core in part.cores]


def check(tree: Tree, machine: Machine) -> None:
    """What holds of any tree at any time."""
    leaves = [node for node in tree.nodes.values() if not node.children]
    held = [core for leaf in leaves for core in cores_of(leaf)]
    alive = {core for core, executor in machine.table.items()
             if address.rank_of_executor(executor) not in tree.lost}
    assert len(held) == len(set(held)) and set(held) == alive
    gpus = [(part.node, gpu) for leaf in leaves for part in leaf.resources for gpu in part.gpus]
    assert len(gpus) == len(set(gpus))
    for node in tree.nodes.values():
        assert node.rank not in tree.lost
        assert all(tree.nodes[child].parent == node.id for child in node.children)
        if node.children:
            assert sorted(cores_of(node)) == sorted(
                core for child in node.children for core in cores_of(tree.nodes[child]))
    reached = [0]
    for number in reached:
        reached += tree.nodes[number].children
    assert sorted(reached) == sorted(tree.nodes)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from(HIERARCHIES))
def test_whatever_is_lost_the_rest_is_all_there(seed: int, hierarchy: HierarchySpec) -> None:
    rng = random.Random(seed)
    nodes = NodeType(rng.choice((1, 2, 4)), rng.choice((2, 3, 8)), rng.choice((0, 3)))
    machine = build((nodes,), rng.choice((1, 2, 3)))
    tree = tree_of(machine, hierarchy)
    check(tree, machine)
    ever = set(tree.nodes)
    mortal = list(range(1, machine.ranks))
    rng.shuffle(mortal)
    while mortal:
        lost = [mortal.pop() for _ in range(min(len(mortal), rng.choice((1, 1, 2))))]
        before = dict(tree.nodes)
        change = tree.lose(lost)
        check(tree, machine)
        assert set(change.retired) == set(before) - set(tree.nodes)
        assert {node.id for node in change.nodes} == set(tree.nodes) - set(before)
        assert ever.isdisjoint(node.id for node in change.nodes)
        ever.update(tree.nodes)
        assert all(tree.nodes[number] is before[number] for number in tree.nodes if number in before and number)
        assert {address.rank_of_executor(one) for one in change.gone} <= set(lost)
        assert tree.lost.isdisjoint(address.rank_of_executor(one) for one in change.anew)


def test_children_of_a_lost_scheduler_go_to_the_one_above_it() -> None:
    machine = build((NodeType(4, 2),))
    tree = tree_of(machine, HierarchySpec(levels=(LevelSpec(by="width", width=2), LevelSpec(by="node"))))
    middle = next(node for node in tree.nodes.values() if node.children and node.parent == 0 and node.rank)
    survivor = next(tree.nodes[child] for child in middle.children if tree.nodes[child].rank != middle.rank)
    tree.lose([middle.rank])
    successor = next(node for node in tree.nodes.values() if not node.children and node.rank == survivor.rank)
    assert successor.parent == 0 and successor.id in tree.root.children
    assert successor.resources == survivor.resources and successor.id > survivor.id


def test_a_leaf_whose_rank_is_lost_moves_to_who_starts_its_processes() -> None:
    machine = build((NodeType(2, 4),), 2)
    tree = tree_of(machine, HierarchySpec(levels=(LevelSpec(by="node"),)))
    leaf = next(node for node in tree.nodes.values() if node.parent == 0 and node.rank == 2)
    change = tree.lose([2])
    (moved,) = change.nodes
    assert change.retired == (leaf.id,) and moved.rank == 3
    assert cores_of(moved) == [(1, 2), (1, 3)] and not moved.resources[0].whole


def regrouping() -> Regrouping:
    machine = build((NodeType(4, 2),))
    return Regrouping(tree_of(machine, HierarchySpec(levels=(LevelSpec(by="node"),))), range(4))


def test_the_root_hears_only_when_all_that_live_have_done_their_part() -> None:
    ours = regrouping()
    told = ours.lose([3])
    assert told.lost == (3,) and ours.regrouped(0, told.generation, "") is None
    assert ours.regrouped(0, told.generation, "") is None and ours.regrouped(1, told.generation, "") is None
    grown = ours.regrouped(2, told.generation, "why")
    assert grown is not None and grown.reason == "why" and len(grown.lost) == 1 and not grown.gained
    assert {address.rank_of_executor(one) for one in grown.executors} == {3}
    assert ours.regrouped(2, told.generation, "") is None


def test_who_dies_meanwhile_is_not_waited_for_and_told_with_the_others() -> None:
    ours = regrouping()
    first = ours.lose([3])
    assert ours.regrouped(0, first.generation, "") is None
    second = ours.lose([1])
    assert second.lost == (1, 3) and set(first.retired) < set(second.retired)
    assert [ours.regrouped(rank, first.generation, "") for rank in (0, 2)] == [None, None]
    assert ours.regrouped(0, second.generation, "") is None
    grown = ours.regrouped(2, second.generation, "")
    assert grown is not None and len(grown.lost) == 2
    assert {address.rank_of_executor(one) for one in grown.executors} == {1, 3}
    assert [part.node for part in grown.resources] == [0, 2]


@pytest.mark.parametrize(("fields", "indices"), [
    ({"request": Request(cores=2)}, []), ({"request": Request(nodes=4)}, [0, 1, 2, 3]),
    ({"request": Request(nodes=1), "on": (0, 3)}, [1, 3]), ({"request": Request(nodes=1), "on": (0, 1)}, [])])
def test_what_nothing_left_can_hold(fields: dict[str, object], indices: list[int]) -> None:
    ours = regrouping()
    group = JobGroup(number=0, name="a", first_id=1, count=4, command=("x",), **fields)  # type: ignore[arg-type]
    assert list(ours.impossible(group)[1]) == []
    ours.lose([3])
    assert list(ours.impossible(group)[1]) == indices
