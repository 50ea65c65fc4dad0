"""What a connection to an instance is, whoever moves its bytes: calls and their answers, streams and their items.

No sockets and no threads here: :mod:`mpiflux.client.connection` and :mod:`mpiflux.client.aioconnection` are two ways of
moving the bytes of one :class:`Session`, and of waiting for what it tells.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from mpiflux.client.errors import (
    ConnectionLost,
    FluxError,
    InstanceEnded,
    NotConnected,
    error_of,
)
from mpiflux.model import requests as r
from mpiflux.model.frames import BadFrame, Unpacker, pack

T = TypeVar("T")
Done = Callable[[Any, "FluxError | None"], None]
"""Gets the answer to a call: its value, or what went wrong."""


AGAIN = (r.Info, r.Resolve, r.Eventlog, r.Drain, r.Explain, r.Get, r.Ls, r.QueueInfo, r.Status, r.Sync)
"""Requests that change nothing: what was lost with a connection is asked again on the next one."""


@dataclass(frozen=True)
class Plan(Generic[T]):
    """A request, and what to make of its answer."""

    op: r.Op
    convert: Callable[[Any], T]
    taken: Callable[[Any], r.Op] | None = None
    """What to tell the instance once who asked has the answer."""
    back: Callable[[Any], r.Op] | None = None
    """What to tell it when the answer comes and nobody waits for it any more."""


class Stream:
    """The items of one subscription that have come and were not taken yet.

    ``wake`` is called when there is something new; set it. ``make`` is how it is asked for, given its number and where
    to go on from; ``done`` is who waits for the answer.
    """

    def __init__(self, session: Session, sub: int, make: Callable[[int, int], r.Op], since: int, done: Done,
                 convert: Callable[[Any], Any], resumes: bool, acknowledge: bool) -> None:
        self.session, self.sub, self.make, self.done = session, sub, make, done
        self.acknowledge = acknowledge
        self.wake: Callable[[], None] = lambda: None
        self.ended = False
        self.error: FluxError | None = None
        """Why it ended, where that is not as it should be."""
        self.cursor = since
        """Where to go on: the ``since`` after all that has come."""
        self.asked = 0
        """The call that asks for it and is not answered; 0: there is none."""
        self._convert, self._resumes, self._heard = convert, resumes, False
        self._pages: deque[tuple[deque[Any], int]] = deque()

    def __len__(self) -> int:
        return sum(len(page) for page, _ in self._pages)

    @property
    def has_items(self) -> bool:
        return bool(self._pages)

    def take(self) -> Any:
        """The next item. Raises IndexError when there is none now."""
        page, upto = self._pages[0]
        item = page.popleft()
        if not page:
            self._pages.popleft()
            if self.acknowledge and not self.ended:
                self.session.tell(r.Taken(self.sub, upto))
        return self._convert(item)

    def come(self, items: list[Any], upto: int) -> None:
        if upto >= 0:
            self.cursor = upto
        if items:
            self._heard = True
            self._pages.append((deque(items), upto))
            self.wake()

    @property
    def resumes(self) -> bool:
        """Whether it can go on, on another connection: it is known from where on."""
        return self._resumes and (self.cursor >= 0 or not self._heard)

    def end(self, error: FluxError | None) -> None:
        if not self.ended:
            self.ended, self.error = True, error
            self.wake()


class Session:
    """One client's side of the conversation. ``send`` gets bytes for the instance; it may be replaced."""

    def __init__(self, hello: r.Hello) -> None:
        self.hello = hello
        self.welcome: r.Welcome | None = None
        self.goodbye: FluxError | None = None
        """Set once nothing more will be answered."""
        self.send: Callable[[bytes], None] = lambda data: None
        self.on_welcome: Callable[[], None] = lambda: None
        self._unpacker = Unpacker()
        self._calls: dict[int, Done] = {}
        self._again: dict[int, bytes] = {}
        """Of these, the frames of those that are asked again on the next connection."""
        self._streams: dict[int, Stream] = {}
        self._number = 0
        self._unsent: dict[int, bytes] | None = {}
        """Calls made while there is no connection, for the next one; None while there is one."""

    # -- asking ----------------------------------------------------------------------------------------------------

    def open(self) -> bytes:
        """The first bytes of a new connection, with the calls that waited for it.

        Whoever moves the bytes must let no call in between this and the connection's being what ``send`` writes to.
        On a later connection the streams that go on are asked for again once it is welcomed.
        """
        self._unpacker = Unpacker()
        self.welcome = None
        waiting, self._unsent = self._unsent or {}, None
        return pack(r.encode(self.hello)) + b"".join(waiting.values())

    def call(self, op: r.Op, done: Done) -> int:
        """Ask; ``done`` is called with the answer. The number is good for :meth:`forget`.

        While a lost connection is tried again the call waits for that. One that was lost with its connection is asked
        again if it changes nothing (:data:`AGAIN`), and fails with ConnectionLost otherwise. ``done`` is called at once
        when there is no instance any more. Raises ValueError for what is too long.
        """
        self._number += 1
        number = self._number
        frame = _frame(r.Call(number, op))
        if self.goodbye is not None:
            done(None, self.goodbye)
            return number
        self._calls[number] = done
        if isinstance(op, AGAIN):
            self._again[number] = frame
        if self._unsent is None:
            self.send(frame)
        else:
            self._unsent[number] = frame
        return number

    def tell(self, op: r.Op) -> None:
        """Ask for what is not answered; without a connection it is about something that went with the last one."""
        if self.goodbye is None and self._unsent is None:
            self.send(_frame(r.Call(0, op)))

    def forget(self, number: int) -> None:
        """Nobody waits for this answer any more."""
        if self._unsent is not None:
            self._unsent.pop(number, None)
        if self._take(number) is not None:
            self.tell(r.Forget(number))

    def give_up(self, number: int) -> None:
        """The same for an answer that must not be lost: ``done`` is called with it if it was on its way, else with an
        error."""
        if self._unsent is not None:
            self.forget(number)
        elif number in self._calls:
            self.tell(r.Forget(number))

    def subscribe(self, make: Callable[[int, int], r.Op], since: int, done: Done, *,
                  convert: Callable[[Any], Any] = lambda item: item, resumes: bool = False,
                  acknowledge: bool = False) -> Stream:
        """A new stream. ``make(sub, since)`` is the request; ``done`` hears whether it was taken.

        With ``resumes`` it goes on across any number of lost connections, from after what has come.
        """
        self._number += 1
        sub = self._number
        stream = Stream(self, sub, make, since, done, convert, resumes, acknowledge)
        self._streams[sub] = stream

        self._ask_for(stream)
        return stream

    def _ask_for(self, stream: Stream) -> None:
        """Ask for a stream, again if need be. Who opened it hears of the first answer."""
        def answered(value: Any, error: FluxError | None) -> None:
            stream.asked = 0
            if error is not None:
                self._streams.pop(stream.sub, None)
                stream.end(error)
            elif stream.acknowledge and stream.cursor < 0:
                stream.cursor = value
            done, stream.done = stream.done, lambda value, error: None
            done(value, error)

        # what is wrong may be said before call returns
        stream.asked = self._number + 1
        self.call(stream.make(stream.sub, stream.cursor), answered)

    def close_stream(self, stream: Stream) -> None:
        if self._streams.pop(stream.sub, None) is not None:
            stream.end(None)
            if self._unsent is not None and self._unsent.pop(stream.asked, None) is not None:
                self._calls.pop(stream.asked, None)
            self.tell(r.Unsubscribe(stream.sub))

    # -- hearing ---------------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Bytes from the instance."""
        try:
            for frame in self._unpacker.feed(data):
                self._hear(r.decode_answer(frame))
        except (BadFrame, r.BadRequest) as error:
            self.end(ConnectionLost(f"what the instance says is not understood: {error}"))

    def _hear(self, message: r.ToClient) -> None:
        if isinstance(message, r.Reply):
            done = self._take(message.number)
            if done is not None:
                done(message.value, None)
        elif isinstance(message, r.Items):
            stream = self._streams.get(message.sub)
            if stream is not None:
                stream.come(message.items, message.upto)
        elif isinstance(message, r.Error):
            done = self._take(message.number)
            if done is not None:
                done(None, error_of(message.kind, message.text))
        elif isinstance(message, r.Ended):
            stream = self._streams.pop(message.sub, None)
            if stream is not None:
                stream.end(FluxError(message.reason) if message.reason else None)
        elif isinstance(message, r.Goodbye):
            self.end(InstanceEnded(message.reason) if message.over else NotConnected(message.reason))
        else:
            self._greeted(message)

    def _take(self, number: int) -> Done | None:
        self._again.pop(number, None)
        return self._calls.pop(number, None)

    def _greeted(self, welcome: r.Welcome) -> None:
        self.welcome = welcome
        for stream in list(self._streams.values()):
            if not stream.asked:
                self._ask_for(stream)
        self.on_welcome()

    def lost(self) -> None:
        """The connection broke. What changes something and is not answered may have been done or not, and fails; what
        only asks is asked again on the next connection, and streams that can, go on there."""
        error = ConnectionLost("the connection to the instance was lost; what was asked last may have been done or not")
        self._unsent = dict(self._again)
        failed = self._calls
        self._calls = {number: failed.pop(number) for number in self._again}
        for stream in list(self._streams.values()):
            if stream.resumes:
                failed.pop(stream.asked, None)
                stream.asked = 0
            else:
                del self._streams[stream.sub]
                stream.end(error)
        for done in failed.values():
            done(None, error)

    def end(self, error: FluxError, *, quietly: bool = False) -> None:
        """Nothing more is to be had of the instance. ``quietly``: that is no news to who reads streams."""
        if self.goodbye is not None:
            return
        self.goodbye = error
        calls, self._calls, self._again = self._calls, {}, {}
        streams, self._streams = self._streams, {}
        over = quietly or isinstance(error, InstanceEnded)
        for stream in streams.values():
            # that the run is over is how every stream ends
            stream.end(None if over else error)
        for done in calls.values():
            done(None, error)
        self.on_welcome()


def _frame(call: r.Call) -> bytes:
    try:
        return pack(r.encode(call))
    except (msgspec.MsgspecError, TypeError) as error:
        raise TypeError(f"cannot be sent: {error}") from None
