"""A simulated supervisor: the executor's side of the protocol, with durations in place of processes.

It follows :mod:`mpiflux.node.supervisor` step by step; the constants of both are held together by a test.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from mpiflux.model import messages as m
from mpiflux.model.jobspec import JobGroup
from mpiflux.model.records import FLAG_NOT_STARTED, FLAG_REASON, NO_R, PACK
from mpiflux.model.states import Result
from mpiflux.sim.costs import Costs
from mpiflux.sim.engine import Engine
from mpiflux.sim.watch import Watcher

YOUNG = 0.01
FLUSH = 0.05
STALE = 0.05
ANNOUNCED = 3
GRACE = 5.0
_TERM = 0.002
"""Seconds from TERM to the end of a job that obeys it."""
_LATER = 1e-6

Item = tuple[int, int, m.Message]
"""(destination, source, message)."""


@dataclass(frozen=True)
class Outcome:
    """What an attempt would do if it were left alone."""

    seconds: float
    result: Result = Result.COMPLETED
    returncode: int = 0
    stubborn: bool = False
    """It ignores TERM."""
    poison: bool = False
    """It does not end, but kills its supervisor."""


class Behaviour(Protocol):
    """What jobs do, in place of programs."""

    def outcome(self, group: JobGroup, index: int, attempt: int) -> Outcome: ...


class _Span:
    """What is left of a chunk that was fed."""

    __slots__ = ("alone", "attempt", "group", "next", "step", "stop")

    def __init__(self, group: JobGroup, chunk: m.Chunk) -> None:
        self.group, self.attempt, self.alone = group, chunk.attempt, chunk.alone
        self.next, self.stop, self.step = chunk.start, chunk.stop, chunk.step

    def __len__(self) -> int:
        return len(range(self.next, self.stop, self.step))

    def chunk(self) -> m.Chunk:
        return m.Chunk(self.group.number, self.next, self.stop, self.step, self.attempt, self.alone)


class _Lease:
    __slots__ = ("number", "owner", "r_id", "revoked", "shape", "tasks")

    def __init__(self, grant: m.Grant, owner: int) -> None:
        self.number, self.owner, self.shape, self.r_id = grant.lease, owner, grant.shape, grant.r_id
        self.tasks = sum(share.tasks for share in grant.r.shares)
        self.revoked = False


class _Job:
    __slots__ = ("attempt", "ended", "finish", "group", "id", "killed", "lease", "part", "reason", "result",
                 "returncode", "stubborn", "t_start")

    def __init__(self, group: JobGroup, index: int, attempt: int, lease: _Lease, now: float) -> None:
        self.group, self.attempt, self.lease, self.t_start = group, attempt, lease, now
        self.id = group.first_id + index
        self.part: m.Part | None = None
        """Of a job that spans nodes: what runs here."""
        self.finish = now
        self.result = Result.NONE
        self.returncode = 0
        self.reason = ""
        self.killed = self.stubborn = self.ended = False


class _Report:
    """A report in the making."""

    __slots__ = ("done", "idle", "reasons", "records", "returned", "started")

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.started: list[bytes] = []
        self.reasons: dict[int, str] = {}
        self.returned: list[tuple[int, m.Chunk]] = []
        self.idle: list[int] = []
        self.done: dict[tuple[int, int], list[float]] = {}

    def message(self) -> m.Report:
        return m.Report(b"".join(self.records), reasons=self.reasons, started=b"".join(self.started),
                        returned=tuple(self.returned), idle=tuple(self.idle),
                        done=tuple((*key, int(n), seconds) for key, (n, seconds) in self.done.items()))


class SimExecutor:
    """One supervisor process. ``send(items, when)`` puts a batch on its socket to the rank.

    ``quantum``: while it is busy it goes on for so many virtual seconds in one event and looks at messages only
    then: inexact by that much, and many times faster for jobs of a millisecond.
    """

    def __init__(self, number: int, engine: Engine, costs: Costs, behaviour: Behaviour, watcher: Watcher,
                 send: Callable[[list[Item], float], None], quantum: float = 0.0,
                 kill: Callable[[int], None] = lambda number: None) -> None:
        self.number, self.engine, self.costs, self.behaviour, self.watcher = number, engine, costs, behaviour, watcher
        self.send, self.quantum, self.kill = send, quantum, kill
        self.groups: dict[int, JobGroup] = {}
        self.leases: dict[int, _Lease] = {}
        self.backlog: dict[int, deque[_Span]] = {}
        self.running: dict[int, _Job] = {}
        self.stopping: set[int] = set()
        self.busy = 0.0
        """Seconds of its own CPU."""
        self.busy_until = 0.0
        self.stalled_until = 0.0
        self.born = self.heard = engine.now
        """When it last knew its rank to be taken for alive."""
        self.alive = True
        self._idle: dict[int, deque[_Lease]] = {}
        self.cut = False
        self._owner_of_shape: dict[int, int] = {}
        self._moved: dict[int, float] = {}
        self._count: dict[int, int] = {}
        """Jobs in the backlog, by shape."""
        self._low: dict[int, int] = {}
        """A count at which it is time to report, so that more come before the backlog is empty."""
        self._finishing: list[tuple[float, int, _Job]] = []
        self._pushed = 0
        self._young: deque[_Job] = deque()
        self._reports: dict[int, _Report] = {}
        self._oldest = 0.0
        self._urgent = False
        self._told: list[Item] = []
        """Messages about parts, sent before any report."""
        self._inbox: list[Item] = []
        self._due = math.inf

    # -- events --------------------------------------------------------------------------------------------------

    def arrive(self, items: list[Item]) -> None:
        """A batch has come from the rank."""
        if self.alive:
            self._inbox += items
            self._wake(self.engine.now)

    def die(self) -> None:
        """Killed: everything that it had not sent is gone, its jobs die with it."""
        self.alive = False
        self.watcher.executor_died(self.number)

    def cut_off(self) -> None:
        """The same, and nothing that it has sent arrives any more."""
        self.cut = True
        if self.alive:
            self.die()

    def stall(self, seconds: float) -> None:
        """It gets no CPU for a while; its jobs do."""
        self.busy_until = self.stalled_until = max(self.busy_until, self.engine.now) + seconds

    def unwatch(self) -> None:
        """Nobody counts on it any more: what it runs from now on does not matter, and it ends now for who looks on."""
        self.watcher.executor_died(self.number)
        self.watcher = Watcher()

    def _wake(self, when: float) -> None:
        when = max(when, self.busy_until)
        if when < self._due:
            self._due = when
            self.engine.at(when, self._turn, when)

    def _turn(self, due: float) -> None:
        if due != self._due or not self.alive:
            return
        self._due = math.inf
        now = self.engine.now
        if now < self.busy_until:
            self._wake(self.busy_until)
            return
        horizon = now + self.quantum
        inbox, self._inbox = self._inbox, []
        if inbox:
            taken = self.costs.batch + self.costs.message * len(inbox)
            now += taken
            self.busy += taken
            for _dst, src, message in inbox:
                self._handle(src, message, now)
        while True:
            now = self._reap(now)
            now = self._start_jobs(now)
            self._timers(now)
            now = self._flush(now)
            following = self._next(now)
            if following > horizon:
                break
            now = max(now, following)
        self.busy_until = now
        if following < math.inf:
            self._wake(following)

    def _next(self, now: float) -> float:
        soonest = math.inf
        while self._finishing and self._finishing[0][0] != self._finishing[0][2].finish:
            heapq.heappop(self._finishing)  # it was killed: another entry says when it ends
        if self._finishing:
            soonest = self._finishing[0][0]
        if self._young:
            soonest = min(soonest, self._young[0].t_start + YOUNG)
        soonest = min(soonest, self._flush_due())
        for shape, spans in self.backlog.items():
            if spans:
                soonest = min(soonest, self._moved[shape] + STALE + _LATER)
        return soonest

    # -- messages ------------------------------------------------------------------------------------------------

    def _handle(self, src: int, message: m.Message, now: float) -> None:
        if isinstance(message, m.Feed):
            if self.stopping:
                return
            self._owner_of_shape[message.shape] = src
            spans = self.backlog.setdefault(message.shape, deque())
            spans.extend(_Span(self.groups[chunk.group], chunk) for chunk in message.chunks)
            self._count[message.shape] = sum(map(len, spans))
            self._low[message.shape] = self._count[message.shape] // 3
            self._moved[message.shape] = now
        elif isinstance(message, m.Grant):
            lease = _Lease(message, src)
            self.watcher.leased(self.number, message.lease, message.r)
            self.leases[message.lease] = lease
            self._idle.setdefault(message.shape, deque()).append(lease)
        elif isinstance(message, m.Revoke):
            if message.lease in self.leases:
                self.leases[message.lease].revoked = True
        elif isinstance(message, m.Part):
            if not self.stopping:
                self._start_part(src, message, now)
        elif isinstance(message, m.Declare):
            self.groups[message.group.number] = message.group
        elif isinstance(message, m.Forget):
            for number in message.groups:
                self.groups.pop(number, None)
        elif isinstance(message, m.Cancel):
            self._cancel(message, now)
        elif isinstance(message, m.Stop):
            self.stopping.add(src)
            self.backlog.clear()
            for job in self.running.values():
                self._end(job, Result.LOST, "the run was interrupted", message.grace, now)

    def _cancel(self, message: m.Cancel, now: float) -> None:
        wanted = set(message.ids)
        for job in self.running.values():
            if not wanted or job.id in wanted:
                self._end(job, Result(message.result), message.reason, GRACE, now)
        for shape, spans in self.backlog.items():
            kept: deque[_Span] = deque()
            for span in spans:
                for index in range(span.next, span.stop, span.step):
                    if not wanted or span.group.first_id + index in wanted:
                        self._record_unstarted(shape, span, index, message, now)
                    else:
                        kept.append(_Span(span.group, m.Chunk(0, index, index + 1, 1, span.attempt, span.alone)))
            self.backlog[shape] = kept
            self._count[shape] = len(kept)

    def _record_unstarted(self, shape: int, span: _Span, index: int, why: m.Cancel, now: float) -> None:
        report = self._report(self._owner_of_shape[shape])
        job = span.group.first_id + index
        report.records.append(PACK.pack(job, span.attempt, why.result, FLAG_NOT_STARTED | FLAG_REASON, 0, 0, NO_R, 0,
                                        now, now, now, 0, 0, 0, 0, 0, 0))
        report.reasons[job] = why.reason
        report.done.setdefault((shape, span.group.number), [0, 0.0])[0] += 1
        self._urgent = True

    # -- jobs ----------------------------------------------------------------------------------------------------

    def _start_jobs(self, now: float) -> float:
        for shape, leases in self._idle.items():
            spans = self.backlog.get(shape)
            revoked = [lease for lease in leases if lease.revoked]
            if revoked:
                self._idle[shape] = leases = deque(lease for lease in leases if not lease.revoked)
                self._end_leases(revoked)
            # the lease granted first has the job fed first: each was granted for its own
            while leases and spans:
                span = spans[0]
                index = span.next
                span.next = index + span.step
                if span.next >= span.stop:
                    spans.popleft()
                self._count[shape] -= 1
                if self._count[shape] == self._low[shape] and spans:
                    self._urgent = True
                self._start(leases.popleft(), span.group, index, span.attempt, now)
                now += self.costs.spawn
                self.busy += self.costs.spawn
            if leases:
                self._end_leases(leases)
                leases.clear()
        return now

    def _start(self, lease: _Lease, group: JobGroup, index: int, attempt: int, now: float) -> None:
        self._moved[lease.shape] = now
        job = _Job(group, index, attempt, lease, now)
        self.watcher.job_started(self.number, lease.number, job.id, attempt)
        self._run(job, self.behaviour.outcome(group, index, attempt), now)
        if attempt >= ANNOUNCED:
            self._report_started(job)
            self._urgent = True
        elif job.finish > now + YOUNG:
            self._young.append(job)

    def _run(self, job: _Job, outcome: Outcome, now: float) -> None:
        """Decide how and when a job that starts now ends, if nobody interferes."""
        seconds, job.result, job.returncode = outcome.seconds, outcome.result, outcome.returncode
        job.stubborn = outcome.stubborn
        limit = job.group.time_limit
        if limit and seconds > limit:
            job.killed, job.result = True, Result.TIMEOUT
            job.reason = f"exceeded its time limit of {limit:g} s"
            seconds = min(seconds, limit + (GRACE if job.stubborn else _TERM))
        self.running[job.id] = job
        if outcome.poison:
            self.engine.at(now + max(seconds, 2 * YOUNG), self._poisoned, job)
            seconds = 1e6
        self._due_at(job, now + self.costs.spawn + self.costs.process + seconds)

    def _poisoned(self, job: _Job) -> None:
        if self.alive and not job.ended:
            self.kill(self.number)

    def _start_part(self, src: int, part: m.Part, now: float) -> None:
        """Start this node's tasks. A job that fails does so in one of its parts; the others would go on."""
        group = self.groups[part.group]
        r = m.ResourceSet((part.share,))
        # the watcher tells leases by number, and a part has none
        number = (1 << 62) + (part.id << 20) + (part.attempt << 10) + part.part
        job = _Job(group, part.index, part.attempt, _Lease(m.Grant(number, -1, 0, r), src), now)
        job.part = part
        self.watcher.leased(self.number, number, r)
        self.watcher.part_started(self.number, part)
        outcome = self.behaviour.outcome(group, part.index, part.attempt)
        if outcome.result is Result.FAILED and part.part != part.attempt % len(part.tasks):
            outcome = Outcome(2 * outcome.seconds + 1.0, stubborn=outcome.stubborn)
        self._run(job, outcome, now)
        self._told.append((src, self.number, m.PartStarted(job.id, job.attempt, part.part, now, 1)))

    def _end_part(self, job: _Job, part: m.Part, now: float) -> None:
        lease = job.lease
        self.watcher.part_ended(self.number, part)
        self.watcher.released(self.number, lease.number)
        record = PACK.pack(job.id, job.attempt, job.result, FLAG_REASON if job.reason else 0, job.returncode,
                           lease.tasks, lease.owner, 0, job.t_start, job.t_start, now, 0, 0, 0, 0, 0, 1)
        if job.result is Result.FAILED:
            failed = m.PartFailed(job.id, job.attempt, part.part, job.result, job.returncode, job.reason)
            self._told.append((lease.owner, self.number, failed))
        self._told.append((lease.owner, self.number,
                           m.PartEnded(job.id, job.attempt, part.part, record, b"", job.reason)))

    def _due_at(self, job: _Job, when: float) -> None:
        job.finish = when
        self._pushed += 1
        heapq.heappush(self._finishing, (when, self._pushed, job))

    def _end(self, job: _Job, result: Result, reason: str, grace: float, now: float) -> None:
        if job.killed and job.result is not Result.TIMEOUT:
            return
        if job.killed and now >= job.t_start + job.group.time_limit:
            return
        job.killed, job.result, job.reason = True, result, reason
        job.returncode = -15
        self._due_at(job, min(job.finish, now + (grace if job.stubborn else min(grace, _TERM))))

    def _reap(self, now: float) -> float:
        while self._finishing and self._finishing[0][0] <= now:
            when, _, job = heapq.heappop(self._finishing)
            if when != job.finish or job.ended:
                continue
            now += self.costs.reap
            self.busy += self.costs.reap
            self._finish(job, now)
        return now

    def _finish(self, job: _Job, now: float) -> None:
        lease = job.lease
        job.ended = True
        del self.running[job.id]
        if job.part is not None:
            self._end_part(job, job.part, now)
            return
        report = self._report(lease.owner)
        flags = 0
        if job.reason:
            flags = FLAG_REASON
            report.reasons[job.id] = job.reason
        report.records.append(PACK.pack(job.id, job.attempt, job.result, flags, job.returncode, lease.tasks,
                                        lease.owner, lease.r_id, job.t_start, job.t_start, now, 0, 0, 0, 0, 0, 1))
        self.watcher.job_ended(self.number, job.id, job.attempt, job.result)
        self._idle.setdefault(lease.shape, deque()).append(lease)
        if now - job.t_start > FLUSH:
            self._urgent = True
        else:
            self._oldest = self._oldest or now
        done = report.done.setdefault((lease.shape, job.group.number), [0, 0.0])
        done[0] += 1
        done[1] += now - job.t_start

    def _end_leases(self, leases: Iterable[_Lease]) -> None:
        for lease in leases:
            del self.leases[lease.number]
            self.watcher.released(self.number, lease.number)
            self._report(lease.owner).idle.append(lease.number)
        self._urgent = True

    # -- reports -------------------------------------------------------------------------------------------------

    def _timers(self, now: float) -> None:
        while self._young and self._young[0].t_start + YOUNG <= now:
            job = self._young.popleft()
            if not job.ended:
                self._report_started(job)
                self._oldest = self._oldest or now
        for shape, spans in self.backlog.items():
            if spans and now > self._moved[shape] + STALE:
                report = self._report(self._owner_of_shape[shape])
                report.returned.extend((shape, span.chunk()) for span in spans)
                spans.clear()
                self._urgent = True

    def _report_started(self, job: _Job) -> None:
        lease = job.lease
        self._report(lease.owner).started.append(
            PACK.pack(job.id, job.attempt, 0, 0, 0, lease.tasks, lease.owner, lease.r_id, job.t_start,
                      job.t_start, 0, 0, 0, 0, 0, 0, 1))

    def _report(self, owner: int) -> _Report:
        found = self._reports.get(owner)
        if found is None:
            found = self._reports[owner] = _Report()
        return found

    def _flush_due(self) -> float:
        return self._oldest + FLUSH if self._oldest else math.inf

    def _flush(self, now: float) -> float:
        stopped = bool(self.stopping) and not self.running
        if not (self._urgent or stopped or self._told
                or now >= self._flush_due() or (self._oldest and not self.running)):
            return now
        items = self._told + [(owner, self.number, report.message()) for owner, report in self._reports.items()]
        self._told = []
        self._reports.clear()
        self._oldest = 0.0
        self._urgent = False
        if stopped:
            items += [(src, self.number, m.Stopped()) for src in sorted(self.stopping)]
            self.stopping.clear()
        if items:
            taken = self.costs.batch + self.costs.message * len(items)
            now += taken
            self.busy += taken
            self.send(items, now)
        return now
