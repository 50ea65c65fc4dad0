"""The broker, on rank 0 beside the master: what clients ask for, and who hears of what.

It is a state machine over frames: :meth:`Broker.handle` takes what doors pass on, :meth:`Broker.collect` gives what
they are to write. What the requests mean is in the desks below it, one for jobs, one for keys, one for messages; each
lists the requests that it answers. A wrong request is answered with an error; a frame that is no request ends its
client's session; nothing that a client does raises here: what is asked is checked before anything is changed, and a
mistake of ours is an error for who met it.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from mpiflux.model import messages as m
from mpiflux.model import requests as r

MAX_SUBSCRIPTIONS = 10_000
"""Of one client."""
MAX_CALLS = 100_000
"""Calls of one client that wait for an answer."""
AHEAD = 16 << 20
"""Bytes that may wait for one client before more of its requests are dealt with."""
TAKEN = 64 << 10
"""Bytes of a client's requests after which its door is told that they have been dealt with."""
KEPT = 5.0
"""Seconds for which the instance is kept for a client that asked for that and whose connection is lost: it may be on
its way back."""


class RequestError(Exception):
    """A request that cannot be done. ``kind`` is one of :data:`mpiflux.model.requests.ERRORS`."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind, self.text = kind, text


LATER = object()
"""What a handler returns when the answer comes later."""

Handler = Callable[["Session", int, Any], Any]
"""(session, call number, op) to the answer's value."""


class Session:
    """A client, as the broker knows it."""

    __slots__ = ("client", "endpoint", "frames", "gone", "greeted", "keep", "later", "leaves", "pid", "size", "subs",
                 "taken", "waiting")

    def __init__(self, endpoint: int, client: int) -> None:
        self.endpoint, self.client, self.pid = endpoint, client, 0
        self.greeted = self.keep = self.gone = False
        self.leaves = False
        """It has said that it does not come back."""
        self.frames: list[bytes] = []
        """To be sent."""
        self.size = self.taken = 0
        """Bytes of ``frames``; bytes of requests that were dealt with and not acknowledged."""
        self.later: deque[bytes] = deque()
        """Requests that wait until the client has read what it asked for."""
        self.waiting: dict[int, Callable[[], None]] = {}
        """Calls that wait for their answer, and how to forget them."""
        self.subs: dict[int, Callable[[], None]] = {}
        """Subscriptions, and how to end them."""

    def say(self, message: r.ToClient) -> None:
        if not self.gone:
            frame = r.encode(message)
            self.frames.append(frame)
            self.size += len(frame)

    def reply(self, number: int, value: Any) -> None:
        self.waiting.pop(number, None)
        if number:
            self.say(r.Reply(number, value))

    def error(self, number: int, kind: str, text: str) -> None:
        self.waiting.pop(number, None)
        if number:
            self.say(r.Error(number, kind, text))

    def wait(self, number: int, forget: Callable[[], None]) -> Any:
        """The answer to a call comes later; ``forget`` is called when nobody wants it any more."""
        if len(self.waiting) >= MAX_CALLS:
            raise RequestError("request", f"more than {MAX_CALLS} calls wait for an answer; wait for some of them")
        if not number:
            raise RequestError("request", "call number 0 wants no answer, and this one comes later")
        self.waiting[number] = forget
        return LATER

    def subscribe(self, sub: int, end: Callable[[], None]) -> None:
        if sub in self.subs or sub < 1:
            raise RequestError("request", f"subscription number {sub} is in use, or not from 1 on")
        if len(self.subs) >= MAX_SUBSCRIPTIONS:
            raise RequestError("request", f"more than {MAX_SUBSCRIPTIONS} subscriptions of one client")
        self.subs[sub] = end

    def ended(self, sub: int, reason: str = "") -> None:
        """A subscription has come to its end by itself."""
        if self.subs.pop(sub, None) is not None:
            self.say(r.Ended(sub, reason))


