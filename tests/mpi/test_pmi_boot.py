"""Real MPI libraries bootstrap over our PMI-1 sockets."""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpiflux.model.pmi import Abort, Action, BarrierEntered, PmiServer, process_mapping
from mpiflux.node.pmi import PmiService, kvs_name, remove_segments
from tests.support.mpi import clean_environment, installed_stack

LIMIT = 60.0
ROOT = str(Path(__file__).parents[2])


class Program:
    """Ranks of one program over one or more services, as several machines would run it."""

    def __init__(self, code: str, node_of_rank: list[int], python: str = sys.executable) -> None:
        size, mapping, name = len(node_of_rank), process_mapping(node_of_rank), kvs_name()
        self.kvsname, self.nodes = name, len(set(node_of_rank))
        self.services = [PmiService(PmiServer(size, name, mapping, ranks=[r for r in range(size)
                                                                               if node_of_rank[r] == node]))
                         for node in sorted(set(node_of_rank))]
        self.processes: list[subprocess.Popen[str]] = []
        self.aborts: list[Abort] = []
        self.entered: dict[int, dict[bytes, bytes]] = {}
        for service in self.services:
            for rank in service.server.ranks:
                fd, variables = service.open(rank)
                environ = {**clean_environment({"PYTHONPATH": ROOT}), **variables}
                self.processes.append(subprocess.Popen(
                    [python, "-c", code], env=environ, pass_fds=[fd], text=True,
                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
                service.started(rank)

    def serve(self) -> None:
        """Serve until every rank has closed its socket. Fails after LIMIT seconds."""
        end = time.monotonic() + LIMIT
        with selectors.DefaultSelector() as selector:
            for service in self.services:
                for fd in service.fds():
                    selector.register(fd, selectors.EVENT_READ, service)
            while selector.get_map():
                if time.monotonic() > end:
                    pytest.fail(f"ranks did not end in {LIMIT} s")
                for key, _ in selector.select(1.0):
                    self.act(key.data, key.data.on_readable(key.fd))
                    if not key.data.serves(key.fd):
                        selector.unregister(key.fd)

    def act(self, service: PmiService, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Abort):
                self.aborts.append(action)
            elif isinstance(action, BarrierEntered):
                self.entered[self.services.index(service)] = action.puts
        if len(self.entered) == len(self.services):
            merged = {k: v for puts in self.entered.values() for k, v in puts.items()}
            self.entered.clear()
            for one in self.services:
                assert one.complete_barrier(merged) == []

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self.processes:
            process.kill()
            process.communicate(timeout=LIMIT)
        for service in self.services:
            service.close()
        remove_segments(self.kvsname, self.nodes)

    def output(self) -> str:
        """All stdout, once every rank has ended well."""
        self.serve()
        done = [(*process.communicate(timeout=LIMIT), process.returncode) for process in self.processes]
        assert [d[2] for d in done] == [0] * len(done), done
        return "".join(d[0] for d in done)


HELLO = """
import sys
from mpi4py import MPI
world = MPI.COMM_WORLD
world.Barrier()
total = world.allreduce(world.rank)
near = world.Split_type(MPI.COMM_TYPE_SHARED)
sys.stdout.write(f"{world.rank}/{world.size} sum {total} near {near.size}\\n")
"""


def expected(near: list[int]) -> list[str]:
    n = len(near)
    return [f"{rank}/{n} sum {n * (n - 1) // 2} near {near[rank]}" for rank in range(n)]


@pytest.fixture
def mpich() -> None:
    try:
        name = installed_stack().name
    except RuntimeError:
        pytest.skip("no MPI wheel beside this interpreter")
    if name != "mpich":
        pytest.skip(f"{name} does not speak PMI-1, which is what this test is about")


@pytest.mark.mpi
@pytest.mark.usefixtures("mpich")
def test_four_ranks_of_mpich_make_one_world() -> None:
    with Program(HELLO, [0, 0, 0, 0]) as program:
        assert sorted(program.output().splitlines()) == expected([4, 4, 4, 4])
        assert not program.aborts
        assert all(program.services[0].server.finalized(rank) for rank in range(4))


@pytest.mark.mpi
@pytest.mark.usefixtures("mpich")
def test_two_servers_make_one_world_and_the_mapping_says_who_is_near() -> None:
    """Ranks 0, 2 and 1, 3 on two "machines" that exchange what was put at the barrier."""
    with Program(HELLO, [0, 1, 0, 1]) as program:
        assert sorted(program.output().splitlines()) == expected([2, 2, 2, 2])


@pytest.mark.mpi
@pytest.mark.usefixtures("mpich")
def test_abort_reaches_the_caller_with_its_code() -> None:
    code = "from mpi4py import MPI; w = MPI.COMM_WORLD; w.Barrier(); w.rank == 1 and w.Abort(7); w.Barrier()"
    with Program(code, [0, 0]) as program:
        end = time.monotonic() + LIMIT
        service = program.services[0]
        with selectors.DefaultSelector() as selector:
            for fd in service.fds():
                selector.register(fd, selectors.EVENT_READ)
            while not program.aborts and time.monotonic() < end:
                for key, _ in selector.select(1.0):
                    program.act(service, service.on_readable(key.fd))
    assert [(a.rank, a.code) for a in program.aborts] == [(1, 7)]


@pytest.mark.mpi
@pytest.mark.usefixtures("mpich")
def test_shared_memory_without_a_name_is_freed_however_ranks_end() -> None:
    code = """
import os, sys
from mpi4py import MPI
from mpiflux.node.pmi import unlink_own_segments
w = MPI.COMM_WORLD
w.Barrier()
held = [line.split()[-1] for line in open("/proc/self/maps") if "/dev/shm/mpich" in line]
w.Barrier()
unlink_own_segments()
assert w.allreduce(1) == 2 and w.Dup().allreduce(1) == 2
sys.stdout.write(held[0] + "\\n"); sys.stdout.flush()
os._exit(0)
"""
    with Program(code, [0, 0]) as program:
        names = set(program.output().split())
        assert len(names) == 1 and not [name for name in names if os.path.exists(name)]


@pytest.mark.mpi
@pytest.mark.usefixtures("mpich")
def test_spawn_and_publish_fail_instead_of_hanging() -> None:
    code = """
import sys
from mpi4py import MPI
MPI.COMM_SELF.Set_errhandler(MPI.ERRORS_RETURN); MPI.COMM_WORLD.Set_errhandler(MPI.ERRORS_RETURN)
for call in (lambda: MPI.COMM_SELF.Spawn("true", maxprocs=1), lambda: MPI.Lookup_name("service"),
             lambda: MPI.Publish_name("service", "port")):
    try:
        call()
        sys.stdout.write("done\\n")
    except MPI.Exception:
        sys.stdout.write("refused\\n")
"""
    with Program(code, [0]) as program:
        assert program.output().split() == ["refused"] * 3


@pytest.mark.mpi
def test_intel_mpi_boots_too() -> None:
    python = os.environ.get("INTEL_MPI_PYTHON", "")
    if not python:
        pytest.skip("needs INTEL_MPI_PYTHON: a python with the packages impi-rt and mpi4py")
    with Program(HELLO, [0, 0, 0, 0], python) as program:
        assert sorted(program.output().splitlines()) == expected([4, 4, 4, 4])


def test_a_rank_that_does_not_read_is_dropped() -> None:
    service = PmiService(PmiServer(1, "k", ""))
    fd, _ = service.open(0)
    (ours,) = service.fds()
    flood = b"cmd=get_maxes\n" * 400
    actions: list[Action] = []
    with socket.socket(fileno=os.dup(fd)) as rank:
        for _ in range(2000):
            rank.send(flood)
            actions = service.on_readable(ours)
            if actions:
                break
    assert [type(action) for action in actions] == [Abort] and "does not read" in actions[0].message
    assert service.fds() == []
    service.close()


def test_a_rank_that_has_gone_is_told_by_its_socket() -> None:
    service = PmiService(PmiServer(2, "k", ""))
    for rank in (0, 1):
        service.open(rank)
    service.started(0)
    fd = service.fds()[0]
    assert service.rank_of(fd) == 0
    assert service.on_readable(fd) == [] and not service.serves(fd)
    assert service.on_readable(service.fds()[0]) == [], "nothing to read is no event"
    service.close()
    assert service.fds() == []
