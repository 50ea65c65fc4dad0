"""When the process that runs mpirun says why a job fails: what it hears, and when."""

from __future__ import annotations

import json
import time

import pytest

from mpiflux.model import openmpi
from mpiflux.node.mpirun import Pmi, Task, _Child, _Daemon, _Mpirun

ABORTED = b"MPI_ABORT was invoked on rank 2 in communicator MPI_COMM_WORLD\nwith errorcode 3.\n"


class Said(Pmi):
    """Hears what is said to the supervisor."""

    def __init__(self) -> None:
        self.found: list[tuple[int, str]] = []

    def abort(self, code: int, message: str) -> None:
        self.found.append((code, message))


def process(part: int = 0, nodes: int = 2) -> tuple[_Child, Said]:
    told = {"directory": "/nowhere", "mpirun": "/o/mpirun", "tasks": [2] * nodes, "part": part,
            "nodes": [f"n{number}" for number in range(nodes)]}
    said = Said()
    return (_Daemon if part else _Mpirun)(Task(json.dumps(told)), said), said


def mpirun(nodes: int = 2) -> tuple[_Mpirun, Said]:
    child, said = process(0, nodes)
    assert isinstance(child, _Mpirun)
    return child, said


def test_words_of_an_abort_alone_are_of_anybody() -> None:
    child, said = mpirun()
    child.tail = ABORTED
    child._tell_of_abort()
    child.heard(f"{openmpi.BEGUN}\n")
    assert not said.found
    child.heard("0 143\n")
    assert said.found == [(3, "task 2 on n1 aborted with code 3")]


def test_an_abort_is_told_once_whichever_comes_first() -> None:
    child, said = mpirun()
    child.heard("0 3\n")
    assert not said.found
    child.tail = ABORTED
    child._tell_of_abort()
    child.tell()
    assert said.found == [(3, "task 2 on n1 aborted with code 3")]


@pytest.mark.parametrize("part", [0, 1])
def test_a_task_that_exits_is_told_though_mpirun_goes_on(part: int) -> None:
    child, said = process(part)
    child.heard("1 5\n0 143\n")
    assert list(child.timers) == [child.tell] and child.timers[child.tell] > time.monotonic() - 1
    child.tell()
    assert said.found == [(5, "task 1 on n0 ended with exit code 5")]


@pytest.mark.parametrize(("part", "nodes", "at_once"), [(0, 1, True), (1, 2, True), (0, 2, False)])
def test_a_signal_is_told_at_once_where_nobody_knows_better(part: int, nodes: int, at_once: bool) -> None:
    child, _ = process(part, nodes)
    child.heard("0 139\n")
    signalled = child.timers[child.tell]
    other, _ = process(part, nodes)
    other.heard("0 1\n")
    assert (other.timers[other.tell] - signalled > 0.3) is at_once


def test_daemons_have_come_once_the_first_task_begins() -> None:
    child, said = mpirun()
    child.timers[child._give_up] = 0.0
    child.heard(f"{openmpi.BEGUN}\n")
    assert not child.timers and not said.found
