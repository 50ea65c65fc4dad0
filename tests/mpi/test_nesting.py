"""Instances inside jobs of instances: what they are given, what the outer one knows of them, how they end with it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.mpi import installed_stack
from tests.support.pretend import run_on_nodes, stack_of_nodes
from tests.support.runs import LIMIT, ROOT, Place, Run, until

pytestmark = pytest.mark.mpi
FLAT = {"levels": []}


@pytest.fixture
def pmi() -> None:
    if installed_stack().name != "mpich":
        pytest.skip("this MPI does not speak PMI-1, by which a job's tasks find each other")


def instance(name: str, **keys: Any) -> dict[str, Any]:
    """A job that runs the workflow NAME.yaml in the directory NAME."""
    return {"command": f"python -m mpiflux run {name}.yaml --run-dir {name}", **keys}


def nodes_of(run: Run) -> list[tuple[str, str, str]]:
    return [(node["node"], node["cores"], node["gpus"]) for node in run.meta()["resources"]]


@pytest.mark.usefixtures("pmi")
def test_three_deep_on_two_nodes(place: Place, tmp_path: Path) -> None:
    where = "$MPIFLUX_NODE $MPIFLUX_CORES [$CUDA_VISIBLE_DEVICES]"
    place.write("leaf.yaml", {"hierarchy": FLAT, "jobs": {"seen": {
        "command": f"echo {where}", "shell": True, "per": "node", "resources": {"cores": 2, "gpus": 1}}}})
    place.write("middle.yaml", {"hierarchy": FLAT, "jobs": {
        "low": instance("leaf", resources={"nodes": 2, "tasks": 2, "cores": 2, "gpus": 1}, mpi="pmi1")}})
    place.expected |= {"middle", "leaf"}
    outer = {"hierarchy": FLAT, "jobs": {
        "fill": {"command": "true"},
        "high": instance("middle", resources={"nodes": 2, "tasks": 4, "cores": 2, "gpus": 1}, mpi="pmi1",
                         after=["fill"])}}
    run = run_on_nodes(place, stack_of_nodes(tmp_path), outer, "--gpus-per-node", "2", nodes=2, cores=5,
                       env={"PYTHONPATH": str(ROOT)})
    middle, leaf = Run(place.path / "middle"), Run(place.path / "leaf")
    assert nodes_of(run) == [("n0", "0-4", "0-1"), ("n1", "0-4", "0-1")]
    assert nodes_of(middle) == [("n0", "0-3", "0-1"), ("n1", "0-3", "0-1")], "two tasks a node, two cores a task"
    assert nodes_of(leaf) == [("n0", "0-1", "0"), ("n1", "0-1", "0")]
    assert [job["stdout"].split()[0::2] for job in leaf.jobs()] == [["n0", "[0]"], ["n1", "[0]"]]
    assert (middle.meta()["ranks"], leaf.meta()["ranks"]) == (4, 2)
    _everything_is_listed(place, run)


def _everything_is_listed(place: Place, run: Run) -> None:
    tree = json.loads(place.call("tree", "-R", "--json", run.directory.name).stdout)
    (middle,) = tree["instances"]
    (leaf,) = middle["instances"]
    assert [(one["path"], one["state"], one["cores"], one["gpus"]) for one in (middle, leaf)] == [
        ("2", "finished", 8, 4), ("2/1", "finished", 4, 2)]
    text = place.call("tree", "--recursive", run.directory.name).stdout
    assert "  job 2: middle on n0, finished, 1 of 1 jobs ended" in text and "    job 2/1: leaf on n0" in text
    jobs = json.loads(place.call("jobs", "-R", "--json", run.directory.name).stdout)
    assert [(job["instance"], job["id"], job["name"]) for job in jobs] == [
        ("", 1, "fill"), ("", 2, "high"), ("2", 1, "low"), ("2/1", 1, "seen"), ("2/1", 2, "seen")]
    lines = place.call("jobs", "-R", run.directory.name, "--format", "{instance}:{job}").stdout.split()
    assert lines == ["-:fill[0]", "-:high[0]", "2:low[0]", "2/1:seen[0]", "2/1:seen[1]"]
    assert "2/1: leaf on n0, finished" in place.call("jobs", "-R", run.directory.name).stdout


@pytest.mark.usefixtures("pmi")
def test_ranks_of_its_own_in_a_job_of_one_task(place: Place) -> None:
    place.write("four.yaml", {"jobs": {"a": {"command": "true", "parameters": {"i": {"range": 4}}}}})
    place.expected.add("four")
    job = instance("four", resources={"cores": 3})
    run = place.run({"jobs": {"nest": {**job, "command": job["command"] + " --ranks 2"}}}, "--cores-per-node", "4",
                    env={"PYTHONPATH": str(ROOT)})
    assert run.results() == {"COMPLETED": 1}, run.job("nest")
    inner = Run(place.path / "four")
    assert (inner.meta()["ranks"], inner.meta()["cores"], inner.results()) == (2, 3, {"COMPLETED": 4})


def test_a_job_that_cannot_hold_an_instance_is_told_why(place: Place) -> None:
    place.write("w.yaml", {"jobs": {"a": {"command": "true"}}})
    jobs = {"two": instance("w", resources={"tasks": 2}), "no": instance("w", resources={"cores": 0}, per="node")}
    run = place.run({"jobs": jobs}, "--cores-per-node", "2", status=1, env={"PYTHONPATH": str(ROOT)})
    for name, words in (("two", "mpi: pmi1"), ("no", "ask for cores")):
        job = run.job(name)
        assert (job["result"], job["returncode"]) == ("FAILED", 2)
        assert all(words in line for line in job["stderr"].splitlines()) and job["stderr"], job["stderr"]


def _three_levels(place: Place, last: str) -> dict[str, Any]:
    """Instances of one rank each: a job of a job of a job is ``last``, a shell's command."""
    place.write("leaf.yaml", {"jobs": {"last": {"command": last, "shell": True}}})
    place.write("middle.yaml", {"jobs": {"low": instance("leaf", resources={"cores": 1})}})
    place.expected |= {"middle", "leaf"}
    return {"jobs": {"high": instance("middle", resources={"cores": 2})}}


