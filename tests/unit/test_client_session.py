"""One client's side of the conversation: what becomes of calls and streams when connections are lost."""

from __future__ import annotations

from typing import Any

import pytest

from mpiflux.client.errors import ConnectionLost, InstanceEnded
from mpiflux.client.session import Session, Stream
from mpiflux.model import requests as r
from mpiflux.model.frames import Unpacker, pack


class Wire:
    """A session, and the requests that have come over its present connection."""

    def __init__(self) -> None:
        self.session = Session(r.Hello(r.VERSION))
        self.calls: list[r.Call] = []
        self.heard: dict[str, Any] = {}
        self.connect()

    def connect(self, *, welcome: bool = True) -> None:
        unpacker, self.calls = Unpacker(), []
        hello, *frames = unpacker.feed(self.session.open())
        r.decode_hello(hello)
        self.calls += map(r.decode_call, frames)
        self.session.send = lambda data: self.calls.extend(map(r.decode_call, unpacker.feed(data)))
        if welcome:
            self.say(r.Welcome(r.VERSION, "one", "/run"))

    def say(self, *messages: r.ToClient) -> None:
        self.session.receive(b"".join(pack(r.encode(message)) for message in messages))

    def ask(self, name: str, op: r.Op) -> int:
        return self.session.call(op, lambda value, error: self.heard.update({name: error or value}))

    def number(self, kind: type) -> int:
        """The only call of this kind."""
        [call] = [call for call in self.calls if isinstance(call.op, kind)]
        return call.number

    def events(self, since: int = 0) -> Stream:
        return self.session.subscribe(lambda sub, at: r.Events(sub, r.Select(every=True), (), at), since,
                                      lambda value, error: self.heard.update(events=error or value),
                                      resumes=True, acknowledge=True)

    @property
    def ops(self) -> list[Any]:
        return [call.op for call in self.calls]


@pytest.fixture
def wire() -> Wire:
    return Wire()


def test_what_changes_nothing_is_asked_again_and_the_rest_fails(wire: Wire) -> None:
    wire.ask("result", r.Info(7, output=True, ended=True))
    wire.ask("push", r.Push("q", (b"x",)))
    wire.ask("known", r.Info(8))
    wire.say(r.Reply(wire.calls[-1].number, "here"))
    for _ in range(3):
        wire.session.lost()
        wire.connect()
    assert wire.ops == [r.Info(7, output=True, ended=True)]
    assert isinstance(wire.heard.pop("push"), ConnectionLost) and wire.heard == {"known": "here"}
    wire.say(r.Reply(wire.number(r.Info), "there"))
    assert wire.heard["result"] == "there"
    wire.session.lost()
    wire.connect()
    assert wire.ops == []


def test_what_nobody_waits_for_any_more_is_not_asked_again(wire: Wire) -> None:
    number = wire.ask("result", r.Info(7, ended=True))
    wire.session.forget(number)
    other = wire.ask("other", r.Drain(r.Select(every=True)))
    wire.session.lost()
    wire.session.forget(other)
    wire.connect()
    assert wire.ops == [] and wire.heard == {}


def test_a_stream_survives_losses_before_it_is_asked_for_and_answered_again(wire: Wire) -> None:
    stream = wire.events()
    wire.say(r.Reply(wire.number(r.Events), 0), r.Items(stream.sub, [[4, 1, "submit", 0.0, {}]], 5))
    for welcome in (True, True, False, True):
        wire.session.lost()
        wire.connect(welcome=welcome)
        assert [op.since for op in wire.ops] == [5] * welcome
    assert not stream.ended
    wire.say(r.Reply(wire.number(r.Events), 5), r.Items(stream.sub, [[5, 1, "clean", 0.0, {}]], 6))
    assert [stream.take()[0] for _ in range(2)] == [4, 5]


def test_a_stream_whose_first_answer_is_lost_is_asked_for_once_more(wire: Wire) -> None:
    wire.events(-1)
    wire.session.lost()
    assert wire.heard == {}
    wire.connect()
    assert [op.since for op in wire.ops] == [-1]
    wire.say(r.Reply(wire.number(r.Events), 3))
    assert wire.heard == {"events": 3}
    wire.session.lost()
    wire.connect()
    assert [op.since for op in wire.ops] == [3]


def test_a_stream_opened_or_closed_while_there_is_no_connection(wire: Wire) -> None:
    wire.session.lost()
    stream, closed = wire.events(), wire.events()
    wire.session.close_stream(closed)
    wire.connect()
    assert [(op.sub, op.since) for op in wire.ops] == [(stream.sub, 0)]
    assert closed.ended and not stream.ended


def test_a_stream_that_is_not_known_from_where_on_ends(wire: Wire) -> None:
    messages = wire.session.subscribe(lambda sub, at: r.Subscribe(sub, "t"), 0, lambda value, error: None)
    added = wire.session.subscribe(lambda sub, at: r.Watch(sub, "job.1.stdout", at), -1, lambda value, error: None,
                                   resumes=True)
    wire.say(r.Items(added.sub, ["x"]))
    wire.session.lost()
    assert isinstance(messages.error, ConnectionLost) and isinstance(added.error, ConnectionLost)


def test_that_the_run_is_over_ends_streams_as_it_should_be(wire: Wire) -> None:
    stream = wire.events()
    wire.ask("status", r.Status())
    wire.say(r.Goodbye("over", over=True))
    assert stream.ended and stream.error is None
    assert isinstance(wire.heard["status"], InstanceEnded)
