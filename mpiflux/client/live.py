"""A live instance, seen from a program that waits for what it asks: the blocking interface.

One thread a connection reads what the instance says; every method may be called from any thread. See
:mod:`mpiflux.aio` for the same with coroutines.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from mpiflux.client import plans
from mpiflux.client.errors import ConnectionLost, FluxError, InstanceEnded, NotConnected
from mpiflux.client.plans import Command, HasIds, Ids, JobOptions
from mpiflux.client.records import Change, Counts, JobEvent, Message, Record, Result, Value
from mpiflux.client.session import Plan, Session, Stream
from mpiflux.model import requests as r
from mpiflux.store import kvs as store

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")
RECONNECT = 10.0
"""Seconds for which a lost connection is tried again."""


class _Slot:
    """Where a thread waits for an answer."""

    __slots__ = ("error", "ready", "value")

    def __init__(self) -> None:
        self.ready = threading.Event()
        self.value: Any = None
        self.error: FluxError | None = None

    def done(self, value: Any, error: FluxError | None) -> None:
        self.value, self.error = value, error
        self.ready.set()


class Connection:
    """A socket, the thread that reads it, and the session that both talk to."""

    def __init__(self, path: str, *, keep: bool = False, program: str = "", timeout: float = 30.0) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._closed = False
        self.session = Session(r.Hello(r.VERSION, program, os.getpid(), keep))
        self._greeted = threading.Event()
        self.session.on_welcome = self._greeted.set
        self.session.send = self._send
        self._lost_at = time.monotonic()
        self._sock = self._connect()
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

    def do(self, plan: Plan[T], timeout: float | None = None) -> T:
        """Carry out a plan. Raises FluxError, and TimeoutError after ``timeout`` seconds."""
        slot = _Slot()
        with self._lock:
            self._check()
            number = self.session.call(plan.op, slot.done)
        if not slot.ready.wait(timeout):
            with self._lock:
                self.session.forget(number)
            raise TimeoutError(f"no answer within {timeout:g} s")
        if slot.error is not None:
            raise slot.error
        return plan.convert(slot.value)

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

    def _check(self) -> None:
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

    def get(self, timeout: float | None = None) -> Any:
        """The next item; None when none will come any more. Raises TimeoutError after ``timeout`` seconds."""
        stream = self._stream
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
        with self._more:
            self._connection.session.close_stream(self._stream)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Job(HasIds):
    """A job of a live instance."""

    def __init__(self, flux: Flux, id: int) -> None:
        self._flux, self.id = flux, id

    def __repr__(self) -> str:
        return f"<Job {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and other.id == self.id and other._flux is self._flux

    def __hash__(self) -> int:
        return hash(self.id)

    def _ranges(self) -> list[tuple[int, int]]:
        return [(self.id, self.id + 1)]

    def record(self) -> Record:
        """All that is known of it now."""
        return self._flux._do(plans.record(self.id))

    def result(self, timeout: float | None = None) -> Result:
        """Wait for its end. Raises TimeoutError after ``timeout`` seconds; how the job ended raises nothing."""
        return self._flux._do(plans.result(self.id), timeout)

    def events(self, *names: str) -> Iterator[JobEvent]:
        """What happens to it, from its submission to its end; only these events if any are named."""
        return iter(self._flux.events(self, names=names, finite=True))

    def eventlog(self) -> list[JobEvent]:
        """What has happened to it so far, also in an instance that this one goes on from."""
        return self._flux._do(plans.eventlog(self.id))

    def cancel(self, reason: str = "cancelled") -> bool:
        """End it, wherever it is; False when it had ended already."""
        return bool(self._flux.cancel(self, reason=reason))

    def release(self) -> None:
        """Let a job go that was submitted with ``hold``."""
        self._flux.release(self)


class Jobs(HasIds, Sequence[Job]):
    """Several jobs, in the order in which they were submitted."""

    def __init__(self, flux: Flux, ids: Sequence[int]) -> None:
        self._flux, self.ids = flux, ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Jobs(self._flux, self.ids[index])
        return Job(self._flux, self.ids[index])

    def __repr__(self) -> str:
        return f"<Jobs: {len(self.ids)} of them, from {self.ids[0]}>" if self.ids else "<Jobs: none>"

    def _ranges(self) -> list[tuple[int, int]]:
        return plans.ranges_of(self.ids)

    def wait(self, timeout: float | None = None) -> Counts:
        """Until all have ended: how they did. Raises TimeoutError."""
        return self._flux.wait(self, timeout)

    def events(self, *names: str) -> Iterator[JobEvent]:
        """What happens to them, until all have ended."""
        return iter(self._flux.events(self, names=names, finite=True))

    def as_completed(self) -> Iterator[Job]:
        """Each job as it ends."""
        for event in self.events("clean"):
            yield Job(self._flux, event.job)

    def results(self) -> Iterator[Result]:
        """The result of each, in order, as they end."""
        for id in self.ids:
            yield self._flux._do(plans.result(id))

    def cancel(self, reason: str = "cancelled") -> int:
        """End them; how many had not ended."""
        return self._flux.cancel(self, reason=reason)


class Kvs:
    """The keys of the instance. Values are JSON or bytes. Keys are names joined by dots: ``a.b.c``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, key: str) -> Any:
        """A value. ``job.ID.stdout`` and the like show a job. Raises NoKey, which is a KeyError."""
        return self._connection.do(plans.kvs_get(key)).value

    def get_versioned(self, key: str) -> Value:
        """A value with its version, for :meth:`put` with ``version``."""
        return self._connection.do(plans.kvs_get(key))

    def wait(self, key: str, timeout: float | None = None) -> Any:
        """The value, once the key exists. Raises TimeoutError."""
        return self._connection.do(plans.kvs_get(key, wait=True), timeout).value

    def ls(self, prefix: str = "", *, recursive: bool = False) -> list[str]:
        """The keys below ``prefix``; directories end in a dot. Raises NoKey."""
        return self._connection.do(plans.kvs_ls(prefix, recursive))

    def put(self, key: str, value: object, *, version: int | None = None) -> int:
        """Set a key; returns the store's new version.

        ``version``: only if the key still has it (0: does not exist), else Conflict is raised.
        """
        return self._connection.do(plans.kvs_put(key, value, version))

    def rm(self, key: str, *, recursive: bool = False) -> int:
        """Delete a key, or with ``recursive`` all below it. Raises NoKey."""
        return self.commit([store.Delete(key, recursive)])

    def rename(self, key: str, to: str) -> int:
        """Move a value or all below a prefix to where nothing is yet."""
        return self.commit([store.Rename(key, to)])

    def commit(self, ops: Iterable[store.Op]) -> int:
        """All of these operations (``put``, ``Delete``, ``Rename``, ``Check`` of mpiflux.kvs) at once, or none."""
        return self._connection.do(plans.kvs_commit(ops))

    def fence(self, name: str, n: int, ops: Iterable[store.Op] = (), timeout: float | None = None) -> int:
        """Wait until ``n`` participants have come here; what all of them bring is committed as one."""
        return self._connection.do(plans.kvs_fence(name, n, ops), timeout)

    def watch(self, key: str = "", *, since: int = -1) -> Subscription:
        """Every change of a key, and of all below it, once and in order: an iterator of :class:`Change`.

        It begins with the values as they are, or after version ``since``.
        """
        return self._connection.subscribe(plans.watching(key), since, convert=plans.change, resumes=True)


