"""A :class:`concurrent.futures.Executor` whose work is jobs: commands, and Python functions in warm workers."""

from __future__ import annotations

import atexit
import logging
import os
import queue
import threading
import uuid
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor as BaseExecutor
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Any, cast

from mpiflux.client import calls, jobids, plans, submission
from mpiflux.client.connection import Connection
from mpiflux.client.errors import FluxError, NotConnected
from mpiflux.client.live import Flux
from mpiflux.client.records import JobEvent, Result
from mpiflux.client.session import Plan, Stream
from mpiflux.client.submission import Command, JobOptions
from mpiflux.client.where import locate
from mpiflux.model import requests as r

if TYPE_CHECKING:
    from mpiflux.client.pool import Pool

BATCH = 5000
"""Submissions that travel together at most."""
NOT_BEGUN = ("DEPEND", "SCHED")
"""States of jobs that are cancelled without ending what runs."""
_LOG = logging.getLogger("concurrent.futures")
EVENTS = ("submit", "depend", "alloc", "start", "output", "finish", "release", "retry", "exception", "clean")


class FluxFuture(Future[Any]):
    """The future of a job, or of a function in a worker; with what Flux's futures have besides."""

    def __init__(self, executor: Executor) -> None:
        super().__init__()
        self._executor = executor
        self._job = 0
        self._is_call = False
        """Of a function, not of a job."""
        self._on_job: list[Callable[[FluxFuture], object]] = []
        self._on_event: list[tuple[str, Callable[[FluxFuture, JobEvent], object]]] = []
        self._told: list[JobEvent] = []
        self._stream: Stream | None = None
        self._unwanted = False
        """Its job was cancelled if it had not begun."""

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

    @property
    def jobid_future(self) -> Future[int]:
        """A future of what :meth:`jobid` returns or raises, for ``concurrent.futures.wait`` and its like."""
        found: Future[int] = Future()
        found.set_running_or_notify_cancel()
        told = threading.Lock()

        def known(_: object) -> None:
            if told.acquire(blocking=False):
                try:
                    found.set_result(self.jobid(0))
                except BaseException as error:
                    found.set_exception(error)

        self.add_jobid_callback(known)
        self.add_done_callback(known)
        return found

    def add_jobid_callback(self, callback: Callable[[FluxFuture], object]) -> None:
        """Call ``callback(future)`` once the job has an id; at once if it has."""
        with self._condition:
            if not self._job:
                self._on_job.append(callback)
                return
        guarded(callback, self)

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
            guarded(callback, self, one)
        self.add_jobid_callback(self._executor._follow)

    def cancel(self) -> bool:
        """Cancel it, also a job that runs. False for a function that runs, and for what is done."""
        return self._executor._cancel(self)

    def running(self) -> bool:
        """Whether the function is called now, or the job's command runs; for a job the instance is asked."""
        if not self._job or self.done():
            return super().running()
        return self._executor._runs(self._job)

    def _has_id(self, job: int) -> None:
        with self._condition:
            self._job = job
            callbacks, self._on_job = self._on_job, []
        for callback in callbacks:
            guarded(callback, self)

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
                guarded(callback, self, event)


def guarded(callback: Callable[..., object], *args: object) -> None:
    """Call what the user gave; what it raises is logged where concurrent.futures logs such, and ends nothing here."""
    try:
        callback(*args)
    except BaseException:
        _LOG.exception("exception calling callback for %r", args[0] if args else callback)


_living: weakref.WeakSet[Executor] = weakref.WeakSet()


def _at_exit() -> None:
    """The interpreter ends once all that was submitted is done, as with the executors of concurrent.futures."""
    for executor in list(_living):
        executor._exit()


# as concurrent.futures.thread does it: before the interpreter waits for threads
getattr(threading, "_register_atexit", atexit.register)(_at_exit)


