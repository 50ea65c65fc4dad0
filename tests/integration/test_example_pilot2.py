"""The Pilot2 example for real: five kinds of jobs beside each other on every node, as their times and places say."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpiflux.model import idset
from tests.support.pretend import run_on_nodes, stack_of_nodes
from tests.support.runs import ROOT, Place

EXAMPLE = (ROOT / "docs/examples/pilot2.yaml").read_bytes()


@pytest.mark.mpi
def test_five_kinds_beside_each_other_on_every_node(place: Place, tmp_path: Path) -> None:
    run = run_on_nodes(place, stack_of_nodes(tmp_path), EXAMPLE, "--gpus-per-node", "4", "--set", "nodes=2",
                       "--set", "patches=24", nodes=2, cores=44)
    jobs = run.jobs()
    assert len(jobs) == 1 + 2 + 3 * 24 and run.results() == {"COMPLETED": len(jobs)}
    for node in ("n0", "n1"):
        here = [job for job in jobs if node in job["nodes"]]
        starts = [job["t_start"] for job in here]
        together = max(len({job["name"] for job in here if job["t_start"] <= t < job["t_finish"]}) for t in starts)
        assert together == 5, f"{node}: at most {together} kinds at once"
        assert {len(idset.decode(job["gpus"])) for job in here if job["name"] == "md"} == {1}
        for job in here:
            others = [one for one in here if one is not job and one["t_start"] <= job["t_start"] < one["t_finish"]]
            for key in ("cores", "gpus"):
                mine = of(job, node, key)
                assert all(mine.isdisjoint(of(other, node, key)) for other in others), (job, key)
    setups = {job["index"]: job["t_finish"] for job in jobs if job["name"] == "setup"}
    assert all(job["t_start"] >= setups[job["index"]] for job in jobs if job["name"] in ("md", "analysis"))


def of(job: dict[str, object], node: str, key: str) -> set[int]:
    ids, nodes = job[key], job["nodes"]
    assert isinstance(nodes, list)
    return set(idset.decode(ids if isinstance(ids, str) else ids[nodes.index(node)]))  # type: ignore[index]
