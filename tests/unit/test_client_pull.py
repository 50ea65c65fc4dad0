"""What a client pulls from a queue and then does not wait for: in its hands, or back in the queue, at any moment."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from mpiflux.client import aioconnection, connection, plans
from mpiflux.client.errors import FluxError
from mpiflux.client.session import Session
from mpiflux.model import requests as r
from mpiflux.model.frames import Unpacker, pack
from mpiflux.store.kvs import encode_value


class Wire:
    """An instance, as a session sees it, that answers when the test wants."""

    def __init__(self) -> None:
        self.session = Session(r.Hello(r.VERSION))
        self.asked: list[r.Call] = []
        self.session.open()
        self.session.send = self._hear

    def _hear(self, data: bytes) -> None:
        self.asked += [r.decode_call(frame) for frame in Unpacker().feed(data)]

    def say(self, message: r.ToClient) -> None:
        self.session.receive(pack(r.encode(message)))

    def give(self) -> None:
        """An item for who pulled."""
        [pull] = [call for call in self.asked if isinstance(call.op, r.Pull)]
        assert not pull.op.ack, "it stays in the queue until the client has it"
        self.say(r.Reply(pull.number, [7, encode_value("x"), 0]))

    def refuse(self) -> None:
        """The Forget came first."""
        [pull] = [call for call in self.asked if isinstance(call.op, r.Pull)]
        self.say(r.Error(pull.number, "request", "its client waits no longer"))

    @property
    def last(self) -> r.Op:
        return self.asked[-1].op

    def is_idle(self) -> bool:
        return not self.session._calls


def blocking(wire: Wire) -> connection.Connection:
    made = connection.Connection.__new__(connection.Connection)
    made._lock, made._closed, made._inherited, made.session = threading.RLock(), False, False, wire.session
    return made


@pytest.mark.parametrize("ack", [True, False])
@pytest.mark.parametrize("crossed", [True, False])
def test_an_item_that_comes_after_the_time_is_given_back(ack: bool, crossed: bool) -> None:
    wire = Wire()
    with pytest.raises(TimeoutError):
        blocking(wire).do(plans.pull("q", ack=ack, wait=True), 0)
    assert isinstance(wire.last, r.Forget)
    wire.give() if crossed else wire.refuse()
    assert wire.last == (r.Done(7, back=True) if crossed else r.Forget(1))
    assert wire.is_idle()


def test_an_item_that_comes_at_the_last_moment_is_had() -> None:
    wire = Wire()
    made = blocking(wire)

    class Late(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            wire.give()
            return False

    slots = connection._Slot.__init__

    def init(self: Any) -> None:
        slots(self)
        self.ready = Late()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection._Slot, "__init__", init)
        assert made.do(plans.pull("q", ack=True, wait=True), 0.1) == (7, "x")
    assert wire.last == r.Done(7)


def test_an_interrupt_gives_back_what_has_come() -> None:
    wire = Wire()
    made = blocking(wire)

    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            wire.give()
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection.threading, "Event", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            made.do(plans.pull("q", ack=False, wait=True))
    assert wire.last == r.Done(7, back=True)


@pytest.mark.parametrize("when", ["before", "together", "crossed", "never"])
def test_the_same_for_a_coroutine_that_is_cancelled(when: str) -> None:
    wire = Wire()

    async def run() -> None:
        made = aioconnection.Connection.__new__(aioconnection.Connection)
        made._closed, made.session, made._loop = False, wire.session, asyncio.get_running_loop()
        task = asyncio.create_task(made.do(plans.pull("q", ack=True, wait=True)))
        await asyncio.sleep(0)
        if when == "before":
            wire.give()  # and it is cancelled before it could run
        task.cancel()
        if when == "together":
            wire.give()
        with pytest.raises(asyncio.CancelledError):
            await task
        if when == "crossed":
            wire.give()
        elif when == "never":
            wire.refuse()

    asyncio.run(run())
    assert wire.last == (r.Forget(1) if when == "never" else r.Done(7, back=True))
    assert wire.is_idle()


def test_what_is_pulled_in_time_is_had_and_done_with() -> None:
    wire = Wire()
    made = blocking(wire)
    hear = wire.session.send

    def answer(data: bytes) -> None:
        hear(data)
        if isinstance(wire.last, r.Pull):
            wire.give()

    wire.session.send = answer
    assert made.do(plans.pull("q", ack=True, wait=True), 5) == (7, "x")
    assert wire.last == r.Done(7)
    wire.asked.clear()
    assert made.do(plans.pull("q", ack=False, wait=True), 5) == (7, "x")
    assert [type(call.op) for call in wire.asked] == [r.Pull], "the program says itself when it is done with it"


def test_no_instance_any_more() -> None:
    wire = Wire()
    wire.session.end(FluxError("over"))
    with pytest.raises(FluxError):
        blocking(wire).do(plans.pull("q", ack=True, wait=True), 0)
