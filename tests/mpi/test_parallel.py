"""Parallel jobs: MPI programs that we did not write, as jobs of several tasks on one node and on several."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from mpiflux.model import idset
from tests.support.mpi import Stack, installed_stack
from tests.support.pretend import run_on_nodes, stack_of_nodes, start_on_nodes
from tests.support.runs import LIMIT, Place, until

pytestmark = pytest.mark.mpi
FLAT = {"levels": []}

HELLO = """
import os, sys
from mpi4py import MPI
world = MPI.COMM_WORLD
total = world.allreduce(world.rank + 1)
near = world.Split_type(MPI.COMM_TYPE_SHARED).size
mine = {name: os.environ.get("MPIFLUX_" + name) for name in
        ("TASK_RANK", "TASK_COUNT", "LOCAL_RANK", "NODE_LIST", "CORES", "GPUS")}
assert (mine["TASK_RANK"], mine["TASK_COUNT"]) == (str(world.rank), str(world.size))
sys.stdout.write(f"{world.rank} {world.size} {total} {near} {mine['LOCAL_RANK']} {mine['NODE_LIST']} {mine['CORES']} "
                 f"{mine['GPUS'] or '-'} {os.environ.get('CUDA_VISIBLE_DEVICES') or '-'}\\n")
"""

TROUBLE = """
import os, signal, sys, time
what, me = sys.argv[1], int(os.environ["MPIFLUX_TASK_RANK"])
if what == "never" and me == 3:
    time.sleep(1000)
from mpi4py import MPI
world = MPI.COMM_WORLD
world.Barrier()
if what == "segv" and me == 2:
    os.kill(os.getpid(), signal.SIGSEGV)
if what == "abort" and me == 1:
    world.Abort(3)
if what == "exit" and me == 3:
    os._exit(7)
