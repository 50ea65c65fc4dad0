"""Trees of schedulers on real ranks: more and fewer than schedulers, bound by the launcher or not, any shape."""

from __future__ import annotations

import os

import pytest

from mpiflux.model import idset
from tests.support import trees
from tests.support.mpi import installed_stack
from tests.support.runs import Place

pytestmark = pytest.mark.mpi
JOBS, WIDE = 120, 24


@pytest.mark.parametrize(("ranks", "name"), [
    (1, "nested"),
    (2, "depth-1"), (2, "node-core"), (2, "nested-json"), (2, "mixed"),
    (4, "none"), (4, "node"), (4, "numa"), (4, "core-option"), (4, "width-4-8"), (4, "nested"),
    (8, "node-core"), (8, "nested-json"), (8, "mixed"),
    (16, "4x8-round"), (16, "nested"), (16, "depth-1"),
])
def test_shape(place: Place, ranks: int, name: str) -> None:
    shape = trees.BY_NAME[name]
    run = place.run(shape.workflow(JOBS, WIDE), *shape.options(place), ranks=ranks)
    trees.check(shape, run, place, JOBS, WIDE)
    assert run.meta()["ranks"] == ranks
    used = {one["rank"] for one in run.meta()["tree"]}
    assert used <= set(range(ranks))
    if ranks > 2 and len(shape.leaves) >= ranks:
        assert len(used) == ranks, "a rank has no scheduler although there are enough"


def test_jobs_of_one_size_are_dealt_in_turn(place: Place) -> None:
    flow = {"hierarchy": {"width": [4, 4], "distribution": "round_robin"},
            "jobs": {"a": {"command": "sleep 0.1", "parameters": {"i": {"range": 160}}}}}
    run = place.run(flow, "--cores-per-node", "16", ranks=4)
    assert run.results() == {"COMPLETED": 160}
    trees.check_dealt_in_turn(run.meta()["tree"], run)


def test_pull_sends_jobs_past_ranks_that_are_busy(place: Place) -> None:
    flow = {"hierarchy": {"levels": ["core"]}, "jobs": {
        "long": {"command": "sleep 3", "priority": 31},
        "short": {"command": "sleep 0.01", "parameters": {"i": {"range": 150}}}}}
    run = place.run(flow, "--cores-per-node", "2", ranks=2)
    jobs = run.jobs(with_output=False)
    beside = [job for job in jobs[1:] if job["cores"] != jobs[0]["cores"]]
    assert len(beside) > 110, "jobs waited behind the long one"


def bind_option() -> list[str]:
    return ["--bind-to", "core"] if installed_stack().name == "openmpi" else ["-bind-to", "core"]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores to tell them apart")
def test_one_rank_a_core_as_the_launcher_binds_them(place: Place) -> None:
    flow = {"hierarchy": {"levels": ["node", "core"]}, "jobs": {"see": {
        "command": "echo {job.id} >>marks; grep Cpus_allowed_list /proc/self/status", "shell": True,
        "parameters": {"i": {"range": 40}}}}}
    run = place.run(flow, ranks=2, launch=bind_option())
    place.expected.add("marks")
    assert sorted(map(int, (place.path / "marks").read_text().split())) == list(range(1, 41))
    tree = run.meta()["tree"]
    trees.check_shares(tree)
    assert {one["rank"] for one in tree if not one["children"]} == {0, 1}
    where: dict[str, set[str]] = {}
    for job in run.jobs():
        where.setdefault(job["cores"], set()).add(job["stdout"].split()[1])
    assert len(where) == 2
    cpus = [idset.decode(next(iter(lists))) for lists in where.values() if len(lists) == 1]
    assert len(cpus) == 2, f"jobs of one core saw several bindings: {where}"
    assert not set(cpus[0]) & set(cpus[1])


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores to tell them apart")
def test_a_launcher_that_gives_one_core_of_many_is_told_of(place: Place) -> None:
    run = place.run({"jobs": {"a": {"command": "true"}}}, ranks=1, launch=bind_option())
    assert run.done is not None
    assert "bind" in run.done.stderr
    assert run.meta()["cores"] == 1
