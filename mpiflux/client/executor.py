"""A :class:`concurrent.futures.Executor` whose work is jobs: commands, and Python functions in warm workers."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor as BaseExecutor
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Any, cast

from mpiflux.client import calls, plans
from mpiflux.client.connection import Connection
from mpiflux.client.errors import FluxError, NotConnected
from mpiflux.client.live import Flux
from mpiflux.client.plans import Command, JobOptions
from mpiflux.client.records import JobEvent
from mpiflux.client.session import Stream
from mpiflux.client.where import locate
from mpiflux.model import requests as r

if TYPE_CHECKING:
    from mpiflux.client.pool import Pool

BATCH = 5000
"""Submissions that travel together at most."""
EVENTS = ("submit", "depend", "alloc", "start", "output", "finish", "release", "retry", "exception", "clean")


class FluxFuture(Future[Any]):
    """The future of a job, or of a function in a worker; with what Flux's futures have besides."""

    def __init__(self, executor: Executor) -> None:
        super().__init__()
        self._executor = executor
        self._job = 0
        self._on_job: list[Callable[[FluxFuture], object]] = []
        self._on_event: list[tuple[str, Callable[[FluxFuture, JobEvent], object]]] = []
        self._told: list[JobEvent] = []
        self._stream: Stream | None = None

    def jobid(self, timeout: float | None = None) -> int:
        """The id of the job, once it has one. Raises TimeoutError, CancelledError, or why there is none."""
        ready = threading.Event()
        self.add_jobid_callback(lambda _: ready.set())
        self.add_done_callback(lambda _: ready.set())
        if not ready.wait(timeout):
            raise TimeoutError("the job has no id yet")
        if not self._job:
            self.result(0)
            raise InvalidStateError("a function has no job of its own")
        return self._job

    def add_jobid_callback(self, callback: Callable[[FluxFuture], object]) -> None:
        """Call ``callback(future)`` once the job has an id; at once if it has."""
        with self._condition:
            if not self._job:
                self._on_job.append(callback)
                return
        callback(self)

    def add_event_callback(self, event: str, callback: Callable[[FluxFuture, JobEvent], object]) -> None:
        """Call ``callback(future, event)`` for each such event of the job, those that have happened too.

        Raises ValueError for an unknown event.
        """
        if event not in EVENTS:
            raise ValueError(f"no event is called {event!r}; there are: {', '.join(EVENTS)}")
        with self._condition:
            self._on_event.append((event, callback))
            past = [one for one in self._told if one.name == event]
        for one in past:
            callback(self, one)
        self.add_jobid_callback(self._executor._follow)

    def cancel(self) -> bool:
        """Cancel it, also a job that runs. False for a function that runs, and for what is done."""
        return self._executor._cancel(self)

    def _has_id(self, job: int) -> None:
        with self._condition:
            self._job = job
            callbacks, self._on_job = self._on_job, []
        for callback in callbacks:
            callback(self)

    def _hear(self) -> None:
        """Tell the events that have come."""
        stream = self._stream
        while stream is not None and stream.has_items:
            with self._executor._connection.lock:
                event = stream.take()
            with self._condition:
                self._told.append(event)
                callbacks = [callback for name, callback in self._on_event if name == event.name]
            for callback in callbacks:
                callback(self, event)


