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


@dataclass(frozen=True)
class Plan(Generic[T]):
    """A request, and what to make of its answer."""

    op: r.Op
    convert: Callable[[Any], T]


class Stream:
    """The items of one subscription that have come and were not taken yet.

    ``wake`` is called when there is something new; set it. ``op`` says how to subscribe again after the connection
    was lost, given the number to go on from; None: it cannot be, and ends.
    """

    def __init__(self, session: Session, sub: int, op: Callable[[int], r.Op] | None, convert: Callable[[Any], Any],
                 acknowledge: bool) -> None:
        self.session, self.sub, self.op = session, sub, op
        self.wake: Callable[[], None] = lambda: None
        self.ended = False
        self.error: FluxError | None = None
        """Why it ended, where that is not as it should be."""
        self.cursor = -1
        """Where to go on: the ``since`` after all that has come."""
        self._convert, self._acknowledge = convert, acknowledge
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
            if self._acknowledge and not self.ended:
                self.session.tell(r.Taken(self.sub, upto))
        return self._convert(item)

    def come(self, items: list[Any], upto: int) -> None:
        if upto >= 0:
            self.cursor = upto
        if items:
            self._pages.append((deque(items), upto))
            self.wake()

    def asked_again(self, value: Any, error: FluxError | None) -> None:
        """Whether it goes on, on a new connection."""
        if error is not None:
            self.end(error)

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

        While a lost connection is tried again the call waits for that. ``done`` is called at once when there is no
        instance any more. Raises ValueError for what is too long.
        """
        self._number += 1
        number = self._number
        frame = _frame(r.Call(number, op))
        if self.goodbye is not None:
            done(None, self.goodbye)
            return number
        self._calls[number] = done
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
        if self._calls.pop(number, None) is not None:
            self.tell(r.Forget(number))

    def subscribe(self, make: Callable[[int, int], r.Op], since: int, done: Done, *,
                  convert: Callable[[Any], Any] = lambda item: item, resumes: bool = False,
                  acknowledge: bool = False) -> Stream:
        """A new stream. ``make(sub, since)`` is the request; ``done`` hears whether it was taken."""
        self._number += 1
        sub = self._number
        stream = Stream(self, sub, (lambda since: make(sub, since)) if resumes else None, convert, acknowledge)
        stream.cursor = since
        self._streams[sub] = stream

        def answered(value: Any, error: FluxError | None) -> None:
            if error is not None:
                self._streams.pop(sub, None)
                stream.end(error)
            elif acknowledge and stream.cursor < 0:
                stream.cursor = value
            done(value, error)

        self.call(make(sub, since), answered)
        return stream

    def close_stream(self, stream: Stream) -> None:
        if self._streams.pop(stream.sub, None) is not None:
            stream.end(None)
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
            done = self._calls.pop(message.number, None)
            if done is not None:
                done(message.value, None)
        elif isinstance(message, r.Items):
            stream = self._streams.get(message.sub)
            if stream is not None:
                stream.come(message.items, message.upto)
        elif isinstance(message, r.Error):
            done = self._calls.pop(message.number, None)
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

    def _greeted(self, welcome: r.Welcome) -> None:
        self.welcome = welcome
        for stream in list(self._streams.values()):
            if stream.op is not None and stream.cursor >= 0:
                self.call(stream.op(stream.cursor), stream.asked_again)
        self.on_welcome()

    def lost(self) -> None:
        """The connection broke. What was asked may or may not have been done; streams that can, wait to go on."""
        error = ConnectionLost("the connection to the instance was lost; what was asked last may have been done or not")
        calls, self._calls = self._calls, {}
        self._unsent = {}
        for stream in list(self._streams.values()):
            if stream.op is None or stream.cursor < 0:
                del self._streams[stream.sub]
                stream.end(error)
        for done in calls.values():
            done(None, error)

    @property
    def resumable(self) -> bool:
        """Whether somebody waits for a stream to go on."""
        return bool(self._streams)

    def end(self, error: FluxError, *, quietly: bool = False) -> None:
        """Nothing more is to be had of the instance. ``quietly``: that is no news to who reads streams."""
        if self.goodbye is not None:
            return
        self.goodbye = error
        calls, self._calls = self._calls, {}
        streams, self._streams = self._streams, {}
        for done in calls.values():
            done(None, error)
        over = quietly or isinstance(error, InstanceEnded)
        for stream in streams.values():
            # that the run is over is how every stream ends
            stream.end(None if over else error)
        self.on_welcome()


def _frame(call: r.Call) -> bytes:
    try:
        return pack(r.encode(call))
    except (msgspec.MsgspecError, TypeError) as error:
        raise TypeError(f"cannot be sent: {error}") from None
