"""Supervisors that die at once, of their node or of their jobs, and a zygote that does not answer."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from mpiflux.model import messages as m
from mpiflux.model.apart import EXECUTORS, apart
from mpiflux.node.executors import MOST_STILLBORN, Executors, SupervisorsFail
from mpiflux.node.link import Link
from mpiflux.node.zygote import Setup, Zygote

NUMBER = EXECUTORS + 3


class FakeZygote:
    """Hands out links whose other ends are here."""

    def __init__(self) -> None:
        self.ends: list[socket.socket] = []
        self.buried: list[int] = []

    def supervisor(self, replaces: int = 0) -> tuple[socket.socket, int]:
        ours, theirs = socket.socketpair()
        self.ends.append(theirs)
        return ours, len(self.ends)

    def bury(self, pid: int) -> None:
        self.buried.append(pid)

    def close(self) -> None:
        for end in self.ends:
            end.close()


@pytest.fixture
def parts() -> Iterator[tuple[FakeZygote, Executors]]:
    zygote: Any = FakeZygote()
    executors = Executors(zygote, [Setup(NUMBER, "here", {}, ((0,),))], lambda *_: None)
    yield zygote, executors
    executors.close()


def die(zygote: FakeZygote, executors: Executors, number: int, *, after_a_word: bool) -> None:
    if after_a_word:
        Link(zygote.ends[-1]).send(m.encode([(number, number, m.Alive())]))
    zygote.ends[-1].close()
    while executors.receive(number):
        pass


@pytest.mark.parametrize("alone", [False, True])
def test_a_place_where_supervisors_die_before_they_can_take_a_job_is_given_up(
        parts: tuple[FakeZygote, Executors], alone: bool) -> None:
    zygote, executors = parts
    number = apart(1, NUMBER, 0) if alone else NUMBER

    def begin() -> None:
        if alone:
            executors.post(number, 1, m.ExecutorLost(number))
            executors.post(number, 1, m.Grant(1, 0, 0, m.ResourceSet(())))

    executors._fences[number, 1] = 1
    begin()
    for _ in range(MOST_STILLBORN):
        die(zygote, executors, number, after_a_word=False)
        begin()
    with pytest.raises(SupervisorsFail, match="here: 5 supervisors in a row"):
        die(zygote, executors, number, after_a_word=False)


def test_supervisors_that_die_later_may_have_died_of_their_jobs(parts: tuple[FakeZygote, Executors]) -> None:
    zygote, executors = parts
    for _ in range(MOST_STILLBORN):
        die(zygote, executors, NUMBER, after_a_word=False)
    for _ in range(3 * MOST_STILLBORN):
        die(zygote, executors, NUMBER, after_a_word=True)
    assert executors.lost == 4 * MOST_STILLBORN


def test_a_zygote_that_does_not_answer_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are those that take its place."""
    monkeypatch.setattr("mpiflux.node.zygote.ANSWER_LIMIT", 0.01)
    made: list[tuple[str, socket.socket]] = []

    def replace(zygote: Zygote, why: str) -> None:
        zygote.control.close()
        zygote.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        zygote.control.settimeout(0.01)
        made.append((why, theirs))
        if "is gone" in why:
            theirs.close()

    monkeypatch.setattr(Zygote, "_replace", replace)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        zygote = Zygote(ours, 0)
        with pytest.raises(RuntimeError, match="has not answered"):
            zygote.supervisor()
        with pytest.raises(RuntimeError, match="has not answered"):
            zygote.bury(1)
        assert len(made) == 2
        made[-1][1].close()
        with pytest.raises(RuntimeError, match="is gone"):
            zygote.supervisor()
        assert len(made) == 4
    for _, end in made:
        end.close()
    zygote.control.close()
