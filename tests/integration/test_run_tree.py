"""Every form of a hierarchy on one rank: the tree is what was asked for, and jobs keep to it."""

from __future__ import annotations

import pytest

from mpiflux.model import idset
from tests.support import trees
from tests.support.runs import ROOT, Place

JOBS, WIDE = 60, 12


@pytest.mark.parametrize("shape", trees.SHAPES, ids=lambda shape: shape.name)
def test_shape_on_one_rank(place: Place, shape: trees.Shape) -> None:
    run = place.run(shape.workflow(JOBS, WIDE), *shape.options(place))
    trees.check(shape, run, place, JOBS, WIDE)
    drawn = place.call("tree", run.directory.name).stdout
    assert f"depth {shape.depth}" in drawn


def test_the_nth_job_belongs_to_the_nth_child(place: Place) -> None:
    flow = {"hierarchy": {"levels": ["core"], "distribution": "round_robin"},
            "jobs": {"a": {"command": "sleep 0.1", "parameters": {"i": {"range": 32}}}}}
    run = place.run(flow, "--cores-per-node", "4")
    own = [job["id"] for job in run.jobs(with_output=False) if (job["id"] - 1) % 4 == int(job["cores"])]
    assert len(own) >= 26, f"only {own} stayed where they belong"


def test_jobs_of_one_size_are_dealt_in_turn(place: Place) -> None:
    flow = {"hierarchy": {"levels": ["node", "core"], "distribution": "round_robin"},
            "jobs": {"a": {"command": "sleep 0.05", "parameters": {"i": {"range": 60}}}}}
    run = place.run(flow, "--cores-per-node", "6")
    trees.check_dealt_in_turn(run.meta()["tree"], run)


def test_pull_sends_jobs_past_a_child_that_is_busy(place: Place) -> None:
    """One of two cores has a long job first; the short ones go to the other."""
    flow = {"hierarchy": {"levels": ["core"]}, "jobs": {
        "long": {"command": "sleep 2", "priority": 31},
        "short": {"command": "sleep 0.01", "parameters": {"i": {"range": 100}}}}}
    run = place.run(flow, "--cores-per-node", "2")
    jobs = run.jobs(with_output=False)
    beside = [job for job in jobs[1:] if job["cores"] != jobs[0]["cores"]]
    assert len(beside) > 75, "jobs waited behind the long one"


def test_a_job_that_nobody_can_hold_is_told_before_anything_starts(place: Place) -> None:
    place.write("flow.yaml", {"jobs": {"large": {"command": "touch started", "resources": {"cores": 4}},
                                       "small": {"command": "touch started"}}})
    done = place.call("run", "flow.yaml", "--run-dir", "never", "--cores-per-node", "3", status=2)
    assert "'large'" in done.stderr and "whole instance" in done.stderr and "Traceback" not in done.stderr


def test_a_job_larger_than_any_leaf_borrows_from_them(place: Place) -> None:
    flow = {"jobs": {"before": {"command": "sleep 0.05", "parameters": {"i": {"range": 30}}},
                     "large": {"command": "echo $MPIFLUX_CORES; sleep 0.2", "shell": True, "resources": {"cores": 4},
                               "parameters": {"i": {"range": 2}}},
                     "small": {"command": "sleep 0.05", "parameters": {"i": {"range": 30}}}}}
    run = place.run(flow, "--cores-per-node", "6", "--hierarchy", "2")
    assert run.results() == {"COMPLETED": 62}
    assert all(len(idset.decode(job["cores"])) == 4 for job in run.jobs() if job["name"] == "large")
    trees.check_cores_apart(run)


def test_jobs_with_one_key_and_those_of_ones_own_distribution_stay_with_a_child(place: Place) -> None:
    place.write("own.py", """
class Halves:
    binding = True

    def split(self, chunk, group, children):
        return [(children[0 if index % 2 else -1], type(chunk)(chunk.group, index, index + 1, 1, chunk.attempt))
                for index in range(chunk.start, chunk.stop, chunk.step)]
""")
    place.expected.add("__pycache__")
    jobs = {"a": {"command": "sleep 0.02", "parameters": {"i": {"range": 8}, "site": ["b", "p", "r", "l", "o"]}}}
    for distribution, key in (("by_key:site", "site"), ("own:Halves", "")):
        run = place.run({"hierarchy": {"levels": ["core"], "distribution": distribution}, "jobs": jobs},
                        "--cores-per-node", "4", env={"PYTHONPATH": f"{ROOT}:{place.path}"})
        cores: dict[object, set[str]] = {}
        for job in run.jobs(with_output=False):
            cores.setdefault(job["params"][key] if key else job["index"] % 2, set()).add(job["cores"])
        assert all(len(of_key) == 1 for of_key in cores.values()), cores
        assert len(set.union(*cores.values())) > 1
        trees.check_cores_apart(run)


def test_a_child_with_nothing_to_do_gets_jobs_that_wait_behind_a_long_one(place: Place) -> None:
    """Each of two children is sent one job more than its core runs; the first has a long one."""
    flow = {"hierarchy": {"levels": ["core"]}, "jobs": {
        "a": {"command": "sleep {s}", "parameters": {"s": [3, 0.1, 0.1, 0.1]}}}}
    run = place.run(flow, "--cores-per-node", "2")
    long, *short = run.jobs(with_output=False)
    assert all(job["cores"] != long["cores"] and job["t_finish"] < long["t_finish"] for job in short)
