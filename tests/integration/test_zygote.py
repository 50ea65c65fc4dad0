"""The process that forks supervisors, and the end of its rank."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpiflux.model import messages as m
from mpiflux.model.states import Result
from mpiflux.node import proctree
from mpiflux.node.zygote import BELL, fork_zygote
from tests.support.daemons import alive, daemon, pid_in
from tests.support.leaks import LeakCheck
from tests.support.node import Node
from tests.support.runs import until

__all__ = ["daemon"]


@pytest.mark.parametrize("unheard", [b"", b"bury 0", b"supervisor 0"], ids=["idle", "burying", "forking"])
def test_it_tidies_up_when_its_rank_is_gone(tmp_path: Path, no_leaks: LeakCheck, unheard: bytes) -> None:
    """Also when the rank has not heard the answer to its last request."""
    door = tmp_path / "door"
    door.mkdir()
    (door / f"{BELL}0").touch()
    zygote = fork_zygote(preload=False)
    zygote.tidy(str(door))
    os.kill(zygote.pid, signal.SIGSTOP)
    if unheard:
        zygote.control.send(unheard)
    zygote.control.close()
    os.kill(zygote.pid, signal.SIGCONT)
    until(lambda: os.waitpid(zygote.pid, os.WNOHANG)[0], "the zygote has left")
    assert not door.exists()


def test_without_the_zygote_jobs_go_on_and_are_cleaned_up(no_leaks: LeakCheck) -> None:
    with Node() as node:
        assert node.run("/bin/true").result is Result.COMPLETED
        os.kill(node.zygote.pid, signal.SIGKILL)
        assert node.sh("echo still here").stdout == b"still here\n"
        node.begin("sleep", "600")
        node.until(lambda: len(node.started) >= 1)
    assert not no_leaks.settle()


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """Two supervisors, whose jobs can be told from those of others."""
    uri = f"local:///nowhere/{os.getpid()}"
    with Node(supervisors=2, environ={**os.environ, "MPIFLUX_URI": uri}) as made:
        made.zygote.mark = f"MPIFLUX_URI={uri}".encode()
        yield made


def begin_on_both(node: Node, daemon: str, path: Path) -> list[list[int]]:
    """A job with a daemon on each supervisor; the pids of both, by supervisor."""
    for number in (0, 1):
        group = node.declare(f"{daemon} {path}/{number} silent; echo $$ > {path}/m{number}; "
                             f"mv {path}/m{number} {path}/main{number}; exec sleep 600", shell=True, to=number)
        node.grant(number, to=number, shape=number)
        node.feed(group, to=number, shape=number)
    node.turn(0)
    return [[pid_in(path / f"{number}"), pid_in(path / f"main{number}")] for number in (0, 1)]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_another_zygote_ends_what_a_killed_supervisor_leaves(
        no_leaks: LeakCheck, marked: Node, daemon: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        how: int) -> None:
    told: list[str] = []
    marked.zygote.on_replaced = told.append
    monkeypatch.setattr("mpiflux.node.zygote.ANSWER_LIMIT", 10.0)
    marked.zygote.control.settimeout(0.2)
    first, second = begin_on_both(marked, daemon, tmp_path)
    zygote, (lost, stays) = marked.zygote.pid, marked.pids()
    os.kill(zygote, how)
    os.kill(lost, signal.SIGKILL)
    marked.until(lambda: marked.lost == [0])
    assert told == ["was killed" if how == signal.SIGKILL else "did not answer for 10 s, and is ended"]
    assert marked.zygote.pid != zygote and not alive(zygote)
    assert not any(map(alive, first)), "the new supervisor may begin the same jobs again"
    assert marked.pids()[1] == stays and all(map(alive, second)), "the other supervisor goes on"
    marked.post(m.ExecutorLost(0))
    assert marked.sh("echo well").stdout == b"well\n"
    # the other one is no child of the new zygote, which ends what it leaves all the same
    os.kill(stays, signal.SIGKILL)
    marked.until(lambda: marked.lost == [0, 1])
    assert not any(map(alive, second)) and len(told) == 1


def test_at_its_end_another_zygote_waits_for_supervisors_that_are_not_its_own(
        no_leaks: LeakCheck, marked: Node, daemon: str, tmp_path: Path) -> None:
    _, second = begin_on_both(marked, daemon, tmp_path)
    lost, stays = marked.pids()
    os.kill(marked.zygote.pid, signal.SIGKILL)
    os.kill(lost, signal.SIGKILL)
    marked.until(lambda: marked.lost)
    marked.executors.close()
    assert not any(map(alive, [stays, *second]))


def test_who_was_left_by_a_killed_supervisor(no_leaks: LeakCheck) -> None:
    """Nobody who is not a job's, is another instance's, or is below a supervisor."""
    mark = f"MPIFLUX_URI=local:///elsewhere/{os.getpid()}"
    with contextlib.ExitStack() as stack:
        def started(*entries: str) -> int:
            process = subprocess.Popen(["sleep", "600"], env=dict(entry.split("=", 1) for entry in entries))
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process.pid
        left = started(mark, "MPIFLUX_JOB_ID=3")
        started(mark)
        started(mark + "1", "MPIFLUX_JOB_ID=3")
        with Node(environ={**os.environ, **dict([mark.split("=", 1)])}) as node:
            node.begin("sleep", "600")
            node.until(lambda: node.started)
            assert proctree.abandoned(mark.encode()) == [left]
