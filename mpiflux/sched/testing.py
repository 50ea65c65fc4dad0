"""Try a policy out: one scheduler on a virtual machine and clock, and a check of what every policy owes its users::

    from mpiflux.sched.testing import check_policy

    def test_my_policy():
        check_policy(MyPolicy)

The scheduler is the real one; only executors and time are stand-ins. For whole trees, costs of messages and plots
there is ``mpiflux simulate``.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mpiflux.model import messages as m
from mpiflux.model.jobspec import JobGroup, Request
from mpiflux.model.records import PACK
from mpiflux.model.resources import NodeResources
from mpiflux.model.states import Result
from mpiflux.sched.catalog import Catalog
from mpiflux.sched.leasing import Leasing
from mpiflux.sched.own import told
from mpiflux.sched.policies import Machine, Policy
from mpiflux.sched.pool import ResourcePool
from mpiflux.sched.queue import Entry, WorkQueue
from mpiflux.sched.scheduler import Scheduler

_SCHEDULER, _PARENT, _EXECUTORS = 0, -1, 1 << 20
_FOREVER = float("inf")


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
    on: tuple[int, ...] = ()
    """With one node each: where the jobs may run, one after the other."""


class PolicyFault(AssertionError):
    """A policy does what no policy may; the text says what, and on which jobs."""


@dataclass(frozen=True)
class Start:
    """What became of one job."""

    job: int
    """Position in the list of jobs."""
    start: float
    end: float
    r: m.ResourceSet


class Trial:
    """Jobs on a machine under a policy. ``run`` gives all starts, in order of time."""

    def __init__(self, policy: Policy, jobs: Sequence[TrialJob], nodes: Sequence[NodeResources],
                 consumables: Mapping[str, int] | None = None) -> None:
        self.policy, self.jobs = policy, jobs
        self.now = 0.0
        self.pool = ResourcePool(nodes, consumables)
        self.catalog = Catalog()
        self.below = Leasing(_SCHEDULER, _PARENT, self.pool, lambda node, core: _EXECUTORS + node,
                             tuple(_EXECUTORS + node.node for node in nodes), self.catalog)
        self.scheduler = Scheduler(_SCHEDULER, _PARENT, policy, self.below, self.catalog)
        self.starts: list[Start] = []
        self.watchers: list[Callable[[Trial], None]] = []
        """Called each time the scheduler has decided."""
        self._executors = {_EXECUTORS + node.node: _Executor() for node in nodes}
        self._arrived = 0
        self._parts: dict[int, list[m.Part]] = {}
        self._ends: list[tuple[float, int, _Running]] = []
        self._first_ids: list[int] = []
        first = 1
        for number, job in enumerate(jobs):
            self._first_ids.append(first)
            self.catalog.add(m.Declare(JobGroup(
                number=number, name=f"j{number}", first_id=first, count=job.count, command=("x",),
                request=job.request, time_limit=job.limit, priority=job.priority, on=job.on)))
            first += job.count

    def run(self, until: float = _FOREVER) -> list[Start]:
        """Raises PolicyFault when jobs are left that nothing is going to start."""
        arrivals = sorted(range(len(self.jobs)), key=lambda i: (-self.jobs[i].arrival, -i))
        while arrivals or self._ends:
            self.now = min(self.jobs[arrivals[-1]].arrival if arrivals else _FOREVER,
                           self._ends[0][0] if self._ends else _FOREVER, self.scheduler.due)
            if self.now > until:
                break
            self._end_jobs()
            chunks = []
            while arrivals and self.jobs[arrivals[-1]].arrival <= self.now:
                number = arrivals.pop()
                chunks.append(m.Chunk(number, 0, self.jobs[number].count))
                self._arrived += self.jobs[number].count
            if chunks:
                self.scheduler.receive(_PARENT, m.Submit(tuple(chunks)), self.now)
            self._settle()
        if until == _FOREVER and self.scheduler.queue.jobs:
            left = [entry.chunk.group for entry in self.scheduler.queue]
            raise PolicyFault(f"nothing runs and nothing more arrives, but job {left[0]} "
                              f"{f'and {len(left) - 1} others are' if len(left) > 1 else 'is'} queued: "
                              f"schedule starts no job although all resources are free")
        return self.starts

    # -- executors -----------------------------------------------------------------------------------------------

    def _end_jobs(self) -> None:
        """All jobs that end now, in one report of each executor."""
        while self._ends and self._ends[0][0] <= self.now:
            running = heapq.heappop(self._ends)[2]
            for part in running.parts:
                record = self._record(running)
                self.scheduler.receive(_EXECUTORS + part.share.node,
                                       m.PartEnded(part.id, part.attempt, part.part, record), self.now)
            if not running.parts:
                self._executors[running.executor].ended(running, self._record(running), self.now - running.start)
        for number, executor in self._executors.items():
            self._report(number, executor)

    def _record(self, running: _Running) -> bytes:
        job = self._first_ids[running.chunk.group] + running.chunk.start
        return PACK.pack(job, running.chunk.attempt, Result.COMPLETED, 0, 0, 1, 0, 0, running.start, running.start,
                         self.now, 0, 0, 0, 0, 0, 0)

    def _report(self, number: int, executor: _Executor) -> bool:
        """Start what waits for an idle lease, report what has happened; whether there was anything."""
        for grant, chunk in executor.take():
            self._start(chunk, _Running(chunk, self.now, number, grant), grant.r)
        if not (executor.done or executor.over):
            return False
        report = m.Report(b"".join(executor.records), idle=tuple(executor.over), done=tuple(executor.done))
        executor.records, executor.done, executor.over = [], [], []
        self.scheduler.receive(number, report, self.now)
        return True

    def _settle(self) -> None:
        while True:
            for destination, message in self.scheduler.settle(self.now):
                if isinstance(message, m.Fault):
                    raise PolicyFault(f"at {self.now:g} s: {message.text}")
                if isinstance(message, m.Part):
                    self._part(message)
                elif destination in self._executors:
                    self._executors[destination].handle(message)
            reported = [self._report(number, executor) for number, executor in self._executors.items()]
            for watcher in self.watchers:
                watcher(self)
            if not any(reported):
                break
        below = len(self.starts) + sum(executor.waiting for executor in self._executors.values())
        if self.scheduler.queue.jobs + below != self._arrived:
            raise PolicyFault(f"at {self.now:g} s, {self._arrived} jobs have arrived, {below} were started and "
                              f"{self.scheduler.queue.jobs} are queued: queue.take(entry, n) must take exactly the n "
                              "jobs that machine.start(entry) said it started")

    def _part(self, part: m.Part) -> None:
        parts = self._parts.setdefault(part.id, [])
        parts.append(part)
        if len(parts) == len(part.tasks):
            del self._parts[part.id]
            chunk = m.Chunk(part.group, part.index, part.index + 1, 1, part.attempt)
            self._start(chunk, _Running(chunk, self.now, -1, None, tuple(parts)),
                        m.ResourceSet(tuple(one.share for one in parts)))

    def _start(self, chunk: m.Chunk, running: _Running, r: m.ResourceSet) -> None:
        job = self.jobs[chunk.group]
        end = self.now + (min(job.seconds, job.limit) if job.limit else job.seconds)
        heapq.heappush(self._ends, (end, len(self.starts), running))
        self.starts.append(Start(chunk.group, self.now, end, r))


@dataclass(frozen=True)
class _Running:
    """One job."""

    chunk: m.Chunk
    start: float
    executor: int
    grant: m.Grant | None
    parts: tuple[m.Part, ...] = ()


class _Executor:
    """A supervisor's side of leases; see :mod:`mpiflux.node.supervisor` for the real one."""

    def __init__(self) -> None:
        self.idle: dict[int, list[m.Grant]] = {}
        self.backlog: dict[int, deque[m.Chunk]] = {}
        self.records: list[bytes] = []
        self.done: list[tuple[int, int, int, float]] = []
        self.over: list[int] = []

    def handle(self, message: m.Message) -> None:
        if isinstance(message, m.Grant):
            self.idle.setdefault(message.shape, []).append(message)
        elif isinstance(message, m.Feed):
            self.backlog.setdefault(message.shape, deque()).extend(message.chunks)

    @property
    def waiting(self) -> int:
        """Jobs that were fed and have not started."""
        return sum(len(chunk) for chunks in self.backlog.values() for chunk in chunks)

    def ended(self, running: _Running, record: bytes, seconds: float) -> None:
        assert running.grant is not None
        self.records.append(record)
        self.done.append((running.grant.shape, running.chunk.group, 1, seconds))
        self.idle.setdefault(running.grant.shape, []).append(running.grant)

    def take(self) -> list[tuple[m.Grant, m.Chunk]]:
        """Jobs that start on idle leases; leases without jobs are over."""
        begun: list[tuple[m.Grant, m.Chunk]] = []
        for shape, grants in self.idle.items():
            backlog = self.backlog.get(shape)
            while grants and backlog:
                first, rest = backlog.popleft().split(1)
                if rest is not None:
                    backlog.appendleft(rest)
                begun.append((grants.pop(0), first))
            self.over += [grant.lease for grant in grants]
            grants.clear()
        return begun


