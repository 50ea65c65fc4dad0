"""Followers of jobs and what is written to jobs, in the broker: no rank, no socket, no disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mpiflux.instance.broker import RequestError, Session
from mpiflux.instance.broker_running import ATTEMPT, Running
from mpiflux.instance.broker_stdin import MOST, WINDOW, Stdins
from mpiflux.model import messages as m
from mpiflux.model import requests as r
from mpiflux.model.jobspec import JobGroup
from mpiflux.model.records import FIELDS, PACK
from mpiflux.model.states import State
from mpiflux.store.jobtable import JobTable

RECORD = np.dtype(list(FIELDS))


def record(job: int, attempt: int = 1, out: int = 0, err: int = 0) -> bytes:
    return PACK.pack(job, attempt, 1, 0, 0, 1, 0, 0, 1.0, 1.0, 2.0, 0, 0, 0, out, err, 1)


def array(*records: bytes) -> Any:
    return np.frombuffer(b"".join(records), RECORD)


class Reader:
    """What the run directory has of a job."""

    def __init__(self, attempts: int, out: bytes, err: bytes = b"") -> None:
        self.attempts, self.streams = attempts, {1: out, 2: err}

    def job(self, id: int) -> dict[str, Any]:
        return {"attempts": self.attempts}

    def output(self, id: int, stream: int) -> bytes:
        return self.streams[stream]


class Results:
    """Readings wait until the test answers them."""

    def __init__(self) -> None:
        self.asked: list[tuple[Callable[[Any], Any], Callable[[Any], None]]] = []

    def read(self, what: Callable[[Any], Any], done: Callable[[Any], None]) -> None:
        self.asked.append((what, done))

    def answer(self, reader: Reader) -> None:
        what, done = self.asked.pop(0)
        done(what(reader))


class Desk:
    def __init__(self) -> None:
        self.table = JobTable()
        self.table.add_group(JobGroup(number=0, name="a", first_id=1, count=3, command=("cat",), input="-"))
        self.table.add_group(JobGroup(number=1, name="b", first_id=4, count=1, command=("cat",)))
        self.results, self.sent, self.cancelled = Results(), [], []
        self.running = Running(self.table, self.results, self.sent.append,  # type: ignore[arg-type]
                               lambda select: np.array([first for first, _ in select.ids]))
        self.stdins = Stdins(self.table, self.sent.append, lambda ids, reason: self.cancelled.append(ids) or 1)
        self.session = Session(7, 1)

    def run(self, job: int, attempt: int = 1) -> None:
        self.table.state[job - 1], self.table.attempt[job - 1] = State.RUN, attempt
        self.running.started(array(record(job, attempt)))
        self.stdins.started(array(record(job, attempt)))

    def end(self, job: int, attempt: int = 1, out: bytes = b"", err: bytes = b"", final: bool = True) -> None:
        self.table.state[job - 1] = State.INACTIVE if final else State.SCHED
        ids = np.array([job] if final else [], "i8")
        self.stdins.ended(ids)
        self.running.ended(array(record(job, attempt, len(out), len(err))), out + err, ids)

    def ask(self, op: r.Op) -> Any:
        part = self.stdins if isinstance(op, r.Stdin) else self.running
        return part.handlers()[type(op)](self.session, 5, op)

    def heard(self) -> list[Any]:
        frames, self.session.frames = self.session.frames, []
        said = [r.decode_answer(frame) for frame in frames]
        return [item for one in said if isinstance(one, r.Items) for item in one.items] + [
            one for one in said if not isinstance(one, r.Items)]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_follower_from_before_the_start_hears_every_byte_once(desk: Desk) -> None:
    desk.ask(r.Follow(1, 2))
    assert desk.sent == []
    desk.run(2)
    assert desk.sent == [m.Listen((2,))]
    desk.running.output(m.Output(2, 1, 1, 0, b"ab"))
    desk.running.output(m.Output(2, 1, 2, 0, b"E"))
    desk.running.output(m.Output(3, 1, 1, 0, b"of another job"))
    desk.end(2, out=b"cd", err=b"F")
    assert desk.heard() == [[1, 1, 0, b"ab"], [1, 2, 0, b"E"], [1, 1, 2, b"cd"], [1, 2, 1, b"F"], r.Ended(1)]
    assert not desk.session.subs


@pytest.mark.parametrize("read", [b"", b"ab", b"abcd", b"abcdef"])
def test_what_comes_while_the_past_is_read_is_told_once(desk: Desk, read: bytes) -> None:
    desk.run(2)
    desk.ask(r.Follow(1, 2, (1,), 1, (0, 0)))
    desk.running.output(m.Output(2, 1, 1, len(read) and 2, b"cdef" if read else b"abcdef"))
    desk.results.answer(Reader(1, read))
    told = desk.heard()
    assert b"".join(item[3] for item in told) == b"abcdef"
    assert [item[2] for item in told] == [sum(len(one[3]) for one in told[:n]) for n in range(len(told))]


def test_who_goes_on_from_somewhere_hears_the_rest(desk: Desk) -> None:
    desk.run(2)
    desk.ask(r.Follow(1, 2, (1,), 1, (4, 0)))
    desk.results.answer(Reader(1, b"abcdef"))
    assert desk.heard() == [[1, 1, 4, b"ef"]]


def test_a_job_that_ends_while_the_past_is_read_is_read_again(desk: Desk) -> None:
    desk.run(2)
    desk.ask(r.Follow(1, 2))
    desk.end(2, out=b"end")
    desk.results.answer(Reader(1, b"ab"))
    assert desk.heard() == []
    desk.results.answer(Reader(1, b"abend"))
    assert desk.heard() == [[1, 1, 0, b"abend"], r.Ended(1)]


def test_a_job_that_runs_again_begins_anew(desk: Desk) -> None:
    desk.ask(r.Follow(1, 2))
    desk.run(2)
    desk.running.output(m.Output(2, 1, 1, 0, b"ab"))
    desk.end(2, out=b"c", final=False)
    desk.run(2, attempt=2)
    desk.running.output(m.Output(2, 2, 1, 0, b"xyz"))
    desk.running.output(m.Output(2, 1, 1, 3, b"late"))
    desk.end(2, attempt=2)
    assert desk.heard() == [[1, 1, 0, b"ab"], [1, 1, 2, b"c"], [2, 1, 0, b"xyz"], r.Ended(1)]


def test_a_watch_of_a_key_tells_what_was_added_and_when_it_began_anew(desk: Desk) -> None:
    from mpiflux.store.kvs import decode_value

    desk.running.watch(desk.session, r.Watch(1, "job.2.stdout"), 2, 1)
    desk.run(2)
    desk.running.output(m.Output(2, 1, 1, 0, b"ab"))
    desk.running.output(m.Output(2, 2, 1, 0, b"c"))
    told = [(key, data and decode_value(data), version) for key, data, version in desk.heard()]
    assert told == [("job.2.stdout", b"ab", ATTEMPT + 2), ("job.2.stdout", None, 2 * ATTEMPT),
                    ("job.2.stdout", b"c", 2 * ATTEMPT + 1)]


def test_nobody_is_told_to_listen_once_the_last_follower_has_left(desk: Desk) -> None:
    desk.run(2)
    for sub in (1, 2):
        desk.ask(r.Follow(sub, 2))
    for sub in (1, 2):
        desk.session.subs.pop(sub)()
    assert desk.sent == [m.Listen((2,)), m.Listen((2,)), m.Listen((2,), False)]


def test_signals_reach_those_that_run(desk: Desk) -> None:
    desk.run(2)
    assert desk.ask(r.Signal(r.Select(ids=((1, 2), (2, 3))), 10)) == 1
    assert desk.sent == [m.Signal((2,), 10)]
    with pytest.raises(RequestError, match="from 1 to 64"):
        desk.ask(r.Signal(r.Select(ids=((2, 3),)), 0))


def test_stdin_waits_for_its_job_and_is_cut_to_what_it_reads(desk: Desk) -> None:
    assert desk.ask(r.Stdin(1, b"x" * WINDOW)) is None
    assert desk.ask(r.Stdin(1, b"y", eof=True)) is not None, "who writes too much waits"
    assert desk.sent == []
    desk.run(1)
    assert sum(len(one.data) for one in desk.sent) == WINDOW and not desk.sent[-1].eof
    assert desk.heard() == []
    desk.stdins.taken(m.StdinTaken(1, 1, WINDOW))
    assert desk.sent[-1] == m.Stdin((1,), 1, b"y", True)
    assert desk.heard() == [r.Reply(5, None)]
    with pytest.raises(RequestError, match="was closed"):
        desk.ask(r.Stdin(1, b"z"))


def test_stdin_is_given_again_to_another_attempt_or_the_job_ends(desk: Desk) -> None:
    desk.run(1)
    desk.ask(r.Stdin(1, b"abc", eof=True))
    desk.end(1, final=False)
    desk.run(1, attempt=2)
    assert desk.sent == [m.Stdin((1,), 1, b"abc", True), m.Stdin((1,), 2, b"abc", True)]
    desk.run(2)
    desk.session.waiting.clear()
    desk.ask(r.Stdin(2, b"x" * (WINDOW + 1)))
    desk.end(2, final=False)
    desk.run(2, attempt=2)
    assert desk.cancelled == [[2]]
    desk.end(2)
    assert isinstance(desk.heard()[-1], r.Error), "who waited hears that it was never read"


def test_stdin_of_who_has_none_or_has_ended_or_has_too_much_is_refused(desk: Desk) -> None:
    with pytest.raises(RequestError, match="submit it with --input=-"):
        desk.ask(r.Stdin(4, b"x"))
    with pytest.raises(RequestError, match="no job 9"):
        desk.ask(r.Stdin(9, b"x"))
    with pytest.raises(RequestError, match="MiB wait"):
        desk.ask(r.Stdin(1, b"x" * (MOST + 1)))
    desk.run(3)
    desk.end(3)
    with pytest.raises(RequestError, match="has ended"):
        desk.ask(r.Stdin(3, b"x"))