class DeskPart(Protocol):
    """A part of the broker."""

    def handlers(self) -> Mapping[type, Handler]:
        """The requests that it answers."""

    def turn(self, now: float) -> None:
        """Once a loop turn, after all requests."""


class Broker:
    """See the module's text. ``hold`` is called with a session and whether it keeps the instance from ending; ``note``
    gets what went wrong here, with its traceback, for the log."""

    def __init__(self, parts: Iterable[DeskPart], *, instance: str, run_dir: str,
                 hold: Callable[[Session, bool], None] = lambda session, keep: None,
                 node_of: Callable[[int], str] = lambda endpoint: "",
                 note: Callable[[str], None] = lambda text: None) -> None:
        self.parts = tuple(parts)
        self._note = note
        self._known: set[tuple[str, int | None, type]] = set()
        """Mistakes of ours that were noted."""
        self.instance, self.run_dir = instance, run_dir
        self._hold, self._node_of = hold, node_of
        self._sessions: dict[tuple[int, int], Session] = {}
        self._lost: dict[Session, float] = {}
        """Who kept the instance and has gone without a word, and until when that counts; 0: until that is known."""
        self._last_words: list[tuple[int, m.Message]] = []
        self._handlers: dict[type, Handler] = {r.Unsubscribe: _unsubscribe, r.Forget: _forget, r.Leave: self._leave}
        for part in self.parts:
            self._handlers.update(part.handlers())

    def __len__(self) -> int:
        return len(self._sessions)

    def handle(self, src: int, message: m.Message, now: float) -> None:
        """Frames of a client, or its end. ``src`` is the endpoint of the rank whose door it came to."""
        if isinstance(message, m.ClientGone):
            self._end(self._sessions.pop((src, message.client), None))
        elif isinstance(message, m.ClientRequest):
            key = (src, message.client)
            session = self._sessions.get(key)
            if session is None:
                session = self._sessions[key] = Session(src, message.client)
            session.later.extend(message.frames)
            if len(session.later) == len(message.frames):
                self._take(session)
        elif isinstance(message, m.ClientReady):
            session = self._sessions.get((src, message.client))
            if session is not None:
                self._take(session)

    def _take(self, session: Session) -> None:
        """Deal with what a client has asked, as long as it is not too much at once that it gets."""
        while session.later and session.size <= AHEAD:
            frame = session.later.popleft()
            session.taken += len(frame)
            if not self._frame(session, frame):
                session.later.clear()

    def _frame(self, session: Session, frame: bytes) -> bool:
        try:
            if not session.greeted:
                self._greet(session, r.decode_hello(frame))
                return True
            call = r.decode_call(frame)
        except r.BadRequest as error:
            self.drop(session, str(error))
            return False
        if call.number in session.waiting:
            self.drop(session, f"call number {call.number} is that of a call that waits for its answer")
            return False
        try:
            handler = self._handlers.get(type(call.op))
            if handler is None:
                raise RequestError("request", f"{type(call.op).__name__}: this instance does not do that")
            value = handler(session, call.number, call.op)
            if value is not LATER:
                session.reply(call.number, value)
        except RequestError as error:
            session.error(call.number, error.kind, error.text)
        except Exception as error:
            self._failed(session, call, error)
        return True

    def _failed(self, session: Session, call: r.Call, error: Exception) -> None:
        """A request has met a mistake of ours: its client hears of it, the log too, and nobody else."""
        what = type(call.op).__name__
        self._trouble(f"request {what}", error)
        for waiting, number in ((session.waiting, call.number), (session.subs, getattr(call.op, "sub", 0))):
            forget = waiting.pop(number, None)
            if forget is not None:
                self._quietly(forget)
        session.error(call.number, "request", f"{what}: this request cannot be dealt with ({type(error).__name__}); "
                                              "the log of the run directory says more")

    def _quietly(self, forget: Callable[[], None]) -> None:
        try:
            forget()
        except Exception as error:
            self._trouble("the end of a request", error)

    def _trouble(self, what: str, error: Exception) -> None:
        """Write down a mistake of ours, once."""
        where = traceback.extract_tb(error.__traceback__)[-1]
        if (where.filename, where.lineno, type(error)) not in self._known:
            self._known.add((where.filename, where.lineno, type(error)))
            self._note(f"{what} failed, please report it:\n{''.join(traceback.format_exception(error))}")

    def _greet(self, session: Session, hello: r.Hello) -> None:
        session.greeted = True
        session.say(r.Welcome(r.VERSION, self.instance, self.run_dir, self._node_of(session.endpoint)))
        session.pid = hello.pid
        if hello.keep:
            session.keep = True
            self._hold(session, True)
            for lost in [one for one in self._lost if (one.endpoint, one.pid) == (session.endpoint, session.pid)]:
                self._let_go(lost)

    def lost(self, endpoint: int) -> None:
        """A door is no more, with all its clients."""
        for key in [key for key in self._sessions if key[0] == endpoint]:
            self._end(self._sessions.pop(key))

    def drop(self, session: Session, reason: str) -> None:
        """End a session, with a reason."""
        self._sessions.pop((session.endpoint, session.client), None)
        session.say(r.Goodbye(reason))
        self._last_words.append((session.endpoint, m.ClientReply((session.client,), tuple(session.frames), True)))
        session.frames.clear()
        session.leaves = True
        self._end(session)

    def _end(self, session: Session | None) -> None:
        """Nothing of it stays behind."""
        if session is None:
            return
        session.gone = True
        for forget in [*session.waiting.values(), *session.subs.values()]:
            self._quietly(forget)
        session.waiting.clear()
        session.subs.clear()
        if session.keep:
            self._lost[session] = 0.0
            if session.leaves:
                self._let_go(session)

    def _leave(self, session: Session, number: int, op: r.Leave) -> None:
        self._sessions.pop((session.endpoint, session.client), None)
        session.leaves = True
        session.later.clear()
        self._end(session)

    def _let_go(self, session: Session) -> None:
        del self._lost[session]
        self._hold(session, False)

    def turn(self, now: float) -> None:
        for session, until in list(self._lost.items()):
            if not until:
                self._lost[session] = now + KEPT
            elif now >= until:
                self._let_go(session)
        for part in self.parts:
            try:
                part.turn(now)
            except Exception as error:
                self._trouble(f"a turn of {type(part).__name__}", error)

    def farewell(self, reason: str) -> None:
        """The instance ends: tell everybody what is still to be told, and that."""
        self.turn(0.0)
        for session in self._sessions.values():
            for number in list(session.waiting):
                session.error(number, "ended", reason)
            session.say(r.Goodbye(reason, over=True))

    def collect(self) -> list[tuple[int, m.Message]]:
        """What doors are to write. Clients of one door who get the same frames share a message."""
        out, self._last_words = self._last_words, []
        by_frames: dict[tuple[int, bool, tuple[bytes, ...]], list[int]] = {}
        for session in self._sessions.values():
            if session.taken >= TAKEN:
                out.append((session.endpoint, m.ClientTaken(session.client, session.taken)))
                session.taken = 0
            if session.frames:
                key = (session.endpoint, bool(session.later), tuple(session.frames))
                by_frames.setdefault(key, []).append(session.client)
                session.frames, session.size = [], 0
        out += [(endpoint, m.ClientReply(tuple(clients), frames, tell=tell))
                for (endpoint, tell, frames), clients in by_frames.items()]
        return out


def _unsubscribe(session: Session, number: int, op: r.Unsubscribe) -> None:
    end = session.subs.pop(op.sub, None)
    if end is not None:
        end()


def _forget(session: Session, number: int, op: r.Forget) -> None:
    forget = session.waiting.pop(op.call, None)
    if forget is not None:
        forget()
        session.error(op.call, "request", "its client waits no longer")
