"""Jobs of a live instance, for programs that wait for what they ask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mpiflux.client import jobids, plans
from mpiflux.client.jobids import HasIds
from mpiflux.client.keys import Kvs
from mpiflux.client.output import Output
from mpiflux.client.records import Counts, JobEvent, Piece, Record, Result
from mpiflux.store import kvs as store

if TYPE_CHECKING:
    from mpiflux.client.live import Flux


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

    def signal(self, number: int) -> bool:
        """Send a signal to its processes; False when it does not run."""
        return bool(self._flux.signal(self, number))

    def output(self, stream: str = "") -> Iterator[Piece]:
        """What it writes to stdout and stderr (or to one of them), from the beginning and as it comes, to its end."""
        known = Output(self.id, stream)
        with self._flux._connection.subscribe(known.op, convert=known.piece, resumes=True) as pieces:
            for piece in pieces.all():
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

    def urgency(self, value: int) -> bool:
        """Give it another urgency, 0 to 31; 0 holds it until it gets another. False when it has started."""
        return bool(self._flux.urgency(self, value))

    def release(self) -> None:
        """Let a job go that was submitted with ``hold``."""
        self._flux.release(self)


class Stdin:
    """The stdin of a job. What is written before it runs waits for it."""

    def __init__(self, flux: Flux, id: int) -> None:
        self._flux, self._id = flux, id

    def write(self, data: str | bytes, timeout: float | None = None) -> None:
        """Returns when no more than a megabyte waits for the job to read it. Raises Rejected when it has ended, and
        TimeoutError (it is written all the same)."""
        self._flux._do(plans.stdin(self._id, data), timeout)

    def close(self) -> None:
        """The job finds the end of the file after what was written."""
        self._flux._do(plans.stdin(self._id, eof=True))


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
        return jobids.ranges_of(self.ids)

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
