"""Every workflow of docs/parallel-jobs.md is run as it stands, on nodes that pretend."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.support.mpi import installed_stack
from tests.support.pretend import run_on_nodes, stack_of_nodes
from tests.support.runs import ROOT, Place, Run

pytestmark = pytest.mark.mpi
PAGE = (ROOT / "docs" / "parallel-jobs.md").read_text()


@pytest.fixture
def runs(place: Place, tmp_path: Path) -> dict[str, Run]:
    if installed_stack().name != "mpich":
        pytest.skip("its MPI examples start by PMI-1, which this MPI does not speak")
    stack = stack_of_nodes(tmp_path)
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.M | re.S)
    for language, text in blocks:
        if language == "python":
            place.write(text.split("\n")[0].removeprefix("# "), text)
    return {yaml.safe_load(text)["name"]: run_on_nodes(place, stack, text, nodes=2, cores=4)
            for language, text in blocks if language == "yaml"}


def test_the_examples_do_what_the_page_says(runs: dict[str, Run]) -> None:
    assert set(runs) == {"parallel", "seen", "watched"}
    for name in ("one-node", "two-nodes"):
        assert runs["parallel"].job(name)["stdout"] == "4 tasks, sum of ranks 6\n"
    # one node after the other; the tasks of a node as they come to it
    lines = runs["seen"].job("who")["stdout"].splitlines()
    assert [*sorted(lines[:2]), *sorted(lines[2:])] == [
        f"task {i} of 4, number {i % 2} of its node" for i in range(4)]
    assert sorted(job["stdout"] for job in runs["watched"].jobs() if job["name"] == "monitor") == [
        "watching n0\n", "watching n1\n"]