class Executor(BaseExecutor):
    """Runs commands as jobs, and functions in worker processes, of a live instance.

    ``submit(["./sim", "7"])`` gives the future of a :class:`Result`, whatever the job's returncode;
    ``submit(function, *args)`` that of what the function returns. Options of the constructor are those of
    :meth:`Flux.submit`, for every job and worker. ``workers``: processes that functions run in; they start with the
    first function, and unless said otherwise there are as many as fit. The instance stays open while the executor
    does. ``target`` is as for :func:`mpiflux.connect`.
    """

    def __init__(self, target: str | os.PathLike[str] | None = None, *, workers: int | None = None,
                 **options: Any) -> None:
        calls.check_not_loading()
        self.options: JobOptions = cast(JobOptions, options)
        plans.new_group(["true"], self.options)  # a wrong option is said here
        found = locate(target)
        if not found.socket:
            raise NotConnected(f"{found.run_dir}: {found.why or 'there is no live instance'}")
        self._connection = Connection(found.socket, keep=True)
        self.flux = Flux(self._connection)
        self._workers = workers
        self._pool: Pool | None = None
        self._lock = threading.Condition()
        self._begins = threading.Lock()
        """Held where a future begins, and where it is cancelled before it does."""
        self._new: deque[tuple[FluxFuture, Command, JobOptions]] = deque()
        self._open: set[FluxFuture] = set()
        self._shut = False
        self._finished = False
        self._to_do: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        """What is to be done for futures, away from the thread that reads: it may call anything."""
        self._threads = [threading.Thread(target=target_, name="executor", daemon=True)
                         for target_ in (self._send, self._work)]
        for thread in self._threads:
            thread.start()

    # -- concurrent.futures ----------------------------------------------------------------------------------------

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> FluxFuture:
        """A command (a list of arguments; keywords are options of this job alone), or a function to call."""
        future = FluxFuture(self)
        if callable(fn):
            with self._lock:
                self._check()
                if self._pool is None:
                    from mpiflux.client.pool import Pool

                    self._pool = Pool(self, self._workers)
                self._open.add(future)
            self._pool.submit(future, fn, args, kwargs)
            return future
        if args:
            raise TypeError(f"a command is one list of arguments, as in {[fn, *args]!r}")
        options = cast(JobOptions, {**self.options, **kwargs})
        plans.new_group(fn, options)
        with self._lock:
            self._check()
            self._open.add(future)
            self._new.append((future, fn, options))
            self._lock.notify_all()
        return future

    def _check(self) -> None:
        if self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more. ``wait`` until all is done; ``cancel_futures``: cancel what has not begun."""
        with self._lock:
            self._shut = True
            left = list(self._open)
            self._lock.notify_all()
        if cancel_futures:
            for future in left:
                if not future.running():
                    future.cancel()
        if wait:
            self._finish()
        else:
            threading.Thread(target=self._finish, name="executor", daemon=True).start()

    def _finish(self) -> None:
        with self._lock:
            self._lock.wait_for(lambda: not self._open)
            if self._finished:
                return
            self._finished = True
        if self._pool is not None:
            self._pool.close()
        self._to_do.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        self._connection.close()

    # -- jobs ------------------------------------------------------------------------------------------------------

    def _send(self) -> None:
        """Submit what was asked for, in as few requests as come of it."""
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._new or self._shut)
                if not self._new:
                    return
                batch = [self._new.popleft() for _ in range(min(len(self._new), BATCH))]
            batch = [one for one in batch if not one[0].cancelled()]
            if batch and not self._submit(batch):
                # one of them is at fault: the others go on
                for one in batch:
                    self._submit([one])

    def _submit(self, batch: list[tuple[FluxFuture, Command, JobOptions]]) -> bool:
        try:
            groups = tuple(plans.new_group(command, options) for _, command, options in batch)
            ranges = self._connection.do(plans.submit(groups))
        except FluxError as error:
            if len(batch) == 1:
                self.settle(batch[0][0], error=error)
            return len(batch) == 1
        for (future, _, _), (job, _) in zip(batch, ranges, strict=True):
            self._submitted(future, job)
        return True

    def _submitted(self, future: FluxFuture, job: int) -> None:
        def ended(value: Any, error: FluxError | None) -> None:
            self.later(lambda: self.settle(future, None if error else plans.to_result(value), error))

        with future._condition:
            future._job = job
        self.later(lambda: future._has_id(job))
        try:
            self._connection.ask(r.Info(job, output=True, ended=True), ended)
            if future.cancelled():
                self._connection.tell(r.Cancel(plans.select(job), "its future was cancelled"))
        except FluxError as error:
            self.settle(future, error=error)

    def _follow(self, future: FluxFuture) -> None:
        """Let a future hear of its job's events."""
        with self._connection.lock:
            if future._stream is None:
                try:
                    future._stream = stream = self._connection.open_stream(
                        plans.following(future._job, (), True), 0, lambda value, error: None,
                        convert=plans.job_event, resumes=True, acknowledge=True)
                except FluxError:
                    return
                stream.wake = lambda: self.later(future._hear)

    def _cancel(self, future: FluxFuture) -> bool:
        with self._begins:
            already = future.cancelled()
            if not Future.cancel(future):
                return False
            if not already:
                # nobody else will tell those who wait for it
                future.set_running_or_notify_cancel()
        with future._condition:
            job = future._job
        if job:
            try:
                self._connection.tell(r.Cancel(plans.select(job), "its future was cancelled"))
            except FluxError:
                pass
        self._closed(future)
        return True

    def begin(self, future: FluxFuture) -> bool:
        """It runs now and cannot be cancelled any more; False when it was."""
        with self._begins:
            return not future.cancelled() and (future.running() or future.set_running_or_notify_cancel())

    # -- futures ---------------------------------------------------------------------------------------------------

    def later(self, what: Callable[[], object]) -> None:
        """Do something that may call the user's functions."""
        self._to_do.put(what)

    def _work(self) -> None:
        while (what := self._to_do.get()) is not None:
            what()

    def settle(self, future: FluxFuture, value: Any = None, error: BaseException | None = None) -> None:
        """A future has its result, unless it was cancelled."""
        if not future.done() and self.begin(future):
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(value)
        self._closed(future)

    def _closed(self, future: FluxFuture) -> None:
        with self._lock:
            self._open.discard(future)
            self._lock.notify_all()


__all__ = ["EVENTS", "Executor", "FluxFuture"]