world.recv(source=MPI.ANY_SOURCE)
"""

PING = """
#include <mpi.h>
#include <stdio.h>
int main(int argc, char **argv) {
    int rank, size, token = 0;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    for (int i = 0; i < 1000; i++) {  /* once round the ring, each adding its rank */
        if (rank) MPI_Recv(&token, 1, MPI_INT, rank - 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        token += rank;
        MPI_Send(&token, 1, MPI_INT, (rank + 1) % size, 0, MPI_COMM_WORLD);
        if (!rank) MPI_Recv(&token, 1, MPI_INT, size - 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    }
    if (!rank) printf("%d tasks, token %d\\n", size, token);
    MPI_Finalize();
    return 0;
}
"""


@pytest.fixture
def mpich() -> Stack:
    stack = installed_stack()
    if stack.name != "mpich":
        pytest.skip(f"{stack.name} does not speak PMI-1, by which these jobs start")
    return stack


@pytest.fixture
def nodes(mpich: Stack, tmp_path: Path) -> Stack:
    return stack_of_nodes(tmp_path)


@pytest.fixture(autouse=True)
def _no_shared_memory_left(place: Place) -> object:
    before = set(os.listdir("/dev/shm"))
    yield
    left = {name for name in set(os.listdir("/dev/shm")) - before if name.startswith("mpich_")}
    mine = {name for name in left if not _mapped(name) and _is_ours(name)}
    assert not mine, f"left in /dev/shm: {mine}"


def _is_ours(name: str) -> bool:
    try:
        return os.stat(f"/dev/shm/{name}").st_uid == os.getuid()
    except FileNotFoundError:
        return False  # some other test's, and gone


def _mapped(name: str) -> bool:
    """Whether a process has it: then it is of some other test's ranks."""
    maps = [f"/proc/{pid}/maps" for pid in os.listdir("/proc") if pid.isdigit()]
    done = subprocess.run(["grep", "-lsF", name, *maps], capture_output=True, text=True, check=False)
    return bool(done.stdout.strip())


def lines(text: str) -> list[list[str]]:
    return sorted(line.split(" ") for line in text.splitlines())


def test_tasks_on_one_node(place: Place, mpich: Stack) -> None:
    place.write("hello.py", HELLO)
    flow = {"jobs": {f"hello{n}": {"command": "python hello.py", "mpi": "pmi1", "resources": {"tasks": n, "gpus": g}}
                     for n, g in ((1, 0), (2, 0), (5, 1), (8, 0))}}
    run = place.run(flow, "--cores-per-node", "8", "--gpus-per-node", "5", ranks=1)
    for n in (1, 2, 5, 8):
        job = run.job(f"hello{n}")
        rows = lines(job["stdout"])
        host = job["nodes"][0]
        assert [row[:6] for row in rows] == [[str(i), str(n), str(n * (n + 1) // 2), str(n), str(i), host]
                                             for i in range(n)]
        cores = [idset.decode(row[6]) for row in rows]
        assert all(len(one) == 1 for one in cores) and len(set(cores)) == n, "tasks share a core"
        assert idset.encode(sorted(core for one in cores for core in one)) == job["cores"]
        if n == 5:
            assert sorted(row[7] for row in rows) == list("01234"), "tasks share a GPU"
            assert all(row[8] != "-" for row in rows) and len({row[8] for row in rows}) == 5
        assert job["tasks"] == n


def test_tasks_on_several_nodes(place: Place, nodes: Stack) -> None:
    place.write("hello.py", HELLO)
    asked = {"a": {"nodes": 2, "tasks": 2}, "b": {"nodes": 3, "tasks": 8}, "c": {"tasks": 7, "layout": "pack"},
             "d": {"nodes": 2, "tasks": 4, "cores": 2}, "e": {"tasks": 3}}
    flow = {"hierarchy": FLAT, "jobs": {name: {"command": "python hello.py", "mpi": "pmi1", "resources": request}
                                        for name, request in asked.items()}}
    run = run_on_nodes(place, nodes, flow, nodes=3, cores=4)
    for name, request in asked.items():
        job, n = run.job(name), request["tasks"]
        rows = lines(job["stdout"])
        assert len(rows) == n == job["tasks"]
        assert [row[0] for row in rows] == [str(i) for i in range(n)]
        assert {row[2] for row in rows} == {str(n * (n + 1) // 2)}
        if "nodes" in request:
            assert len(job["nodes"]) == request["nodes"], "as many nodes as were asked for"
        elif n > 4:
            assert len(job["nodes"]) > 1
        counts = [len(list(group)) for group in _by_node(rows)]
        assert [int(row[3]) for row in rows] == [count for count in counts for _ in range(count)]
        assert sum(counts) == n and len(counts) == len(job["nodes"])
        assert {len(idset.decode(row[6])) for row in rows} == {request.get("cores", 1)}
    assert sorted(len(list(group)) for group in _by_node(lines(run.job("b")["stdout"]))) == [2, 3, 3]


def _by_node(rows: list[list[str]]) -> list[list[list[str]]]:
    """Rows cut where the local rank begins anew."""
    groups: list[list[list[str]]] = []
    for row in rows:
        if row[4] == "0":
            groups.append([])
        groups[-1].append(row)
    return groups


def test_a_compiled_program(place: Place, nodes: Stack) -> None:
    mpicc = shutil.which("mpicc", path=str(Path(installed_stack().python).parent))
    if mpicc is None or shutil.which("cc") is None:
        pytest.skip("needs mpicc and a C compiler")
    source = place.write("ping.c", PING)
    place.expected.add("ping")
    subprocess.run([mpicc, "-O1", "-o", str(place.path / "ping"), str(source)], check=True, timeout=LIMIT)
    flow = {"hierarchy": FLAT, "jobs": {
        name: {"command": "./ping", "mpi": "pmi1", "resources": request}
        for name, request in (("one", {"nodes": 1, "tasks": 3}), ("two", {"nodes": 2, "tasks": 2}))}}
    run = run_on_nodes(place, nodes, flow, nodes=2, cores=4)
    assert run.job("one")["stdout"] == "3 tasks, token 3000\n"
    assert run.job("two")["stdout"] == "2 tasks, token 1000\n"


@pytest.mark.parametrize("spread", [1, 2])
def test_one_task_s_end_is_the_job_s_end(place: Place, nodes: Stack, spread: int) -> None:
    place.write("trouble.py", TROUBLE)
    flow = {"hierarchy": FLAT, "jobs": {"t": {
        "command": "python trouble.py {what}", "parameters": {"what": ["segv", "abort", "exit", "never"]},
        "mpi": "pmi1", "time_limit": 8, "resources": {"nodes": spread, "tasks": 4}}, "after": {
            "command": "true", "after": {"t": "any"}, "resources": {"nodes": 2, "tasks": 8}}}}
    run = run_on_nodes(place, nodes, flow, nodes=2, cores=4, status=1)
    segv, abort, left, never = (run.job("t", i) for i in range(4))
    assert (segv["result"], segv["returncode"]) == ("FAILED", -11)
    assert "task 2 on n" in segv["reason"] and "SIGSEGV" in segv["reason"]
    assert (abort["result"], abort["returncode"]) == ("FAILED", 3)
    assert "task 1 on n" in abort["reason"] and "aborted with code 3" in abort["reason"]
    assert (left["result"], left["returncode"]) == ("FAILED", 7)
    assert "task 3 on n" in left["reason"] and "exit code 7" in left["reason"]
    assert never["result"] == "TIMEOUT" and "time limit" in never["reason"]
    assert run.job("after")["result"] == "COMPLETED", "some core of a job that failed was not given back"


POLITE = """
import os, signal, sys, time
from mpi4py import MPI
world = MPI.COMM_WORLD
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
world.Barrier()
if not world.rank:
    open("polite", "w").close()
while not asked:
    time.sleep(0.02)
MPI.Finalize()
open(f"gone-{os.environ['MPIFLUX_TASK_RANK']}", "w").close()
"""


def test_who_ends_by_itself_when_cancelled_gets_through_mpi_finalize(place: Place, nodes: Stack) -> None:
    place.write("polite.py", POLITE)
    place.expected |= {"polite", "gone-0", "gone-1"}
    flow = {"hierarchy": FLAT, "jobs": {
        "t": {"command": "python polite.py", "mpi": "pmi1", "resources": {"nodes": 2, "tasks": 2}},
        "ender": {"command": "until [ -e polite ]; do sleep 0.05; done; python -m mpiflux cancel 1", "shell": True}}}
    run = run_on_nodes(place, nodes, flow, nodes=2, cores=4, status=1)
    assert run.job("t")["result"] == "CANCELED" and run.job("ender")["result"] == "COMPLETED"
    assert all((place.path / f"gone-{rank}").exists() for rank in range(2)), "it was killed in MPI_Finalize"


def test_a_failed_attempt_runs_again_with_a_world_of_its_own(place: Place, nodes: Stack) -> None:
    place.write("again.py", HELLO + """
if os.environ["MPIFLUX_ATTEMPT"] == "1" and world.rank == 1:
    os.kill(os.getpid(), 9)
world.Barrier()
""")
    flow = {"hierarchy": FLAT, "jobs": {"t": {"command": "python again.py", "mpi": "pmi1", "retries": 1,
                                              "parameters": {"i": {"range": 2}},
                                              "resources": {"nodes": 2, "tasks": 4}}}}
    run = run_on_nodes(place, nodes, flow, nodes=2, cores=4)
    for i in range(2):
        job = run.job("t", i)
        assert (job["result"], job["attempts"]) == ("COMPLETED", 2)
        assert len(lines(job["stdout"])) == 4


def test_two_at_once_do_not_mix(place: Place, nodes: Stack) -> None:
    place.write("both.py", HELLO + """
import time
open(f"here-{sys.argv[1]}-{world.rank}", "w").close()
while len([name for name in os.listdir(".") if name.startswith("here-")]) < 8:
    time.sleep(0.01)
world.Barrier()
""")
    place.expected |= {f"here-{i}-{rank}" for i in range(2) for rank in range(4)}
    flow = {"hierarchy": FLAT, "jobs": {"t": {"command": "python both.py {i}", "mpi": "pmi1", "time_limit": 40,
                                              "parameters": {"i": {"range": 2}},
                                              "resources": {"nodes": 2, "tasks": 4}}}}
    run = run_on_nodes(place, nodes, flow, nodes=2, cores=4)
    assert all(len(lines(run.job("t", i)["stdout"])) == 4 for i in range(2))


def test_tasks_without_mpi(place: Place, nodes: Stack) -> None:
    """They are started, and told who they are; each node's part of a file is appended; only the first reads input."""
    place.write("words", "hello\n")
    place.expected.add("out")
    names = " ".join(f"$MPIFLUX_{name}" for name in ("TASK_RANK", "TASK_COUNT", "LOCAL_RANK", "NODE_LIST"))
    command = f"read x; echo {names} ${{PMI_FD:-no}} [$x]"
    job = {"command": command, "shell": True, "resources": {"nodes": 3, "tasks": 6}}
    flow = {"hierarchy": FLAT, "jobs": {"store": job, "file": {**job, "input": "words", "output": "out"},
                                        "script": {"script": "#!/bin/sh\n" + command, "resources": job["resources"]}}}
    run = run_on_nodes(place, nodes, flow, nodes=3, cores=2)
    expected = [f"{i} 6 {i % 2} n[0-2] no []" for i in range(6)]
    assert sorted(run.job("store")["stdout"].splitlines()) == expected
    assert sorted(run.job("script")["stdout"].splitlines()) == expected
    expected[0] = expected[0].replace("[]", "[hello]")
    assert sorted((place.path / "out").read_text().splitlines()) == expected


def test_cancelled_and_interrupted_jobs_leave_nothing(place: Place, nodes: Stack) -> None:
    """The fixture looks for processes; here a run is interrupted in the middle of a job on two nodes."""
    place.write("wait.py", HELLO + "sys.stdout.flush()\nimport time\nopen('ready', 'w').close()\ntime.sleep(1000)\n")
    place.expected.add("ready")
    flow = {"hierarchy": FLAT, "jobs": {"t": {"command": "python wait.py", "mpi": "pmi1",
                                              "resources": {"nodes": 2, "tasks": 4}}}}
    running, run = start_on_nodes(place, nodes, flow, nodes=2, cores=2)
    with running:
        until((place.path / "ready").exists, "the job runs")
        running.signal(2)
        running.wait(LIMIT)
    assert run.jobs()[0]["result"] in ("", None) and run.jobs()[0]["attempts"] >= 1


@pytest.mark.parametrize("levels", [[], ["node"], ["node", "core"]])
def test_per_node(place: Place, nodes: Stack, levels: list[str]) -> None:
    """One on every node for each value, beside work that takes all cores: the monitors end when that is done."""
    place.expected.add("stop")
    cores = 1 if "core" in levels else 2
    monitor = "echo {node} $MPIFLUX_NODE_LIST {x} [$MPIFLUX_CORES]; while [ ! -e stop ]; do sleep 0.05; done"
    flow = {"hierarchy": {"levels": levels}, "jobs": {
        "monitor": {"command": monitor, "shell": True, "per": "node", "parameters": {"x": ["a", "b"]},
                    "resources": {"cores": 0}, "time_limit": 40},
        "work": {"command": "sleep 0.1", "resources": {"cores": cores}, "parameters": {"i": {"range": 12 // cores}}},
        "end": {"command": "touch stop", "after": ["work"]}}}
    run = run_on_nodes(place, nodes, flow, nodes=3, cores=2)
    jobs = run.jobs()
    assert [job["stdout"] for job in jobs[:6]] == [f"n{i} n{i} {x} []\n" for x in "ab" for i in range(3)]
    assert [job["nodes"] for job in jobs[:6]] == [[f"n{i}"] for _ in "ab" for i in range(3)]
    assert [job["id"] for job in jobs] == list(range(1, len(jobs) + 1))
