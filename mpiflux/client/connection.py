"""A blocking connection to a live instance: a socket, the thread that reads it, and where other threads wait."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from mpiflux.client.errors import ConnectionLost, FluxError, InstanceEnded, NotConnected
from mpiflux.client.forks import INHERITED, tell_of_forks
from mpiflux.client.session import Plan, Session, Stream
from mpiflux.model import requests as r

T = TypeVar("T")
RECONNECT = 10.0
"""Seconds for which a lost connection is tried again."""


class _Slot:
    """Where a thread waits for an answer."""

    __slots__ = ("error", "left", "ready", "value")

    def __init__(self) -> None:
        self.ready = threading.Event()
        self.left: Callable[[Any], object] | None = None
        """Gets the answer where the thread has left."""
        self.value: Any = None
        self.error: FluxError | None = None

    def done(self, value: Any, error: FluxError | None) -> None:
        self.value, self.error = value, error
        self.ready.set()
        if self.left is not None and error is None:
            self.left(value)


class Connection:
    """A socket, the thread that reads it, and the session that both talk to."""

    def __init__(self, path: str, *, keep: bool = False, program: str = "", timeout: float = 30.0) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._closed = False
        self._inherited = False
        """This process was forked from the one that connected."""
        self.session = Session(r.Hello(r.VERSION, program, os.getpid(), keep))
        self._greeted = threading.Event()
        self.session.on_welcome = self._greeted.set
        self.session.send = self._send
        self._lost_at = time.monotonic()
        self._sock = self._connect()
        tell_of_forks(self)
        self._send(self.session.open())
        self._thread = threading.Thread(target=self._work, name="mpiflux", daemon=True)
        self._thread.start()
        if not self._greeted.wait(timeout):
            self.close()
            raise NotConnected(f"{path}: the instance does not answer; is it stopped, or very busy?")
        if self.session.goodbye is not None:
            self.close()
            raise self.session.goodbye

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(self.path)
        except OSError as error:
            sock.close()
            raise NotConnected(f"{self.path}: no instance answers there ({error.strerror}): it has ended, or runs on "
                               "another node") from None
        return sock

    def _send(self, data: bytes) -> None:
        try:
            self._sock.sendall(data)
        except OSError:
            pass  # the thread that reads finds out, and says so

    def _send_at_once(self, data: bytes) -> None:
        """Or not at all: an instance that does not read keeps nobody from leaving."""
        try:
            self._sock.send(data, socket.MSG_DONTWAIT)
        except OSError:
            pass

    def _work(self) -> None:
        while True:
            try:
                data = self._sock.recv(1 << 18)
            except OSError:
                data = b""
            with self._lock:
                if data:
                    self.session.receive(data)
                if self.session.goodbye is not None or self._closed:
                    return
                if data:
                    continue
                self._sock.close()
                if self.session.welcome is not None:
                    self._lost_at = time.monotonic()
                self.session.lost()
            if not self._again():
                return

    def _again(self) -> bool:
        """Connect again; False when there is nobody any more."""
        # who accepts and hangs up without a word is not asked without a pause
        pause = 0.0 if self.session.welcome is not None else 0.05
        while not self._closed:
            time.sleep(pause)
            try:
                sock = self._connect()
            except NotConnected as error:
                if not os.path.exists(self.path) or time.monotonic() > self._lost_at + RECONNECT:
                    with self._lock:
                        self.session.end(InstanceEnded(str(error)))
                    return False
                pause = min(max(0.05, 2 * pause), 1.0)
                continue
            with self._lock:
                # at once, so that no call of another thread goes to the connection that was lost
                self._sock = sock
                self._send(self.session.open())
                if self._closed:
                    sock.close()
            return True
        return False

    def do(self, plan: Plan[T], timeout: float | None = None, *, after: Sequence[r.Op] = ()) -> T:
        """Carry out a plan; tell ``after``, in the same breath, before it. Raises FluxError, and TimeoutError after
        ``timeout`` seconds."""
        slot = _Slot()
        with self._lock:
            self._check()
            if after:
                number = self._together(after, plan.op, slot)
            else:
                number = self.session.call(plan.op, slot.done)
        try:
            if not slot.ready.wait(timeout) and self._leave(plan, number, slot):
                raise TimeoutError(f"no answer within {timeout:g} s")
        except KeyboardInterrupt:
            if not self._leave(plan, number, slot) and plan.back is not None and slot.error is None:
                self.tell(plan.back(slot.value))
            raise
        if slot.error is not None:
            raise slot.error
        if plan.taken is not None:
            self.tell(plan.taken(slot.value))
        return plan.convert(slot.value)

    def _together(self, ops: Sequence[r.Op], op: r.Op, slot: _Slot) -> int:
        """Tell some things and ask another with one write: who hears them wakes up once."""
        session, frames = self.session, list[bytes]()
        send, session.send = session.send, frames.append
        try:
            for one in ops:
                session.tell(one)
            number = session.call(op, slot.done)
        finally:
            session.send = send
            if frames:
                send(b"".join(frames))
        return number

    def _leave(self, plan: Plan[T], number: int, slot: _Slot) -> bool:
        """Wait no more; False when the answer has just come."""
        back = plan.back
        with self._lock:
            if slot.ready.is_set():
                return False
            if back is None:
                self.session.forget(number)
            else:
                slot.left = lambda value: self.session.tell(back(value))
                self.session.give_up(number)
            return True

    def ask(self, op: r.Op, done: Callable[[Any, FluxError | None], None]) -> None:
        """Ask without waiting; ``done`` is called by the thread that reads."""
        with self._lock:
            self._check()
            self.session.call(op, done)

    def tell(self, op: r.Op) -> None:
        with self._lock:
            self.session.tell(op)

    def subscribe(self, make: Callable[[int, int], r.Op], since: int = 0, *, convert: Callable[[Any], Any],
                  resumes: bool = False, acknowledge: bool = False) -> Subscription:
        """A stream of items. Raises FluxError when the instance does not take it."""
        slot = _Slot()
        with self._lock:
            self._check()
            stream = self.session.subscribe(make, since, slot.done, convert=convert, resumes=resumes,
                                            acknowledge=acknowledge)
            subscription = Subscription(self, stream)
        slot.ready.wait()
        if slot.error is not None:
            raise slot.error
        return subscription

    def open_stream(self, make: Callable[[int, int], r.Op], since: int, done: Callable[[Any, FluxError | None], None],
                    *, convert: Callable[[Any], Any], resumes: bool, acknowledge: bool) -> Stream:
        """The same without waiting: ``done`` hears whether it was taken."""
        with self._lock:
            self._check()
            return self.session.subscribe(make, since, done, convert=convert, resumes=resumes, acknowledge=acknowledge)

    def forked(self) -> None:
        self._inherited = self._closed = True
        # another thread, which is not here, may have held it
        self._lock = threading.RLock()
        self.session.send = lambda data: None
        self._sock.close()

    def check_inherited(self) -> None:
        """Raises NotConnected in a process that was forked from the one that connected."""
        if self._inherited:
            raise NotConnected(INHERITED)

    def _check(self) -> None:
        self.check_inherited()
        if self._closed:
            raise NotConnected("this connection was closed; connect again")

    @property
    def lock(self) -> threading.RLock:
        return self._lock

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self.session.send = self._send_at_once
            self.session.tell(r.Leave())
            self.session.end(ConnectionLost("this connection was closed"), quietly=True)
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._sock.close()


class Subscription:
    """An iterator over what comes; it ends when the instance does, or by :meth:`close`. May be used by one thread."""

    def __init__(self, connection: Connection, stream: Stream) -> None:
        self._connection, self._stream = connection, stream
        self._more = threading.Condition(connection.lock)
        stream.wake = self._more.notify_all

    def __iter__(self) -> Subscription:
        return self

    def __next__(self) -> Any:
        found = self.get()
        if found is None:
            raise StopIteration
        return found

    def all(self) -> Iterator[Any]:
        """The same, where items may be None."""
        stream = self._stream
        while True:
            self._connection.check_inherited()
            with self._more:
                self._more.wait_for(lambda: stream.has_items or stream.ended)
                if not stream.has_items:
                    break
                item = stream.take()
            yield item
        if stream.error is not None:
            raise stream.error

    def get(self, timeout: float | None = None) -> Any:
        """The next item; None when none will come any more. Raises TimeoutError after ``timeout`` seconds."""
        stream = self._stream
        self._connection.check_inherited()
        with self._more:
            if not self._more.wait_for(lambda: stream.has_items or stream.ended, timeout):
                raise TimeoutError(f"nothing came within {timeout:g} s")
            if stream.has_items:
                return stream.take()
            if stream.error is not None:
                raise stream.error
            return None

    def close(self) -> None:
        """No more of it, please. What has come already can still be taken."""
        if self._connection._inherited:
            return
        with self._more:
            self._connection.session.close_stream(self._stream)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
