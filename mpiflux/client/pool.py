"""Worker processes that call Python functions: jobs of the instance, kept warm, that pull calls from a queue.

What is called and what comes of it is pickled by the user's own program and unpickled by the user's own worker; the
instance carries bytes. A call that takes its worker down is not made again: the next worker sees that it was lost
once, and says so.
"""

from __future__ import annotations

import itertools
import os
import pickle
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any

from mpiflux.client import calls, plans
from mpiflux.client.errors import ConnectionLost, FluxError, NotConnected
from mpiflux.client.records import Message
from mpiflux.client.session import Stream
from mpiflux.client.submission import JobOptions
from mpiflux.model import requests as r

if TYPE_CHECKING:
    from mpiflux.client.executor import Executor, FluxFuture

AHEAD = 2
"""Calls under way for each worker: the one that it makes, and those that wait for it. They cannot be cancelled."""
_TOGETHER = 1 << 16
"""Bytes of a call from which on it travels alone."""
RESTARTS = 1000
"""How often a worker that a function took down is started again."""


class Pool:
    """The workers of one executor."""

    def __init__(self, executor: Executor, workers: int | None) -> None:
        self._executor, self._connection = executor, executor._connection
        self._lock = threading.Lock()
        self._waiting: deque[tuple[int, FluxFuture, bytes]] = deque()
        self._calls: dict[int, FluxFuture] = {}
        self._numbers = itertools.count(1)
        self._broken: BaseException | None = None
        self._closed = False
        self._options = options = JobOptions(**{"name": "worker", "retries": RESTARTS, **executor.options})
        options["env"] = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
                          calls.MAIN: _main_program(), **options.get("env", {})}
        self._size = workers or self._fit(options)
        self._begun = 0
        self._name = ""
        self._start(FluxError("not begun"))

    def _start(self, lost: FluxError) -> None:
        """Begin with new workers, on this connection; calls that others had fail with ``lost``. Raises FluxError."""
        with self._lock:
            self._begun += 1
            self._name = name = f"executor.{os.getpid()}-{id(self):x}-{self._begun}"
            under_way = list(self._calls)
        for number in under_way:
            self._settle(number, None, lost)
        with self._connection.lock:
            self._results = results = self._connection.open_stream(
                lambda sub, _: r.Subscribe(sub, f"{name}.done"), 0, lambda value, error: None,
                convert=plans.message, resumes=False, acknowledge=False)
            results.wake = lambda: self._executor.later(lambda: self._hear(results))
        # what is in the queue goes with this program, however that ends
        self._connection.open_stream(lambda sub, _: r.Own(sub, name), 0, lambda value, error: None,
                                     convert=lambda item: item, resumes=False, acknowledge=False)
        # a call that is never answered: a worker hears by it that its executor, or the connection, is gone
        self._connection.open_stream(lambda sub, _: r.Serve(sub, f"{name}.alive"), 0, lambda value, error: None,
                                     convert=lambda item: item, resumes=False, acknowledge=False)
        self._jobs = self._executor.flux.submit_many(
            [[sys.executable, "-m", "mpiflux.client.worker", name]] * self._size, **self._options)
        self._connection.ask(r.Drain(plans.select(self._jobs)), self._no_workers(self._begun))

    def _fit(self, options: JobOptions) -> int:
        status = self._connection.do(plans.status())
        tasks = max(options.get("tasks", 1), 1)
        fit = status["cores"] // max(options.get("cores", 1) * tasks, 1)
        gpus = options.get("gpus", 0) * tasks
        return max(int(min(fit, status["gpus"] // gpus) if gpus else fit), 1)

    def submit(self, future: FluxFuture, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Call ``fn`` some time."""
        try:
            data = pickle.dumps((fn, args, kwargs))
        except BaseException as error:
            self._executor.settle(future, error=error)
            if not isinstance(error, Exception):
                raise  # Ctrl-C is its program's
            return
        with self._lock:
            self._waiting.append((next(self._numbers), future, data))
        self._feed()

    def _feed(self) -> None:
        """Hand out calls while there are too few under way."""
        payloads: list[bytes] = []
        numbers: list[int] = []
        while True:
            with self._lock:
                name = self._name
                if not self._waiting or (len(self._calls) >= AHEAD * self._size and not self._broken):
                    break
                number, future, data = self._waiting.popleft()
                if not self._executor.begin(future):
                    continue
                if not self._broken:
                    self._calls[number] = future
            if self._broken:
                self._executor.settle(future, error=self._broken)
                continue
            try:
                payload = plans.pack_value(calls.numbered(number, b"", data))
            except ValueError as error:
                self._settle(number, None, error)
                continue
            if len(payload) > _TOGETHER:
                self._push(name, [number], [payload])
            else:
                numbers.append(number)
                payloads.append(payload)
        if numbers:
            self._push(name, numbers, payloads)

    def _push(self, name: str, numbers: list[int], payloads: list[bytes]) -> None:
        def pushed(value: Any, error: FluxError | None) -> None:
            if error is not None:
                self._executor.later(lambda: fail(error))

        def fail(error: BaseException) -> None:
            for number in numbers:
                self._settle(number, None, error)

        try:
            self._connection.ask(r.Push(name, tuple(payloads)), pushed)
        except (FluxError, TypeError, ValueError) as error:
            fail(error)

    def _settle(self, number: int, value: Any, error: BaseException | None) -> None:
        with self._lock:
            future = self._calls.pop(number, None)
        if future is not None:
            self._executor.settle(future, value, error)

    def _hear(self, results: Stream) -> None:
        """Results that have come."""
        while results.has_items:
            with self._connection.lock:
                message: Message = results.take()
            number, rest = calls.unnumbered(message.payload)
            kind, data = rest[:1], rest[1:]
            try:
                if kind == calls.VALUE:
                    self._settle(number, pickle.loads(data), None)
                elif kind == calls.ERROR:
                    self._settle(number, None, pickle.loads(data))
                else:
                    self._settle(number, None, BrokenProcessPool(data.decode()))
            except BaseException as error:
                self._settle(number, None, error)  # the result cannot be unpickled here
        if results.ended and results is self._results:
            self._lost(results.error or NotConnected("the instance has ended"))
        self._feed()

    def _no_workers(self, begun: int) -> Callable[[Any, FluxError | None], None]:
        def ended(value: Any, error: FluxError | None) -> None:
            why = error or BrokenProcessPool("all workers have ended; the jobs called 'worker' say why")
            if begun == self._begun:
                self._executor.later(lambda: self._fail(why) if begun == self._begun else None)

        return ended

    def _lost(self, error: FluxError) -> None:
        """The workers have gone with the connection; on the next one there are others for the calls that wait."""
        while isinstance(error, ConnectionLost) and not self._closed:
            try:
                self._start(error)
                return
            except FluxError as again:
                error = again
        self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._broken = self._broken or error
            under_way = list(self._calls)
        for number in under_way:
            self._settle(number, None, error)
        self._feed()

    def close(self) -> None:
        """Send the workers home."""
        self._closed = True
        try:
            self._jobs.cancel("the executor was shut down")
        except FluxError:
            return


def _main_program() -> str:
    """How a worker finds the functions of this very program; empty where it has no file."""
    main = sys.modules["__main__"]
    if main.__spec__ is not None and main.__spec__.name:
        return f"name:{main.__spec__.name}"
    path = getattr(main, "__file__", None)
    return f"path:{os.path.abspath(path)}" if path else ""

