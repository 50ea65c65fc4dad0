"""Try a policy out: one scheduler on a virtual machine and clock, and a check of what every policy owes its users.

    from mpiflux.sched.testing import check_policy
    check_policy(MyPolicy)

The scheduler is the real one; only executors and time are stand-ins. For whole trees, costs of messages and plots
there is ``mpiflux simulate``.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mpiflux.model import messages as m
from mpiflux.model.jobspec import JobGroup, Request
from mpiflux.model.records import PACK
from mpiflux.model.resources import NodeResources
from mpiflux.model.states import Result
from mpiflux.sched.catalog import Catalog
from mpiflux.sched.leasing import Leasing
from mpiflux.sched.policies import Policy
from mpiflux.sched.pool import ResourcePool
from mpiflux.sched.scheduler import Scheduler

_EXECUTOR, _SCHEDULER, _PARENT = 1 << 20, 0, -1
_LATER = 1e-6


@dataclass(frozen=True)
class TrialJob:
    """One job, or ``count`` equal ones that are queued together."""

    arrival: float = 0.0
    """Seconds."""
    seconds: float = 1.0
    """How long it runs, if its time limit lets it."""
    limit: float = 0.0
    """Its time limit in seconds; 0 is none."""
    request: Request = field(default_factory=Request)
    priority: int = 16
    count: int = 1


class PolicyFault(AssertionError):
    """A policy does what no policy may; the text says what, and on which jobs."""


@dataclass
class Start:
    """What became of one job."""

    job: int
    """Position in the list of jobs."""
    start: float
    end: float
    r: m.ResourceSet


class Trial:
    """Jobs on a machine under a policy. ``run`` gives all starts, in order of time."""

    def __init__(self, policy: Policy, jobs: Sequence[TrialJob], nodes: Sequence[NodeResources]) -> None:
        self.jobs = jobs
        self.now = 0.0
        self.pool = ResourcePool(nodes)
        self.catalog = Catalog()
        self.below = Leasing(_SCHEDULER, _PARENT, self.pool, lambda node, core: _EXECUTOR, (_EXECUTOR,), self.catalog)
        self.scheduler = Scheduler(_SCHEDULER, _PARENT, policy, self.below, self.catalog)
        self.starts: list[Start] = []
        self.watchers: list[Callable[[Trial], None]] = []
        """Called after each time the scheduler decided."""
        self._leases: dict[int, m.Grant] = {}
        self._idle: dict[int, list[int]] = {}
        self._backlog: dict[int, list[m.Chunk]] = {}
        self._ends: list[tuple[float, int, int, int, m.Chunk]] = []
        """(time, serial, job, lease, chunk of it alone)."""
        self._serial = 0
        self._first_ids: list[int] = []
        first = 1
        for number, job in enumerate(jobs):
            self._first_ids.append(first)
            self.catalog.add(m.Declare(JobGroup(
                number=number, name=f"j{number}", first_id=first, count=job.count, command=("x",),
                request=job.request, time_limit=job.limit, priority=job.priority)))
            first += job.count

    def run(self, until: float = float("inf")) -> list[Start]:
        """Raises PolicyFault when jobs are left that nothing is going to start."""
        arrivals = sorted(range(len(self.jobs)), key=lambda i: (self.jobs[i].arrival, i))
        arrivals.reverse()
        while arrivals or self._ends:
            times = [self.jobs[arrivals[-1]].arrival] if arrivals else []
            times += [self._ends[0][0]] if self._ends else []
            self.now = min(times)
            if self.now > until:
                break
            self._end_jobs()
            chunks = []
            while arrivals and self.jobs[arrivals[-1]].arrival <= self.now:
                number = arrivals.pop()
                chunks.append(m.Chunk(number, 0, self.jobs[number].count))
            if chunks:
                self.scheduler.receive(_PARENT, m.Submit(tuple(chunks)), self.now)
            self._settle()
        if until == float("inf") and self.scheduler.queue.jobs:
            left = [entry.chunk.group for entry in self.scheduler.queue]
            raise PolicyFault(f"job {left[0]} and {len(left) - 1} others are queued, all resources are free, and the "
                              "policy starts nothing")
        return self.starts

    # -- the executor --------------------------------------------------------------------------------------------

    def _end_jobs(self) -> None:
        """All jobs that end now, in one report; their leases go on with what waits, or end."""
        records, done, started = [], [], False
        while self._ends and self._ends[0][0] <= self.now:
            _, _, job, lease, chunk = heapq.heappop(self._ends)
            shape = self._leases[lease].shape
            seconds = self._seconds(job)
            records.append(PACK.pack(self._first_ids[job] + chunk.start, chunk.attempt, Result.COMPLETED, 0, 0, 1, 0, 0,
                                     self.now - seconds, self.now - seconds, self.now, 0, 0, 0, 0, 0, 0))
            done.append((shape, job, 1, seconds))
            self._idle.setdefault(shape, []).append(lease)
            started = True
        if started:
            idle = self._start_jobs()
            report = m.Report(b"".join(records), idle=tuple(idle), done=tuple(done))
            self.scheduler.receive(_EXECUTOR, report, self.now)

    def _settle(self) -> None:
        while True:
            actions = self.scheduler.settle(self.now)
            for destination, message in actions:
                if destination != _EXECUTOR:
                    continue
                if isinstance(message, m.Grant):
                    self._leases[message.lease] = message
                    self._idle.setdefault(message.shape, []).append(message.lease)
                elif isinstance(message, m.Feed):
                    self._backlog.setdefault(message.shape, []).extend(message.chunks)
            idle = self._start_jobs()
            for watcher in self.watchers:
                watcher(self)
            if not idle:
                return
            self.scheduler.receive(_EXECUTOR, m.Report(idle=tuple(idle)), self.now)

    def _start_jobs(self) -> list[int]:
        """Put what waits on idle leases; the leases that have ended."""
        over: list[int] = []
        for shape, leases in self._idle.items():
            backlog = self._backlog.get(shape, [])
            while leases and backlog:
                first, rest = backlog.pop(0).split(1)
                if rest is not None:
                    backlog.insert(0, rest)
                self._start(leases.pop(0), first)
            over += leases
            leases.clear()
        for lease in over:
            del self._leases[lease]
        return over

    def _start(self, lease: int, chunk: m.Chunk) -> None:
        self._serial += 1
        end = self.now + self._seconds(chunk.group)
        heapq.heappush(self._ends, (end, self._serial, chunk.group, lease, chunk))
        self.starts.append(Start(chunk.group, self.now, end, self._leases[lease].r))

    def _seconds(self, job: int) -> float:
        spec = self.jobs[job]
        return min(spec.seconds, spec.limit) if spec.limit else spec.seconds


def node(cores: int, gpus: int = 0, index: int = 0, memory: int = 0) -> NodeResources:
    """A node of one NUMA domain."""
    return NodeResources(node=index, cores=tuple(range(cores)), gpus=tuple(range(gpus)), memory=memory)
