"""What :mod:`mpiflux.sched.leasing` knows of equal requests, and of who runs jobs of theirs on what."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping

from mpiflux.model import messages as m
from mpiflux.model.jobspec import Request
from mpiflux.model.records import PACK
from mpiflux.sched.catalog import Catalog
from mpiflux.sched.profile import UNLIMITED


class Slot:
    """What an executor has of one shape.

    Which lease it starts a job on is its own choice. While every lease has one job that is no question, and each ends
    with its own job. Else the end of a lease has an upper bound: what was fed to any of them may run there.
    """

    __slots__ = ("fed", "leases", "until")

    def __init__(self) -> None:
        self.leases: dict[int, Lease] = {}
        self.fed = 0
        """Jobs that it has and has not reported."""
        self.until = 0.0
        """When the last of the jobs whose lease is not known has ended, by their time limits; 0: all are known."""

    @property
    def ahead(self) -> int:
        """Jobs that it has beyond one for each lease."""
        return self.fed - len(self.leases)

    def expect(self, held: Container[int]) -> Iterator[tuple[int, float]]:
        """When each lease ends: (number, Unix seconds). ``held`` are the jobs that the executor has."""
        known = True
        for number, lease in self.leases.items():
            if lease.job not in held:
                known = False
                yield number, self.until
            else:
                yield number, max(lease.end, self.until) if self.ahead > 0 else lease.end
        if known and self.ahead <= 0:
            self.until = 0.0


class Shape:
    """Everything about equal requests."""

    def __init__(self, number: int, request: Request, node: int) -> None:
        self.number, self.request = number, request
        self.node = node
        """The only node where such jobs may run; −1: any."""
        self.slots: dict[int, Slot] = {}
        """By executor; gangs have none."""
        self.open: dict[int, None] = {}
        """Executors that may have room for more: a request is often asked for when none has."""
        self.each = 1
        """Jobs that a lease may have by which ``open`` was last looked through."""
        self.full_at = -1
        """The state of the pool at which there was no place for it."""
        self.refused_at = -1
        """The state of pool, reservations and time at which there was none for a job of ``refused_limit`` seconds."""
        self.refused_limit = 0.0
        self.beside: Shape | None = None
        """For jobs that must not stand in one line with others of this shape, once there are any: each of them has a
        lease of its own."""

    def slot(self, executor: int) -> Slot:
        """What an executor has of it."""
        found = self.slots.get(executor)
        if found is None:
            found = self.slots[executor] = Slot()
        return found


class Lease:
    __slots__ = ("end", "executor", "job", "r", "r_id", "shape")

    def __init__(self, shape: Shape, executor: int, r: m.ResourceSet, r_id: int, job: int, end: float) -> None:
        self.shape, self.executor, self.r, self.r_id = shape, executor, r, r_id
        self.job = job
        """What it runs: the job that it was granted for, until it is reported that another does; -1: not known."""
        self.end = end
        """When that job has ended by its time limit (Unix seconds)."""


class Pairs:
    """Which job runs on which lease, as far as reports tell. A job of a few milliseconds is over before any does."""

    def __init__(self) -> None:
        self._lease_of: dict[int, int] = {}
        self._on: dict[int, int] = {}
        """The last lease of each R."""

    def add(self, number: int, lease: Lease, leases: Mapping[int, Lease]) -> None:
        """A lease was granted."""
        self._part(lease.job, leases)
        self._lease_of[lease.job] = self._on[lease.r_id] = number

    def remove(self, number: int, lease: Lease, held: Container[int]) -> None:
        """A lease has ended. If the job that it was granted for has not, that runs on another."""
        for pairs, key in ((self._lease_of, lease.job), (self._on, lease.r_id)):
            if pairs.get(key) == number:
                del pairs[key]
        if lease.job in held:
            slot = lease.shape.slots[lease.executor]
            slot.until = max(slot.until, lease.end)

    def started(self, records: bytes, now: float, catalog: Catalog, leases: Mapping[int, Lease]) -> Iterator[Shape]:
        """Jobs run, each on the R of its record: shapes of which that is news."""
        for record in PACK.iter_unpack(records):
            job, r_id = record[0], record[7]
            number, assumed = self._on.get(r_id, -1), self._lease_of.get(job, -1)
            if number < 0 or (assumed >= 0 and leases[assumed].r_id == r_id):
                continue
            lease = leases[number]
            self._part(job, leases)
            self._lease_of.pop(lease.job, None)
            self._lease_of[job] = number
            lease.job, lease.end = job, now + (catalog.locate(job)[0].time_limit or UNLIMITED)
            slot = lease.shape.slots[lease.executor]
            slot.until = max(slot.until, lease.end)
            yield lease.shape

    def _part(self, job: int, leases: Mapping[int, Lease]) -> None:
        """A job is not where it was taken to be."""
        number = self._lease_of.pop(job, -1)
        if number >= 0:
            leases[number].job = -1
