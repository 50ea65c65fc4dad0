"""Named resources in real runs: read from the times of the jobs, not from what a scheduler thinks."""

from __future__ import annotations

import json

import pytest

from tests.support.runs import Place

FLOW = {
    "resources": {"instance": {"license": 3}, "node": {"bb": "100GB"}},
    "jobs": {
        "one": {"command": "sleep 0.1", "parameters": {"i": {"range": 9}}, "resources": {"license": 1}},
        "two": {"command": "sleep 0.1", "parameters": {"i": {"range": 3}}, "resources": {"license": 2, "bb": "60GB"}},
        "all": {"command": "sleep 0.1", "resources": {"tasks": 6, "license": 3, "bb": "90GB"}},
        "none": {"command": "sleep 0.05", "parameters": {"i": {"range": 12}}}},
}
TAKES = {"one": (1, 0), "two": (2, 60), "all": (3, 90), "none": (0, 0)}


@pytest.mark.parametrize("ranks", [0, pytest.param(3, marks=pytest.mark.mpi)])
@pytest.mark.parametrize("hierarchy", ["none", "node,core"])
def test_never_more_in_use_than_there_is(place: Place, hierarchy: str, ranks: int) -> None:
    run = place.run(FLOW, "--cores-per-node", "8", "--hierarchy", hierarchy, ranks=ranks)
    jobs = run.jobs()
    assert len(jobs) == 25
    for at in range(2):
        changes = sorted((job[key], sign * TAKES[job["name"]][at]) for job in jobs
                         for key, sign in (("t_start", 1), ("t_finish", -1)))
        used = [sum(change for _, change in changes[:n + 1]) for n in range(len(changes))]
        assert max(used) <= (3, 100)[at]
    said = json.loads(place.call("resources", str(run.directory), "--json").stdout)["consumables"]
    assert said == {"license": {"of": "the instance", "total": 3}, "bb": {"of": "the nodes", "total": 100 * 10**9}}


def test_what_nobody_can_ever_have_is_refused(place: Place) -> None:
    flow = {**FLOW, "jobs": {"dear": {"command": "true", "resources": {"license": 4}},
                             "strange": {"command": "true", "resources": {"magic": 1}}}}
    name = place.write("w.yaml", json.dumps(flow).encode())
    done = place.call("run", str(name), status=2)
    assert "'dear' asks for 4 license; there are 3" in done.stderr
    assert "'strange' asks for 1 magic; there are none" in done.stderr
