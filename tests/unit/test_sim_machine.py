"""Virtual machines: their descriptions, and that they are cut up as real ones are."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpiflux.instance import site
from mpiflux.node import endings, job, supervisor
from mpiflux.overlay.plan import make_plan
from mpiflux.sim import executor, machine
from mpiflux.sim.machine import ClusterError, NodeType, build, parse_cluster


def test_short_forms() -> None:
    assert parse_cluster("4000x(44c,4g)") == (NodeType(4000, 44, 4),)
    assert parse_cluster("(1c)") == (NodeType(1, 1),)
    assert parse_cluster("2x(8c) + 4x(16c,2g,2n,64GiB)") == (NodeType(2, 8), NodeType(4, 16, 2, 2, 64 << 30))


@pytest.mark.parametrize(("text", "word"), [
    ("", "describes no nodes"), ("4x8c", "describes no nodes"), ("4x(8c", "describes no nodes"),
    ("4x(2g)", "no cores"), ("4x(8c,8c)", "twice"), ("4x(8q)", "'8q' is neither"), ("4x()", "is neither"),
    ("0x(8c)", "at least 1"), ("1x(0c)", "at least 1"), ("1x(4c,5n)", "every domain"), ("1x(4c,0n)", "every domain"),
    ("9999999x(1c)", "more than this simulator takes"), ("1x(-4c)", "is neither"), ("1x(²c)", "is neither"),
])
def test_what_is_wrong_is_said(text: str, word: str) -> None:
    with pytest.raises(ClusterError, match=word):
        parse_cluster(text)


def test_racks(tmp_path: Path) -> None:
    file = tmp_path / "racks.yaml"
    file.write_text("racks:\n- {count: 2, cores: 44, gpus: 4, numa: 2, memory: 256GiB, name: r1-}\n- {cores: 8}\n")
    assert parse_cluster(str(file)) == (NodeType(2, 44, 4, 2, 256 << 30, "r1-"), NodeType(1, 8))
    names = [node.name for node in build(parse_cluster(str(file))).nodes]
    assert names == ["r1-0", "r1-1", "node2"]


@pytest.mark.parametrize(("text", "word"), [
    ("racks: 3", "one key, racks"), ("- 1", "one key, racks"), ("racks: []", "one key, racks"),
    ("racks: [3]", r"racks\[0\]: 3 not understood"), ("racks: [{cores: 4, gpu: 2}]", r"racks\[0\]: gpu not understood"),
    ("racks: [{cores: four}]", "cores is a whole number, not 'four'"), ("racks: [{cores: true}]", "not True"),
    ("racks: [{count: 3}]", "cores is missing"), ("racks: [{cores: 2, memory: lots}]", "memory is a size"),
    ("racks: [", "cannot be read as YAML"), ("racks: [{cores: 2, numa: 3}]", "every domain"),
    ("racks: !!python/object:os.system [x]", "cannot be read as YAML"),
])
def test_wrong_racks(tmp_path: Path, text: str, word: str) -> None:
    file = tmp_path / "racks.yaml"
    file.write_text(text)
    with pytest.raises(ClusterError, match=word):
        parse_cluster(str(file))


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 36])
@pytest.mark.parametrize("cores", [1, 2, 3, 7, 36])
def test_cores_go_to_ranks_and_supervisors_as_in_an_instance(cores: int, ranks: int) -> None:
    made = build((NodeType(2, cores),), ranks)
    each = min(ranks, cores)
    reports = [site.RankReport(f"node{node}", tuple(((pu,), 0) for pu in range(cores)), (), 0)
               for node in range(2) for _ in range(each)]
    real = site.survey(reports)
    assert made.table == real.executor_table()
    assert made.node_of_rank == real.node_of_rank
    assert [node.owner for node in made.nodes] == [node.owner for node in real.nodes]
    assert [node.ranks for node in made.nodes] == [node.ranks for node in real.nodes]
    assert sorted(made.table.values()) == sorted(made.table[key] for key in real.executor_table())


def test_constants_are_those_of_the_real_thing() -> None:
    assert (machine.CORES_A_SUPERVISOR, machine.LEAST_SUPERVISORS) == (site.CORES_A_SUPERVISOR, site._LEAST_SUPERVISORS)
    for name in ("YOUNG", "FLUSH", "STALE"):
        assert getattr(executor, name) == getattr(supervisor, name), name
    assert (executor.GRACE, executor.ANNOUNCED) == (endings.GRACE, job.ANNOUNCED)


def test_a_plan_can_be_made_of_it() -> None:
    made = build(parse_cluster("3x(4c,2g,2n)+1x(2c)"), 2)
    assert (made.cores, made.gpus, made.ranks) == (14, 6, 8)
    plan = make_plan(made.nodes)
    assert len(plan.leaves) == 4
    assert [len(s.resources[0].cores) for s in plan.leaves] == [4, 4, 4, 2]
    assert plan.leaves[0].resources[0].gpu_numa == (0, 1)
