"""What an instance inside a job takes from the job's environment."""

from __future__ import annotations

import pytest

from mpiflux.instance.nesting import Grant, apply, grant, refusal
from mpiflux.instance.site import RankReport, survey
from mpiflux.node.topology.types import Core, Topology

JOB = {"MPIFLUX_JOB_ID": "7", "MPIFLUX_TASK_RANK": "1", "MPIFLUX_TASK_COUNT": "2", "MPIFLUX_CORES": "4-6"}
TWO = Topology("h", (Core(0, (0, 8), 0), Core(1, (1, 9), 1)), (), 1000, "sysfs", 16, ("bound narrowly",))


@pytest.mark.parametrize("launcher, more, expected", [
    ("mpiflux", {}, Grant("7.1", 3, 0, 0)),
    ("none", {"MPIFLUX_DECLARED_CORES": "2", "MPIFLUX_MEMORY": "512"}, Grant("7.1", 3, 2, 512)),
    ("none", {"MPIFLUX_DECLARED_CORES": "9"}, Grant("7.1", 3, 3, 0)),
    ("none", {"MPIFLUX_CORES": ""}, Grant("7.1", 0, 0, 0)),
    ("none", {"MPIFLUX_CORES": "many"}, None),
    ("slurm", {}, None),
    ("hydra", {}, None),
])
def test_what_a_task_was_given(launcher: str, more: dict[str, str], expected: Grant | None) -> None:
    assert grant({**JOB, **more}, launcher) == expected


def test_outside_of_a_job_nothing_was_given() -> None:
    assert grant({"MPIFLUX_CORES": "0"}, "none") is None
    assert grant({"MPIFLUX_JOB_ID": "1"}, "none") is None


def test_declared_cores_are_added_to_those_bound() -> None:
    cores = apply(TWO, Grant("7.0", 3, 1, 0)).cores
    assert [core.pus for core in cores] == [(0, 8), (1, 9), ()]
    assert [core.logical for core in cores] == [0, 1, 2]


def test_with_declared_cores_alone_the_affinity_says_nothing() -> None:
    """Nothing was bound, so that all of the machine's cores are seen."""
    found = apply(TWO, Grant("7.0", 3, 3, 0))
    assert [core.pus for core in found.cores] == [(), (), ()]
    assert found.notes == ()


def test_memory_is_what_was_asked_for() -> None:
    assert apply(TWO, Grant("7.0", 2, 0, 600)).memory == 600
    assert apply(TWO, Grant("7.0", 2, 0, 0)).memory == 1000
    assert apply(TWO, Grant("7.0", 2, 0, 5000)).memory == 1000


@pytest.mark.parametrize("launcher, more, words", [
    ("mpiflux", {}, ""),
    ("none", {"MPIFLUX_TASK_COUNT": "1"}, ""),
    ("none", {}, "mpi: pmi1"),
    ("mpiflux", {"MPIFLUX_CORES": ""}, "ask for cores"),
])
def test_who_cannot_run_inside_a_job(launcher: str, more: dict[str, str], words: str) -> None:
    environ = {**JOB, **more}
    said = refusal(environ, launcher, grant(environ, launcher))
    assert (words in said) if words else not said
    assert "\n" not in said


def test_no_refusal_outside_of_a_job() -> None:
    assert refusal({}, "none", None) == ""


def _report(task: str, *cores: tuple[int, ...], node: str = "n", memory: int = 1) -> RankReport:
    return RankReport(node, tuple((cpus, 0) for cpus in cores), (), memory, task=task)


def test_each_task_has_cores_of_its_own_though_they_look_alike() -> None:
    site = survey([_report("1.0", (), ()), _report("1.1", (), ())])
    assert (site.nodes[0].cpus, site.nodes[0].owner) == (((),) * 4, (0, 0, 1, 1))


def test_ranks_of_one_task_share_its_cores() -> None:
    site = survey([_report("1.0", (0,), (1,)), _report("1.0", (0,), (1,))])
    assert (site.nodes[0].cpus, site.nodes[0].owner) == (((0,), (1,)), (0, 1))


def test_tasks_of_several_nodes() -> None:
    site = survey([_report("1.0", (0,), node="a"), _report("1.1", (), node="b"), _report("1.2", (), node="b")])
    assert [node.cpus for node in site.nodes] == [((0,),), ((), ())]
    assert [node.owner for node in site.nodes] == [(0,), (1, 2)]
