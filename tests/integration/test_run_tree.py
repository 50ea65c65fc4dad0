"""Every form of a hierarchy on one rank: the tree is what was asked for, and jobs keep to it."""

from __future__ import annotations

import pytest

from tests.support import trees
from tests.support.runs import Place

JOBS, WIDE = 60, 12


@pytest.mark.parametrize("shape", trees.SHAPES, ids=lambda shape: shape.name)
def test_shape_on_one_rank(place: Place, shape: trees.Shape) -> None:
    run = place.run(shape.workflow(JOBS, WIDE), *shape.options(place))
    trees.check(shape, run, place, JOBS, WIDE)
    drawn = place.call("tree", run.directory.name).stdout
    assert f"depth {shape.depth}" in drawn


def test_jobs_of_one_size_are_dealt_in_turn(place: Place) -> None:
    shape = trees.BY_NAME["node-core"]
    run = place.run(shape.workflow(50, 0), *shape.options(place))
    trees.check(shape, run, place, 50, 0)
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


def test_a_job_that_no_leaf_can_hold_is_told_before_anything_starts(place: Place) -> None:
    flow = {"jobs": {"large": {"command": "touch started", "resources": {"cores": 4}}, "small": {"command": "touch s"}}}
    for options, word in ((("--cores-per-node", "3"), "whole instance"),
                          (("--cores-per-node", "6", "--hierarchy", "2"), "fewer levels")):
        name = place.new()
        place.expected.discard(name)
        place.write("flow.yaml", flow)
        done = place.call("run", "flow.yaml", "--run-dir", name, *options, status=2)
        assert "'large'" in done.stderr and word in done.stderr and "Traceback" not in done.stderr