def node(cores: int, gpus: int = 0, index: int = 0, memory: int = 0) -> NodeResources:
    """A node of one NUMA domain."""
    return NodeResources(node=index, cores=tuple(range(cores)), gpus=tuple(range(gpus)), memory=memory)


# -- the check ---------------------------------------------------------------------------------------------------


def check_policy(make_policy: Callable[[], Policy], *, may_starve: bool = False) -> None:
    """Hold a policy to its contract; ``make_policy`` makes a fresh one. Raises PolicyFault, which says what is wrong.

    It starts every job, raises nothing, and takes from the queue what it started and nothing else; the same jobs give
    the same schedule; an endless stream of small jobs does not keep a large one waiting for ever, unless
    ``may_starve`` says that it is meant to; it works where other schedulers are below, and with an empty queue.
    """
    policy = make_policy()
    if not isinstance(policy, Policy):
        raise PolicyFault(f"{type(policy).__name__} is not derived from mpiflux.sched.policies.Policy")
    trial = Trial(policy, [], [node(1)])
    _ask(policy, trial.scheduler.queue, trial.below, 0.0, "with an empty queue")
    for seed in range(6):
        jobs, nodes = _mix(seed)
        schedules = [Trial(make_policy(), jobs, nodes).run() for _ in range(2)]
        if schedules[0] != schedules[1]:
            at = next(i for i, pair in enumerate(zip(*schedules, strict=True)) if pair[0] != pair[1])
            raise PolicyFault(f"two runs of the same jobs differ: start {at} is of job {schedules[0][at].job} in one, "
                              f"of job {schedules[1][at].job} in the other; is there a clock, a random number, or a "
                              "state that policies share?")
    _check_between(make_policy())
    if not may_starve:
        for limit in (0.0, 4.0):
            _check_stream(make_policy(), limit)


