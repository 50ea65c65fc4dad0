"""Several hosts with their own names and only TCP between them: as mpiexec starts an instance there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.support.hosts import Hosts, unavailable
from tests.support.mpi import installed_stack
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
    if installed_stack().name != "mpich":
        pytest.skip("hosts are reached by MPICH's mpiexec and by PMI-1")
    if reason := unavailable():
        pytest.skip(f"several hosts: {reason}")
    made = Hosts(4)
    yield made
    running = made.processes()
    made.close()
    assert not running, f"still running on the hosts: {running}"
    assert not made.left()


def test_the_quickstart(place: Place, rig: Hosts) -> None:
    run = rig.run(place, str(ROOT / "docs/examples/quickstart.yaml"))
    assert run.results() == {"COMPLETED": 11}
    assert run.stdout("done") == b"all of sim has ended well\n"
    assert run.meta()["ranks"] == 4


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
