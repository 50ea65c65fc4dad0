"""A live instance for asyncio: the names of :mod:`mpiflux.client.live`, as coroutines and asynchronous iterators.

``async with await mpiflux.aio.connect() as flux: …``. What a call asks and what its answer means is in
:mod:`mpiflux.client.plans`, for both; here is only how a coroutine waits.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from mpiflux.client import jobids, plans, submission
from mpiflux.client.aiocallbacks import Callbacks
from mpiflux.client.aioconnection import Connection, Subscription
from mpiflux.client.errors import NotConnected
from mpiflux.client.jobids import HasIds, Ids
from mpiflux.client.names import Names, inherited
from mpiflux.client.output import Output
from mpiflux.client.records import Counts, JobEvent, Piece, Record, Result, Value
from mpiflux.client.session import Plan
from mpiflux.client.submission import Command, JobOptions
from mpiflux.client.where import locate
from mpiflux.model import requests as r
from mpiflux.store import kvs as store
from mpiflux.store.kvs import decode_value

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")
_PAGE = 1000
"""Records that are read at once."""


async def connect(target: str | os.PathLike[str] | None = None, *, keep: bool = False) -> Flux:
    """The live instance of a URI, a run directory, or that this job is part of; see :func:`mpiflux.connect`.

    Raises NotConnected, also for the directory of a run that is over: :func:`mpiflux.connect` reads that.
    """
    found = locate(target)
    if not found.socket:
        raise NotConnected(f"{found.run_dir}: {found.why or 'there is no live instance'}; mpiflux.connect reads what "
                           "the directory holds")
    connection = Connection(found.socket, keep=keep)
    await connection.open()
    return Flux(connection)


class Job(HasIds):
    """A job of a live instance."""

    def __init__(self, flux: Flux, id: int) -> None:
        self._flux, self.id = flux, id

    def __repr__(self) -> str:
        return f"<Job {self.id}>"

    def _ranges(self) -> list[tuple[int, int]]:
        return [(self.id, self.id + 1)]

    async def record(self) -> Record:
        """All that is known of it now."""
        return await self._flux._do(plans.record(self.id))

    async def result(self) -> Result:
        """Wait for its end; how the job ended raises nothing."""
        return await self._flux._do(plans.result(self.id))

    async def events(self, *names: str) -> AsyncIterator[JobEvent]:
        """What happens to it, from its submission to its end; only these events if any are named."""
        async for event in await self._flux.events(self, names=names, finite=True):
            yield event

    async def eventlog(self) -> list[JobEvent]:
        """What has happened to it so far, also in an instance that this one goes on from."""
        return await self._flux._do(plans.eventlog(self.id))

    async def cancel(self, reason: str = "cancelled") -> bool:
        """End it, wherever it is; False when it had ended already."""
        return bool(await self._flux.cancel(self, reason=reason))

    async def signal(self, number: int) -> bool:
        """Send a signal to its processes; False when it does not run."""
        return bool(await self._flux.signal(self, number))

    async def output(self, stream: str = "") -> AsyncIterator[Piece]:
        """What it writes to stdout and stderr (or to one of them), from the beginning and as it comes, to its end."""
        known = Output(self.id, stream)
        async with await self._flux._connection.subscribe(known.op, convert=known.piece, resumes=True) as pieces:
            async for piece in pieces.all():
                if piece is not None:
                    yield piece

    @property
    def kvs(self) -> Kvs:
        """Its own keys, ``job.ID.guest.…`` of all: they stay with the job. Others may read and write them too."""
        return Kvs(self._flux._connection, f"job.{self.id}.{store.GUEST}")

    @property
    def stdin(self) -> Stdin:
        """Where to write what it reads; it has to be submitted with ``input="-"``."""
        return Stdin(self._flux, self.id)

    async def urgency(self, value: int) -> bool:
        """Give it another urgency, 0 to hold it; False when it has started."""
        return bool(await self._flux.urgency(self, value))

    async def release(self) -> None:
        """Let a job go that was submitted with ``hold``."""
        await self._flux.release(self)


class Stdin:
    """The stdin of a job; see :class:`mpiflux.client.jobs.Stdin`."""

    def __init__(self, flux: Flux, id: int) -> None:
        self._flux, self._id = flux, id

    async def write(self, data: str | bytes) -> None:
        await self._flux._do(plans.stdin(self._id, data))

    async def close(self) -> None:
        await self._flux._do(plans.stdin(self._id, eof=True))


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

    def _ranges(self) -> list[tuple[int, int]]:
        return jobids.ranges_of(self.ids)

    async def wait(self) -> Counts:
        """Until all have ended: how they did."""
        return await self._flux.wait(self)

    async def events(self, *names: str) -> AsyncIterator[JobEvent]:
        """What happens to them, until all have ended."""
        async for event in await self._flux.events(self, names=names, finite=True):
            yield event

    async def as_completed(self) -> AsyncIterator[Job]:
        """Each job as it ends."""
        async for event in self.events("clean"):
            yield Job(self._flux, event.job)

    async def results(self) -> AsyncIterator[Result]:
        """The result of each, in order, as they end."""
        for id in self.ids:
            yield await self._flux._do(plans.result(id))

    async def cancel(self, reason: str = "cancelled") -> int:
        """End them; how many had not ended."""
        return await self._flux.cancel(self, reason=reason)


class Kvs:
    """The keys of the instance; see :class:`mpiflux.client.keys.Kvs`."""

    def __init__(self, connection: Connection, namespace: str = "") -> None:
        self._connection = connection
        self._names = Names(namespace)

    def namespace(self, name: str) -> Kvs:
        """The keys below a name, without it; an empty name: all keys. Raises ValueError."""
        return Kvs(self._connection, self._names.inner(name))

    async def get(self, key: str) -> Any:
        return (await self._connection.do(plans.kvs_get(self._names.full(key)))).value

    async def get_versioned(self, key: str) -> Value:
        return await self._connection.do(plans.kvs_get(self._names.full(key)))

    async def wait(self, key: str) -> Any:
        return (await self._connection.do(plans.kvs_get(self._names.full(key), wait=True))).value

    async def ls(self, prefix: str = "", *, recursive: bool = False) -> list[str]:
        keys = await self._connection.do(plans.kvs_ls(self._names.full(prefix), recursive))
        return [self._names.short(key) for key in keys]

    async def put(self, key: str, value: object, *, version: int | None = None) -> int:
        return await self._connection.do(plans.kvs_put(self._names.full(key), value, version))

    async def rm(self, key: str, *, recursive: bool = False) -> int:
        return await self.commit([store.Delete(key, recursive)])

    async def rename(self, key: str, to: str) -> int:
        return await self.commit([store.Rename(key, to)])

    async def commit(self, ops: Iterable[store.Op]) -> int:
        return await self._connection.do(plans.kvs_commit(self._names.ops(ops)))

    async def fence(self, name: str, n: int, ops: Iterable[store.Op] = ()) -> int:
        return await self._connection.do(plans.kvs_fence(name, n, self._names.ops(ops)))

    async def watch(self, key: str = "", *, since: int = -1) -> Subscription:
        return await self._connection.subscribe(plans.watching(self._names.full(key)), since,
                                                convert=self._names.change, resumes=True)


class Service:
    """A service that this program offers; see :meth:`Flux.serve`."""

    def __init__(self, connection: Connection, calls: Subscription,
                 handler: Callable[[Any], Awaitable[object]]) -> None:
        self._connection, self._calls, self._handler = connection, calls, handler
        self._running: set[asyncio.Task[None]] = set()
        self._closed = False
        self._task = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        async for number, data in self._calls:
            task = asyncio.get_running_loop().create_task(self._answer(number, data))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _answer(self, number: int, data: bytes) -> None:
        try:
            answer = r.Answer(number, plans.pack_value(await self._handler(decode_value(data))))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # also of sys.exit, and of a task of the handler's that was cancelled: whoever called waits for an answer
            if self._closed:
                raise
            answer = plans.failure(number, error)
        self._connection.session.tell(answer)

    async def close(self) -> None:
        """Serve no more. Calls that have come and are not answered yet fail for their callers."""
        self._closed = True
        self._calls.close()
        await self._task
        for task in list(self._running):
            task.cancel()

    async def join(self) -> None:
        """Wait until the service is closed, or the instance has ended."""
        await asyncio.shield(self._task)

    async def __aenter__(self) -> Service:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Item:
    """A value of a queue that goes back to it unless this consumer says :meth:`done`, also when it dies."""

    def __init__(self, connection: Connection, number: int, value: Any) -> None:
        self._connection, self._number, self.value = connection, number, value

    async def done(self) -> None:
        await self._connection.do(plans.done(self._number, back=False))

    async def back(self) -> None:
        await self._connection.do(plans.done(self._number, back=True))

    async def __aenter__(self) -> Any:
        return self.value

    async def __aexit__(self, kind: object, *_: object) -> None:
        await (self.done() if kind is None else self.back())


class Queue:
    """Values that any program pushes and any other pulls; see :class:`mpiflux.client.exchange.Queue`."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection, self.name = connection, name

    async def push(self, value: object, *, priority: float = 0.0) -> int:
        return await self._connection.do(plans.push(self.name, [value], priority))

    async def push_many(self, values: Iterable[object], *, priority: float = 0.0) -> int:
        return await self._connection.do(plans.push(self.name, values, priority))

    async def pull(self, *, wait: bool = True) -> Any:
        return (await self._connection.do(plans.pull(self.name, ack=True, wait=wait)))[1]

    async def take(self, *, wait: bool = True) -> Item:
        return Item(self._connection, *await self._connection.do(plans.pull(self.name, ack=False, wait=wait)))