class Service:
    """A service that this program offers; see :meth:`Flux.serve`."""

    def __init__(self, connection: Connection, name: str, handler: Callable[[Any], object], threads: int) -> None:
        self._connection, self._handler = connection, handler
        self._calls = connection.subscribe(lambda sub, _: r.Serve(sub, name), convert=lambda item: item)
        self._taking = threading.Lock()
        self._threads = [threading.Thread(target=self._work, name=f"service {name}", daemon=True)
                         for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while True:
            try:
                with self._taking:
                    item = self._calls.get()
            except FluxError:
                return
            if item is None:
                return
            number, data = item
            self._connection.tell(plans.answer(number, self._handler, data))

    def close(self) -> None:
        """Serve no more. Calls that have come and are not answered yet fail for their callers."""
        self._calls.close()

    def join(self) -> None:
        """Wait until the service is closed, or the instance has ended."""
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Item:
    """A value of a queue that goes back to it unless this consumer says :meth:`done`, also when it dies."""

    def __init__(self, connection: Connection, number: int, value: Any) -> None:
        self._connection, self._number, self.value = connection, number, value

    def done(self) -> None:
        """It is dealt with."""
        self._connection.do(plans.done(self._number, back=False))

    def back(self) -> None:
        """Let somebody else have it."""
        self._connection.do(plans.done(self._number, back=True))

    def __enter__(self) -> Any:
        return self.value

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.done()
        else:
            self.back()


class Queue:
    """Values that any program pushes and any other pulls, each value once."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection, self.name = connection, name

    def push(self, value: object, *, priority: float = 0.0) -> int:
        """Add a value: those of higher priority are pulled first, equal ones in order. Returns how many wait."""
        return self._connection.do(plans.push(self.name, [value], priority))

    def push_many(self, values: Iterable[object], *, priority: float = 0.0) -> int:
        return self._connection.do(plans.push(self.name, values, priority))

    def pull(self, timeout: float | None = None, *, wait: bool = True) -> Any:
        """Take the next value, waiting for one. Raises TimeoutError, or Empty without ``wait``."""
        return self._connection.do(plans.pull(self.name, ack=True, wait=wait), timeout)[1]

    def take(self, timeout: float | None = None, *, wait: bool = True) -> Item:
        """The same, but it goes back to the queue unless this program says that it is done with it:
        ``with queue.take() as value: …``."""
        number, value = self._connection.do(plans.pull(self.name, ack=False, wait=wait), timeout)
        return Item(self._connection, number, value)

    def __len__(self) -> int:
        """Values that wait."""
        waiting: int = self._connection.do(plans.queues()).get(self.name, [0])[0]
        return waiting


class Flux:
    """A live instance; see :func:`mpiflux.connect`. A context manager; every method may be called by any thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.kvs = Kvs(connection)

    def _do(self, plan: Plan[T], timeout: float | None = None) -> T:
        return self._connection.do(plan, timeout)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Flux:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def run_dir(self) -> str:
        """The run directory of the instance."""
        welcome = self._connection.session.welcome
        return welcome.run_dir if welcome is not None else ""

    # -- jobs ------------------------------------------------------------------------------------------------------

    def submit(self, command: Command, **options: Unpack[JobOptions]) -> Job:
        """Submit a job: a list of arguments, or with ``shell`` a text. See :class:`JobOptions`.

        With ``params`` it is one job for each row of values; the first is returned: see :meth:`submit_many`.
        """
        [(first, _)] = self._do(plans.submit((plans.new_group(command, options),)))
        return Job(self, first)

    def submit_many(self, commands: Command | Iterable[Sequence[str]], **options: Unpack[JobOptions]) -> Jobs:
        """Submit many jobs at once: a list of commands, or one command with ``params``, columns of values for
        the ``{name}`` in it. A hundred thousand take a second or two, and come back as one object."""
        groups, order = plans.bulk(commands, options)
        return Jobs(self, order(self._do(plans.submit(groups))) if groups else range(0))

    def job(self, ref: int | str) -> Job:
        """A job by its id, or as ``"sim.3"``. Raises NoJob."""
        first, _ = self._do(plans.resolve(ref))
        return Job(self, first)

    def jobs(self, name: str | None = None, *, states: Collection[str] | None = None,
             results: Collection[str] | None = None, with_output: bool = False) -> Iterator[Record]:
        """Job records in order of id, read from the run directory once all so far is in it.

        Of the group ``name``, in one of ``states``, with one of ``results``. Raises NoJob, ValueError, and
        NotConnected where the run directory cannot be seen from this machine.
        """
        from mpiflux.client.flux import open_directory

        self.sync()
        with open_directory(self.run_dir) as directory:
            yield from directory.jobs(name, states=states, results=results, with_output=with_output)

    def group(self, name: str) -> Jobs:
        """The jobs of a name."""
        return Jobs(self, range(*self._do(plans.resolve(name))))

    def cancel(self, jobs: Ids | None = None, *, reason: str = "cancelled", states: Iterable[str] = ()) -> int:
        """End jobs: given ones, a group by name, or all; in these states only. How many had not ended."""
        return self._do(plans.cancel(jobs, reason, states))

    def hold(self, jobs: Ids) -> int:
        """Keep back groups that still wait for something; how many jobs those have."""
        return self._do(plans.hold(jobs, True))

    def release(self, jobs: Ids) -> int:
        """Let held groups go."""
        return self._do(plans.hold(jobs, False))

    def wait(self, jobs: Ids | None = None, timeout: float | None = None) -> Counts:
        """Until these jobs, or all, have ended: how they did. Raises TimeoutError."""
        return self._do(plans.drain(jobs), timeout)

    def events(self, jobs: Ids | None = None, *, names: Iterable[str] = (), since: int = 0,
               finite: bool = False) -> Subscription:
        """What happens to jobs (a group's name, ids, jobs; None: all, also those to come): an iterator of JobEvent.

        From event number ``since`` on; 0: from the start, -1: from now on. Each comes once and in order, also across
        a lost connection. ``finite``: it ends when all these jobs have ended.
        """
        return self._connection.subscribe(plans.following(jobs, names, finite), since, convert=plans.job_event,
                                          resumes=True, acknowledge=True)

    # -- messages --------------------------------------------------------------------------------------------------

    def publish(self, topic: str, payload: object = None) -> int:
        """Send a message to all who subscribe to its topic, names joined by dots; returns how many those are."""
        return self._do(plans.publish(topic, payload))

    def subscribe(self, pattern: str) -> Subscription:
        """The messages from now on whose topic matches, an iterator of :class:`Message`.

        ``*`` stands for any one name, ``**`` for any number of them: ``md.*.energy``, ``md.**``.
        """
        return self._connection.subscribe(lambda sub, _: r.Subscribe(sub, pattern), convert=plans.message)

    def serve(self, name: str, handler: Callable[[Any], object], *, threads: int = 1) -> Service:
        """Answer calls of a service: ``handler(payload)`` in threads of its own, until the service is closed.

        What it returns is the answer; what it raises the caller gets as RemoteError. Several programs may serve the
        same name: calls go to the least busy one.
        """
        return Service(self._connection, name, handler, threads)

    def call(self, name: str, payload: object = None, timeout: float | None = None) -> Any:
        """Call a service. Raises NoService at once when nobody serves it, or when who does dies; RemoteError when
        its handler raised; TimeoutError."""
        return self._do(plans.call(name, payload), timeout)

    def queue(self, name: str) -> Queue:
        """A queue of values between programs; it exists by being named."""
        return Queue(self._connection, name)

    def queues(self) -> dict[str, list[int]]:
        """By name: values that wait, values whose consumers are not done, consumers that wait."""
        return self._do(plans.queues())

    # -- the instance ----------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What the instance is and has: nodes, cores, counts of jobs, clients, since when."""
        return self._do(plans.status())

    def sync(self) -> None:
        """Wait until everything so far is on disk."""
        self._do(plans.sync())


def connect(path: str, *, keep: bool = False) -> Flux:
    """The live instance whose door is at ``path``. Raises NotConnected."""
    return Flux(Connection(path, keep=keep))


__all__ = ["Change", "Connection", "Counts", "Flux", "Item", "Job", "JobEvent", "Jobs", "Kvs", "Message", "Queue",
           "Record", "Result", "Service", "Subscription", "connect"]