class Executor(BaseExecutor):
    """Runs commands as jobs, and functions in worker processes, of a live instance.

    ``submit(["./sim", "7"])`` gives the future of a :class:`Result`, whatever the job's returncode;
    ``submit(function, *args)`` that of what the function returns. Options of the constructor are those of
    :meth:`Flux.submit`, for every job and worker. ``workers``: processes that functions run in; they start with the
    first function, and unless said otherwise there are as many as fit. The instance stays open while the executor
    does. ``target`` is as for :func:`mpiflux.connect`.

    A program that ends without :meth:`shutdown` waits for what it has submitted. Where it is killed its functions end
    with it, and its commands are cancelled some seconds later, unless ``keep_jobs`` asks that they run on, as jobs that
    nobody has. Across a lost connection commands go on; functions that were under way fail with ConnectionLost, those
    that waited are called.
    """

    def __init__(self, target: str | os.PathLike[str] | None = None, *, workers: int | None = None,
                 keep_jobs: bool = False, **options: Any) -> None:
        calls.check_not_loading()
        if workers is not None and workers < 1:
            raise ValueError(f"workers: {workers}; at least one process is needed to call functions")
        self.options: JobOptions = cast(JobOptions, options)
        submission.new_group(["true"], self.options)  # a wrong option is said here
        found = locate(target)
        if not found.socket:
            raise NotConnected(f"{found.run_dir}: {found.why or 'there is no live instance'}")
        self._connection = Connection(found.socket, keep=True)
        self.flux = Flux(self._connection)
        self._tie = ""
        if not keep_jobs:
            self._tie = tie = f"executor.{uuid.uuid4().hex}"
            self._connection.open_stream(lambda sub, _: r.Tie(sub, tie), 0, lambda value, error: None,
                                         convert=lambda item: item, resumes=True, acknowledge=False)
        self._workers = workers
        self._pool: Pool | None = None
        self._lock = threading.Condition()
        self._begins = threading.Lock()
        """Held where a future begins, and where it is cancelled before it does."""
        self._new: deque[tuple[FluxFuture, Command, JobOptions]] = deque()
        self._open: set[FluxFuture] = set()
        self._open_calls = 0
        """Of these, how many are of functions."""
        self._shut = False
        self._finished = False
        self._over = threading.Event()
        self._pid = os.getpid()
        self._to_do: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        """What is to be done for futures, away from the thread that reads: it may call anything."""
        self._threads = [threading.Thread(target=target_, name="executor", daemon=True)
                         for target_ in (self._send, self._work)]
        _living.add(self)
        for thread in self._threads:
            thread.start()

    # -- concurrent.futures ----------------------------------------------------------------------------------------

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> FluxFuture:
        """A command (a list of arguments; keywords are options of this job alone), or a function to call."""
        if self._pid != os.getpid():
            raise RuntimeError("this executor is that of the process that this one was forked from: make one here")
        future = FluxFuture(self)
        if callable(fn):
            with self._lock:
                self._check()
                if self._pool is None:
                    from mpiflux.client.pool import Pool

                    self._pool = Pool(self, self._workers)
                future._is_call = True
                self._open_calls += 1
                self._open.add(future)
            self._pool.submit(future, fn, args, kwargs)
            return future
        if args:
            raise TypeError(f"a command is one list of arguments, as in {[fn, *args]!r}")
        options = cast(JobOptions, {**self.options, **kwargs})
        submission.new_group(fn, options)
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
        if self._pid != os.getpid():
            return  # of a forked process: what there is to do is its parent's
        with self._lock:
            self._shut = True
            left = list(self._open)
            self._lock.notify_all()
        if cancel_futures:
            self._cancel_waiting(left)
        if wait:
            self._finish()
        else:
            threading.Thread(target=self._finish, name="executor", daemon=True).start()

    def _cancel_waiting(self, futures: list[FluxFuture]) -> None:
        """Cancel what has not begun. Which jobs have, the instance knows best: their futures hear of it."""
        submitted = []
        for future in futures:
            with future._condition:
                future._unwanted = future._job > 0
            if future._unwanted:
                submitted.append(future._job)
            else:
                future.cancel()
        if submitted:
            select = r.Select(ids=tuple(jobids.ranges_of(submitted)), states=NOT_BEGUN)
            try:
                self._connection.do(Plan(r.Cancel(select, "the executor was shut down"), int))
            except FluxError:
                pass  # their futures hear of that too

    def _finish(self) -> None:
        with self._lock:
            # workers that nothing is left for hold cores that commands wait for
            self._lock.wait_for(lambda: not self._open_calls)
        if self._pool is not None:
            self._pool.close()
        with self._lock:
            self._lock.wait_for(lambda: not self._open)
            first, self._finished = not self._finished, True
        if not first:
            if threading.current_thread() not in self._threads:
                self._over.wait()
            return
        self._to_do.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        self._connection.close()
        self._over.set()

    def _exit(self) -> None:
        # a fork has none of the threads that would do anything
        if not self._over.is_set() and self._pid == os.getpid():
            self.shutdown()

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
            groups = tuple(submission.new_group(command, options) for _, command, options in batch)
            ranges = self._connection.do(plans.submit(groups, self._tie))
        except FluxError as error:
            if len(batch) == 1:
                self.settle(batch[0][0], error=error)
            return len(batch) == 1
        for (future, _, _), (job, _) in zip(batch, ranges, strict=True):
            self._submitted(future, job)
        return True

    def _submitted(self, future: FluxFuture, job: int) -> None:
        def ended(value: Any, error: FluxError | None) -> None:
            self.later(lambda: self._ended(future, None if error else plans.to_result(value), error))

        with future._condition:
            future._job = job
        self.later(lambda: future._has_id(job))
        try:
            self._connection.ask(r.Info(job, output=True, ended=True), ended)
            if future.cancelled():
                self._connection.tell(r.Cancel(plans.select(job), "its future was cancelled"))
        except FluxError as error:
            self.settle(future, error=error)

    def _ended(self, future: FluxFuture, result: Result | None, error: FluxError | None) -> None:
        if future._unwanted and result is not None and result.result == "CANCELED" and not result.t_start:
            self._cancel(future)
        self.settle(future, result, error)

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

    def _runs(self, job: int) -> bool:
        try:
            return self._connection.do(plans.record(job)).state == "RUN"
        except FluxError:
            return False

    def begin(self, future: FluxFuture) -> bool:
        """It runs now and cannot be cancelled any more; False when it was."""
        with self._begins:
            return not future.cancelled() and (Future.running(future) or future.set_running_or_notify_cancel())

    # -- futures ---------------------------------------------------------------------------------------------------

    def later(self, what: Callable[[], object]) -> None:
        """Do something that may call the user's functions."""
        self._to_do.put(what)

    def _work(self) -> None:
        while (what := self._to_do.get()) is not None:
            guarded(what)

    def settle(self, future: FluxFuture, value: Any = None, error: BaseException | None = None) -> None:
        """A future has its result, unless it was cancelled."""
        try:
            if not future.done() and self.begin(future):
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(value)
        finally:
            self._closed(future)

    def _closed(self, future: FluxFuture) -> None:
        with self._lock:
            if future in self._open:
                self._open.remove(future)
                self._open_calls -= future._is_call
            self._lock.notify_all()


__all__ = ["EVENTS", "Executor", "FluxFuture"]