class Flux:
    """A live instance; see :class:`mpiflux.client.live.Flux`, whose methods these are. Time-outs are asyncio's own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.kvs = Kvs(connection, inherited())

    async def _do(self, plan: Plan[T]) -> T:
        return await self._connection.do(plan)

    async def close(self) -> None:
        await self._connection.close()

    async def __aenter__(self) -> Flux:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def run_dir(self) -> str:
        welcome = self._connection.session.welcome
        return welcome.run_dir if welcome is not None else ""

    async def submit(self, command: Command, **options: Unpack[JobOptions]) -> Job:
        [(first, _)] = await self._do(plans.submit((submission.new_group(command, options),)))
        return Job(self, first)

    async def submit_many(self, commands: Command | Iterable[Sequence[str]], **options: Unpack[JobOptions]) -> Jobs:
        groups, order = submission.bulk(commands, options)
        return Jobs(self, order(await self._do(plans.submit(groups))) if groups else range(0))

    async def job(self, ref: int | str | None = None) -> Job:
        return Job(self, await self._do(plans.resolve_one(plans.own_job() if ref is None else ref)))

    async def jobs(self, name: str | None = None, *, states: Collection[str] | None = None,
                   results: Collection[str] | None = None, with_output: bool = False) -> AsyncIterator[Record]:
        """Job records in order of id, read from the run directory by a thread; see :meth:`mpiflux.Flux.jobs`."""
        from concurrent.futures import ThreadPoolExecutor

        from mpiflux.client.flux import open_directory

        await self.sync()
        loop = asyncio.get_running_loop()
        # one thread: it is the database's
        with ThreadPoolExecutor(1) as thread:
            directory = await loop.run_in_executor(thread, open_directory, self.run_dir)
            try:
                records = directory.jobs(name, states=states, results=results, with_output=with_output)
                while page := await loop.run_in_executor(thread, lambda: list(itertools.islice(records, _PAGE))):
                    for record in page:
                        yield record
            finally:
                thread.submit(directory.close)

    async def group(self, name: str) -> Jobs:
        return Jobs(self, await self._do(plans.resolve(name)))

    async def cancel(self, jobs: Ids | None = None, *, reason: str = "cancelled", states: Iterable[str] = ()) -> int:
        return await self._do(plans.cancel(jobs, reason, states))

    async def signal(self, jobs: Ids | None, number: int) -> int:
        return await self._do(plans.signal(jobs, number))

    async def explain(self, id: int) -> list[tuple[str, float]]:
        return await self._do(plans.explain(id))

    async def urgency(self, jobs: Ids, value: int) -> int:
        return await self._do(plans.urgency(jobs, value))

    async def hold(self, jobs: Ids) -> int:
        return await self._do(plans.hold(jobs, True))

    async def release(self, jobs: Ids) -> int:
        return await self._do(plans.hold(jobs, False))

    async def wait(self, jobs: Ids | None = None) -> Counts:
        return await self._do(plans.drain(jobs))

    async def events(self, jobs: Ids | None = None, *, names: Iterable[str] = (), since: int = 0,
                     finite: bool = False) -> Subscription:
        return await self._connection.subscribe(plans.following(jobs, names, finite), since, convert=plans.job_event,
                                                resumes=True, acknowledge=True)

    async def on_event(self, callback: Callable[[JobEvent], object], jobs: Ids | None = None, *,
                       names: Iterable[str] = (), since: int = 0, finite: bool = False) -> Callbacks:
        """Call ``callback(event)``, a function or a coroutine function, for each; see :meth:`mpiflux.Flux.on_event`."""
        return Callbacks(await self.events(jobs, names=names, since=since, finite=finite), callback)

    async def publish(self, topic: str, payload: object = None) -> int:
        return await self._do(plans.publish(topic, payload))

    async def subscribe(self, pattern: str) -> Subscription:
        return await self._connection.subscribe(lambda sub, _: r.Subscribe(sub, pattern), convert=plans.message)

    async def serve(self, name: str, handler: Callable[[Any], Awaitable[object]]) -> Service:
        """Answer calls of a service with a coroutine function; several calls at once."""
        calls = await self._connection.subscribe(lambda sub, _: r.Serve(sub, name), convert=lambda item: item,
                                                 resumes=True)
        return Service(self._connection, calls, handler)

    async def call(self, name: str, payload: object = None) -> Any:
        return await self._do(plans.call(name, payload))

    def queue(self, name: str) -> Queue:
        return Queue(self._connection, name)

    async def queues(self) -> dict[str, list[int]]:
        return await self._do(plans.queues())

    async def gate(self, *, enabled: bool | None = None, started: bool | None = None,
                   reason: str = "") -> dict[str, Any]:
        """Whether the instance takes jobs (``enabled``) and starts them (``started``); set what is given. Jobs that run
        are left alone. Gives ``enabled``, ``started``, ``reason``."""
        return await self._do(plans.gate(enabled, started, reason))

    async def status(self) -> dict[str, Any]:
        return await self._do(plans.status())

    async def sync(self) -> None:
        await self._do(plans.sync())
