"""A live instance, seen from a program that waits for what it asks: the blocking interface.

One thread a connection reads what the instance says; every method may be called from any thread. See
:mod:`mpiflux.aio` for the same with coroutines.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from mpiflux.client import plans, submission
from mpiflux.client.callbacks import Callbacks
from mpiflux.client.connection import Connection, Subscription
from mpiflux.client.exchange import Item, Queue, Service
from mpiflux.client.jobids import Ids
from mpiflux.client.jobs import Job, Jobs
from mpiflux.client.keys import Kvs
from mpiflux.client.names import inherited
from mpiflux.client.records import Change, Counts, JobEvent, Message, Record, Result
from mpiflux.client.session import Plan
from mpiflux.client.submission import Command, JobOptions
from mpiflux.model import requests as r

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")


class Flux:
    """A live instance; see :func:`mpiflux.connect`. A context manager; every method may be called by any thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.kvs = Kvs(connection, inherited())

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
        [(first, _)] = self._do(plans.submit((submission.new_group(command, options),)))
        return Job(self, first)

    def submit_many(self, commands: Command | Iterable[Sequence[str]], **options: Unpack[JobOptions]) -> Jobs:
        """Submit many jobs at once: a list of commands, or one command with ``params``, columns of values for
        the ``{name}`` in it. A hundred thousand take a second or two, and come back as one object."""
        groups, order = submission.bulk(commands, options)
        return Jobs(self, order(self._do(plans.submit(groups))) if groups else range(0))

    def job(self, ref: int | str | None = None) -> Job:
        """A job by its id, or as ``"sim.3"``; without either, the job that this program is. Raises NoJob.

        Where a name was submitted several times the index counts through all its jobs in order.
        """
        return Job(self, self._do(plans.resolve_one(plans.own_job() if ref is None else ref)))

    def jobs(self, name: str | None = None, *, states: Collection[str] | None = None,
             results: Collection[str] | None = None, with_output: bool = False) -> Iterator[Record]:
        """Job records in order of id, read from the run directory once all so far is in it.

        All called ``name``, in one of ``states``, with one of ``results``. Raises NoJob, ValueError, and NotConnected
        where the run directory cannot be seen from this machine.
        """
        from mpiflux.client.flux import open_directory

        self.sync()
        with open_directory(self.run_dir) as directory:
            yield from directory.jobs(name, states=states, results=results, with_output=with_output)

    def group(self, name: str) -> Jobs:
        """All jobs that were submitted by a name so far, in order of id. Raises NoJob."""
        return Jobs(self, self._do(plans.resolve(name)))

    def cancel(self, jobs: Ids | None = None, *, reason: str = "cancelled", states: Iterable[str] = ()) -> int:
        """End jobs: given ones, a group by name, or all; in these states only. How many had not ended."""
        return self._do(plans.cancel(jobs, reason, states))

    def signal(self, jobs: Ids | None, number: int) -> int:
        """Send a signal to the processes of those of these jobs that run; how many do."""
        return self._do(plans.signal(jobs, number))

    def explain(self, id: int) -> list[tuple[str, float]]:
        """Why a job has not started: sentences, each with the time (Unix seconds) that it ends with, or 0."""
        return self._do(plans.explain(id))

    def urgency(self, jobs: Ids, value: int) -> int:
        """Give jobs another urgency, 0 to 31; 0 holds them until they get another. How many had not started."""
        return self._do(plans.urgency(jobs, value))

    def hold(self, jobs: Ids) -> int:
        """Keep back jobs that have not started; how many those are."""
        return self._do(plans.hold(jobs, True))

    def release(self, jobs: Ids) -> int:
        """Let held jobs go; how many those were."""
        return self._do(plans.hold(jobs, False))

    def wait(self, jobs: Ids | None = None, timeout: float | None = None) -> Counts:
        """Until these jobs, or all, have ended: how they did. Raises TimeoutError."""
        return self._do(plans.drain(jobs), timeout)

    def events(self, jobs: Ids | None = None, *, names: Iterable[str] = (), since: int = 0,
               finite: bool = False) -> Subscription:
        """What happens to jobs (a name, ids, jobs; None: all, also those to come): an iterator of JobEvent.

        Of a name also those that are submitted later, the first ones too, unless ``finite``. From event number
        ``since`` on; 0: from the start, -1: from now on. Each comes once and in order, also across a lost connection.
        ``finite``: it ends when all these jobs have ended.
        """
        return self._connection.subscribe(plans.following(jobs, names, finite), since, convert=plans.job_event,
                                          resumes=True, acknowledge=True)

    def on_event(self, callback: Callable[[JobEvent], object], jobs: Ids | None = None, *, names: Iterable[str] = (),
                 since: int = 0, finite: bool = False) -> Callbacks:
        """Call ``callback(event)`` for each event that :meth:`events` would tell, in a thread that it shares with no
        other callback; it may use this object. ``names=["start", "finish", "clean"]`` are changes of state."""
        return Callbacks(self.events(jobs, names=names, since=since, finite=finite), callback)

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

    def gate(self, *, enabled: bool | None = None, started: bool | None = None,
             reason: str = "") -> dict[str, Any]:
        """Whether the instance takes jobs (``enabled``) and starts them (``started``); set what is given. Jobs that run
        are left alone. Gives ``enabled``, ``started`` and ``reason``: why not, for either or both."""
        return self._do(plans.gate(enabled, started, reason))

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