@pytest.mark.parametrize("number", [9, 15])
def test_all_levels_end_with_the_outermost_and_go_on_with_it(place: Place, number: int) -> None:
    flow = _three_levels(place, "touch ready; [ -e go ] || exec sleep 1000")
    place.expected |= {"ready", "go"}
    running, run = place.begin(flow, "--cores-per-node", "2", env={"PYTHONPATH": str(ROOT)})
    with running:
        until((place.path / "ready").exists, "the innermost job runs")
        leaf = Run(place.path / "leaf")
        until(lambda: leaf.results() == {"RUN": 1}, "its run directory says so")
        if number == 15:
            listed = json.loads(place.call("jobs", "-R", "--json", run.directory.name).stdout)
            assert [(job["instance"], job["state"]) for job in listed] == [("", "RUN"), ("1", "RUN"), ("1/1", "RUN")]
        os.kill(running.process.pid, number)
        running.process.wait(LIMIT)
        until(lambda: not running.members(), "all processes have ended")
    for name in ("middle", "leaf"):
        assert Run(place.path / name).jobs()[0]["result"] in ("", None), "it can be resumed"
    if number == 15:
        assert leaf.meta()["state"] == "interrupted"
        return
    (place.path / "go").touch()
    name = run.directory.name
    place.call("run", f"{name}.yaml", "--run-dir", name, "--resume", "--cores-per-node", "2",
               env={"PYTHONPATH": str(ROOT)})
    listed = json.loads(place.call("jobs", "-R", "-a", "--json", name).stdout)
    assert [(job["instance"], job["result"], job["attempts"]) for job in listed] == [
        ("", "COMPLETED", 2), ("1", "COMPLETED", 2), ("1/1", "COMPLETED", 2)], "each is listed once"


def test_one_TERM_reaches_a_job_once_and_not_what_an_instance_in_it_has_started(place: Place) -> None:
    """A second one would mean "at once" to an instance, and what it has started would seem to fail by itself."""
    place.write("count.py", """
import signal, sys, time
ends = [time.monotonic() + 60]
def noted(*_):
    open(sys.argv[1], "a").write("TERM\\n")
    ends.append(time.monotonic() + 1.5)
signal.signal(signal.SIGTERM, noted)
open("ready" + sys.argv[1], "w").close()
while time.monotonic() < min(ends):
    time.sleep(0.05)
""")
    place.write("in.yaml", {"jobs": {"deep": {"command": "python count.py deep"}}})
    place.expected |= {"flat", "deep", "readyflat", "readydeep", "in"}
    flow = {"jobs": {"flat": {"command": "python count.py flat"}, "nest": instance("in")}}
    running, _ = place.begin(flow, "--cores-per-node", "2", env={"PYTHONPATH": str(ROOT)})
    with running:
        until(lambda: (place.path / "readyflat").exists() and (place.path / "readydeep").exists(), "both run")
        until(lambda: Run(place.path / "in").results() == {"RUN": 1}, "the inner run directory says so")
        running.signal(signal.SIGTERM)
        running.wait(LIMIT)
    assert (place.path / "flat").read_text() == "TERM\n"
    assert (place.path / "deep").read_text() == "TERM\n"
    inner = Run(place.path / "in")
    assert (inner.results(), inner.meta()["state"]) == ({"SCHED": 1}, "interrupted"), "the inner run ended it itself"


def test_submit_instance(place: Place) -> None:
    place.write("inner.yaml", {"jobs": {"a": {"command": "true", "parameters": {"i": {"range": 3}}}}})
    place.expected.add("inner")
    place.write("steer.sh", "python -m mpiflux submit --instance --wait -c3 inner.yaml --run-dir inner\n"
                            "python -m mpiflux jobs -R -a --format '{instance}:{job}:{status}'\n")
    name = place.new()
    done = place.call("start", "--run-dir", name, "--cores-per-node", "4", "--", "sh", "steer.sh")
    assert done.stdout.split()[:5] == ["1", "-:inner[0]:COMPLETED", *(f"1:a[{i}]:COMPLETED" for i in range(3))]
    assert Run(place.path / "inner").meta()["cores"] == 3