def _ask(policy: Policy, queue: WorkQueue, machine: Machine, now: float, when: str) -> None:
    try:
        policy.schedule(queue, machine, now)
    except Exception as error:
        raise PolicyFault(f"{when}, schedule raises {told(error)}") from error


def _check_between(policy: Policy) -> None:
    """Above other schedulers a machine only starts: it holds no places."""
    jobs = [TrialJob(request=Request(cores=1 + i % 3), count=1 + i % 5) for i in range(20)]
    trial = Trial(policy, jobs, [node(4)])
    machine, queue = _Between(trial.catalog), trial.scheduler.queue
    for number, job in enumerate(jobs):
        queue.push(m.Chunk(number, 0, job.count))
    total = queue.jobs
    for turn in range(10 * total):
        machine.room = 3
        _ask(policy, queue, machine, float(turn), "above other schedulers")
        if not queue.jobs:
            break
    if machine.started != total or queue.jobs:
        raise PolicyFault(f"above other schedulers, {machine.started} of {total} jobs were started and {queue.jobs} "
                          "stayed queued, although there was room in every turn")


class _Between:
    """What is below a scheduler that has other schedulers below it, as far as a policy can tell."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.room = self.started = 0

    def start(self, entry: Entry) -> int:
        n = min(self.room, len(entry))
        self.room -= n
        self.started += n
        return n


def _check_stream(policy: Policy, limit: float) -> None:
    """Three of four cores are always busy with small jobs when one that needs four comes."""
    length = 900
    jobs = [TrialJob(float(i), 3.0, limit, Request()) for i in range(length)]
    large = TrialJob(5.0, 10.0, limit and 10.0, Request(cores=4))
    for one in Trial(policy, [*jobs, large], [node(4)]).run():
        if one.job == length and one.start >= length:
            raise PolicyFault(f"a job of 4 cores that came at 5 s started at {one.start:g} s, when nothing else was "
                              "left: a stream of small jobs starves it. planner(machine, now).reserve(entry) holds a "
                              "place for a job; check_policy(..., may_starve=True) if that is meant")


def _mix(seed: int) -> tuple[list[TrialJob], list[NodeResources]]:
    """Jobs of all kinds on a small machine, the same for the same seed."""
    state = seed

    def draw(n: int) -> int:
        nonlocal state
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        return (state >> 33) % n

    cores, gpus, count = 2 + draw(6), draw(3), 1 + draw(4)
    shapes = [Request(), Request(cores=cores), Request(cores=1 + draw(cores), gpus=draw(gpus + 1)),
              Request(tasks=count * cores), Request(nodes=count, tasks=count, exclusive=True)]
    jobs, arrival = [], 0.0
    for _ in range(40):
        arrival += draw(4)
        seconds = 1.0 + draw(9)
        jobs.append(TrialJob(arrival, seconds, seconds * draw(3), shapes[draw(len(shapes))], 14 + draw(4), 1 + draw(3)))
    return jobs, [node(cores, gpus, i) for i in range(count)]
