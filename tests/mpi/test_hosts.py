"""Several hosts with their own names and only TCP between them: as mpiexec starts an instance there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.hosts import Hosts, lent
from tests.support.runs import ROOT, Place

pytestmark = pytest.mark.mpi

PING_PONG = """
import socket
from mpi4py import MPI
world = MPI.COMM_WORLD
data, other = bytearray(100_000), 1 - world.rank
for _ in range(50):
    if world.rank == 0:
        world.Send(data, other)
    world.Recv(data, other)
    if world.rank == 1:
        world.Send(data, other)
data[0] = 7
print(world.rank, socket.gethostname(), world.Split_type(MPI.COMM_TYPE_SHARED).size)
"""


@pytest.fixture(scope="module")
def rig() -> Iterator[Hosts]:
    yield from lent(4, "mpich", "hosts are reached by MPICH's mpiexec and by PMI-1")


class Shown(NamedTuple):
    """An example of the documentation, in a size for a test, and what comes of it."""

    file: str
    """Below the root; or a page and the name of the workflow on it."""
    completed: int
    options: tuple[str, ...] = ()
    said: str = ""
    """What the last job, or the steering program, says somewhere."""


EXAMPLES = [
    Shown("docs/examples/quickstart.yaml", 11, said="all of sim has ended well"),
    Shown("docs/examples/stress.yaml", 400, ("--set", "n=400", "--hierarchy", "node,core")),
    Shown("docs/examples/policy_example.yaml", 24, ("--cores-per-node", "4")),
    Shown("docs/examples/pilot2.yaml", 1 + 4 + 3 * 4, (
        "--cores-per-node", "44", "--gpus-per-node", "4", "--set", "nodes=4", "--set", "patches=4",
        "--set", "jobs.continuum.command=sleep 1", "--set", "jobs.monitor.command=cat /proc/loadavg")),
    Shown("docs/examples/icf_uq/workflow.yaml", 33, ("--set", "samples=32"), "yield"),
    Shown("docs/examples/merlin_steering.py --samples 10 --first 6", 10, said="10 samples, 10 starts heard of"),
    Shown("docs/examples/pilot2_steering.py --patches 3 --seconds 0.9 --every 0.3", 4, said="3 patches of"),
    Shown("README.md sweep", 21, ("--set", "jobs.sim.parameters.rho.linspace=[0.1, 1.0, 4]",
                                  "--set", "jobs.sim.parameters.seed.range=5"), "fitted"),
    Shown("docs/tutorial.md hello", 5, said="hello from element 4, x is 1.0"),
    Shown("docs/tutorial.md study", 21, ("--set", "samples=20", "--hierarchy", "node,core"), "all report done in"),
]


def test_every_example_runs_on_four_hosts(tmp_path: Path, rig: Hosts) -> None:
    """Three at a time, as most of them sleep."""
    def run(shown: Shown) -> str:
        place = Place(tmp_path / str(EXAMPLES.index(shown)))
        place.path.mkdir()
        try:
            run_example(place, rig, shown)
        except Exception as error:
            return f"{shown.file}: {error!r}"
        return f"{shown.file} leaves {place.strays()}" if place.strays() else ""

    with ThreadPoolExecutor(3) as pool:
        wrong = [text for text in pool.map(run, EXAMPLES) if text]
    assert not wrong, "\n".join(wrong)
    shown = {shown.file.partition(" ")[0] for shown in EXAMPLES}
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "docs/examples").rglob("*.yaml")} <= shown


def run_example(place: Place, rig: Hosts, shown: Shown) -> None:
    file, *words = shown.file.split()
    if file.endswith(".py"):
        run = rig.steer(place, [str(ROOT / file), *words], "--cores-per-node", "2", *shown.options)
        said = run.done.stdout if run.done is not None else ""
    else:
        path = str(ROOT / file)
        if file.endswith(".md"):
            path = place.write(f"{words[0]}.yaml", on_page(file, words[0])).name
            place.write("sim", "#!/bin/sh\necho $2 $4\n").chmod(0o755)
            place.write("fit.py", "print('fitted')\n")
        run = rig.run(place, path, *shown.options)
        said = run.jobs()[-1]["stdout"]
    assert run.results() == {"COMPLETED": shown.completed}
    assert run.meta()["ranks"] == 4 and len({*chain(*(job["nodes"] for job in run.jobs()))}) > 1
    assert shown.said in said, said


def on_page(page: str, name: str) -> str:
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    return next(block for block in blocks if block.startswith(f"name: {name}\n"))


def test_a_job_is_told_the_host_that_it_is_on(place: Place, rig: Hosts) -> None:
    """A tree of nodes and cores; every host has its share of the jobs."""
    flow = {"jobs": {"a": {"command": "echo $(hostname) $MPIFLUX_NODE_LIST; sleep 0.2", "shell": True,
                           "parameters": {"i": {"range": 24}}}}}
    run = rig.run(place, flow, "--cores-per-node", "2", "--hierarchy", "node,core")
    jobs = run.jobs()
    assert all(job["stdout"].split() == job["nodes"] * 2 for job in jobs)
    assert set(Counter(job["nodes"][0] for job in jobs)) == set(rig.names)


def test_a_parallel_job_spans_hosts(place: Place, rig: Hosts) -> None:
    place.write("ping.py", PING_PONG)
    flow = {"jobs": {"ping": {"command": "python ping.py", "mpi": "pmi1", "resources": {"nodes": 2, "tasks": 2}}}}
    before = {name: rig.carried(name) for name in rig.names}
    run = rig.run(place, flow, "--cores-per-node", "2")
    job = run.job("ping")
    rows = sorted(line.split() for line in job["stdout"].splitlines())
    assert rows == [["0", job["nodes"][0], "1"], ["1", job["nodes"][1], "1"]]
    assert all(rig.carried(name) - before[name] > 5_000_000 for name in job["nodes"])
