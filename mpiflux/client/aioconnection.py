"""A connection to a live instance in an event loop, and where coroutines wait."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from mpiflux.client.errors import ConnectionLost, FluxError, InstanceEnded, NotConnected
from mpiflux.client.forks import INHERITED, tell_of_forks
from mpiflux.client.session import Plan, Session, Stream
from mpiflux.model import requests as r

T = TypeVar("T")
RECONNECT = 10.0
"""Seconds for which a lost connection is tried again."""
_READ = 1 << 18


class Connection:
    """A socket in an event loop, and the session that its bytes belong to. Of one loop, whose thread alone uses it."""

    def __init__(self, path: str, *, keep: bool = False) -> None:
        self.path = path
        self.session = Session(r.Hello(r.VERSION, "", os.getpid(), keep))
        self._loop = asyncio.get_running_loop()
        self._out = bytearray()
        self._sock: socket.socket | None = None
        self._closed = ""
        """Why nothing can be asked any more."""
        self._again: asyncio.Task[None] | None = None
        self._welcome: asyncio.Future[None] = self._loop.create_future()
        self.session.on_welcome = self._greeted
        self.session.send = self._send
        tell_of_forks(self)

    def _greeted(self) -> None:
        if not self._welcome.done():
            self._welcome.set_result(None)

    async def open(self, timeout: float = 30.0) -> None:
        """Raises NotConnected."""
        await self._connect()
        try:
            await asyncio.wait_for(asyncio.shield(self._welcome), timeout)
        except asyncio.TimeoutError:
            await self.close()
            raise NotConnected(f"{self.path}: the instance does not answer; is it stopped, or very busy?") from None
        if self.session.goodbye is not None:
            raise self.session.goodbye

    async def _connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            await self._loop.sock_connect(sock, self.path)
        except OSError as error:
            sock.close()
            raise NotConnected(f"{self.path}: no instance answers there ({error.strerror}): it has ended, or runs on "
                               "another node") from None
        if self._closed:
            sock.close()
            return
        self._sock, self._out = sock, bytearray()
        self._loop.add_reader(sock, self._readable)
        self._send(self.session.open())

    def _send(self, data: bytes) -> None:
        if self._sock is None:
            return
        if not self._out:
            try:
                data = data[self._sock.send(data):]
            except BlockingIOError:
                pass
            except OSError:
                return  # reading finds out, and says so
            if data:
                self._loop.add_writer(self._sock, self._writable)
        self._out += data

    def _writable(self) -> None:
        assert self._sock is not None
        try:
            del self._out[:self._sock.send(self._out)]
        except BlockingIOError:
            return
        except OSError:
            self._out.clear()
        if not self._out:
            self._loop.remove_writer(self._sock)

    def _readable(self) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.session.receive(data)
        if self.session.goodbye is not None:
            self._hang_up()
        elif not data:
            self._hang_up()
            self.session.lost()
            self._again = self._loop.create_task(self._reconnect())

    def _hang_up(self) -> None:
        if self._sock is not None:
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()
            self._sock = None

    async def _reconnect(self) -> None:
        deadline, pause = self._loop.time() + RECONNECT, 0.05
        while not self._closed:
            try:
                await self._connect()
                return
            except NotConnected as error:
                if not os.path.exists(self.path) or self._loop.time() > deadline:
                    self.session.end(InstanceEnded(str(error)))
                    return
            await asyncio.sleep(pause)
            pause = min(2 * pause, 1.0)

    async def do(self, plan: Plan[T]) -> T:
        """Carry out a plan. Raises FluxError."""
        if self._closed:
            raise NotConnected(self._closed)
        answer: asyncio.Future[Any] = self._loop.create_future()

        def done(value: Any, error: FluxError | None) -> None:
            if not answer.done():
                if error is None:
                    answer.set_result(value)
                else:
                    answer.set_exception(error)
            elif error is None and plan.back is not None:
                self.session.tell(plan.back(value))

        number = self.session.call(plan.op, done)
        try:
            value = await answer
        except asyncio.CancelledError:
            if plan.back is None:
                self.session.forget(number)
            elif answer.cancelled():
                self.session.give_up(number)
            elif answer.exception() is None:
                # it had come, and nobody sees it
                self.session.tell(plan.back(answer.result()))
            raise
        if plan.taken is not None:
            self.session.tell(plan.taken(value))
        return plan.convert(value)

    async def subscribe(self, make: Callable[[int, int], r.Op], since: int = 0, *, convert: Callable[[Any], Any],
                        resumes: bool = False, acknowledge: bool = False) -> Subscription:
        if self._closed:
            raise NotConnected(self._closed)
        answer: asyncio.Future[Any] = self._loop.create_future()

        def done(value: Any, error: FluxError | None) -> None:
            if not answer.done():
                answer.set_result(None) if error is None else answer.set_exception(error)

        subscription = Subscription(self, self.session.subscribe(
            make, since, done, convert=convert, resumes=resumes, acknowledge=acknowledge))
        await answer
        return subscription

    def forked(self) -> None:
        self._closed = INHERITED
        # the event loop is the parent's too: it is told nothing
        self.session.send = lambda data: None
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = "this connection was closed; connect again"
        self.session.tell(r.Leave())
        self.session.end(ConnectionLost("this connection was closed"), quietly=True)
        self._hang_up()
        if self._again is not None:
            await self._again


class Subscription:
    """An asynchronous iterator over what comes; it ends when the instance does, or by :meth:`close`."""

    def __init__(self, connection: Connection, stream: Stream) -> None:
        self._connection, self._stream = connection, stream
        self._more = asyncio.Event()
        stream.wake = self._more.set

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Any:
        found = await self.get()
        if found is None:
            raise StopAsyncIteration
        return found

    async def all(self) -> AsyncIterator[Any]:
        """The same, where items may be None."""
        stream = self._stream
        while True:
            while not stream.has_items and not stream.ended:
                self._more.clear()
                await self._more.wait()
            if not stream.has_items:
                break
            yield stream.take()
        if stream.error is not None:
            raise stream.error

    async def get(self) -> Any:
        """The next item; None when none will come any more."""
        stream = self._stream
        while not stream.has_items and not stream.ended:
            self._more.clear()
            await self._more.wait()
        if stream.has_items:
            return stream.take()
        if stream.error is not None:
            raise stream.error
        return None

    def close(self) -> None:
        """No more of it, please. What has come already can still be taken."""
        self._connection.session.close_stream(self._stream)

    async def __aenter__(self) -> Subscription:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
