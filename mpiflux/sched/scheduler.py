"""A scheduler of the tree: messages in, messages out.

It owns a queue and a policy, and what is below it is either children (:mod:`mpiflux.sched.dealing`) or executors
(:mod:`mpiflux.sched.leasing`); it treats both alike. It reads no clock and sends nothing itself:
``receive(src, message, now)`` changes its state, ``settle(now)`` lets the policy work once for all that was received
and returns what is to be sent. The same code runs under MPI, in one process, and in simulation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Protocol, cast

from mpiflux.model import messages as m
from mpiflux.model.apart import executor_of, is_apart
from mpiflux.model.records import FLAG_ALONE, FLAG_NOT_STARTED, FLAG_REASON, NO_R, PACK, ids
from mpiflux.model.states import Result
from mpiflux.sched.catalog import Catalog
from mpiflux.sched.explain import Fact, place_in_line
from mpiflux.sched.merging import merged
from mpiflux.sched.own import Counted, Mistake, blame, check_taken, is_own, name_of
from mpiflux.sched.policies import Machine, Policy
from mpiflux.sched.queue import Entry, WorkQueue, split_out
from mpiflux.sched.urgency import HELD

_ROOT = 0
IDLE = 30.0
"""Seconds after which a user's policy that starts nothing is told of."""
_LOOK = 32
"""Entries that are looked at then."""
Action = tuple[int, m.Message]
"""(destination endpoint, message)."""


class Below(Protocol):
    """What a scheduler gives its jobs to."""

    now: float
    """The time, which the scheduler sets before it asks for anything."""

    catalog: Catalog
    again: bool
    """Set by :meth:`collect` when another round of decisions is due although nothing has come."""
    due: float
    """When there may be something to do or to decide though nothing comes; infinity: never. The scheduler sets it
    back."""
    quiet: bool
    """Set by :meth:`report` when no decision can change by what it was told: jobs run as was assumed."""

    @property
    def lets_go(self) -> bool:
        """Whether what comes back unstarted may go to whoever has recalled it, before it is thought about here."""

    def start(self, entry: Entry) -> int:
        """Take jobs from the front of an entry; how many."""

    def report(self, src: int, report: m.Report, now: float) -> list[m.Chunk]:
        """Account for what ended below; returns chunks that came back unstarted."""

    def holding(self, wanted: frozenset[int]) -> Iterable[int]:
        """The jobs of ``wanted`` that were sent below and have not ended; empty: all that were."""

    def lost(self, executor: int) -> list[tuple[int, int]]:
        """Everything that an executor or child had is lost: (job id, attempt)."""

    def cancel(self, message: m.Cancel) -> list[m.Chunk]:
        """Pass a cancellation on; returns jobs that had not been sent yet."""

    def pause(self, message: m.Pause) -> None:
        """Pass it on to the schedulers below."""

    def reach(self, message: m.Listen | m.Signal | m.Stdin) -> None:
        """Pass on what is for jobs that run below."""

    def part(self, src: int, message: m.Message, now: float) -> list[Action] | None:
        """A message about a part of a job that spans nodes, or a piece of output: what is to be sent; None when it
        is output of no such job."""

    def regrow(self, message: m.Regrow, now: float) -> tuple[list[tuple[int, int]], list[m.Chunk]]:
        """Ranks are lost: what is below is not what it was. What was lost, (job id, attempt); what was not sent yet."""
    def forget(self, groups: Sequence[int]) -> None:
        """All jobs of these groups have ended: tell those below who know them."""

    def stop(self) -> None:
        """Start nothing more."""

    def collect(self, now: float) -> list[Action]:
        """What has to be sent below since the last call."""

    def balance(self, now: float) -> list[Action]:
        """Called when the queue is empty: even out what is below."""

    def pull(self, n: int, now: float) -> list[Action]:
        """Ask those below for up to ``n`` jobs that they have not started."""

    def recall(self, n: int) -> list[m.Chunk]:
        """Up to ``n`` jobs that nobody below has been sent."""

    def explain(self, message: m.Explain) -> list[Fact] | None:
        """Why a job that is not in the queue has not started; None: somebody below was asked."""

    def lacks(self, entry: Entry) -> list[Fact]:
        """What a queued job waits for below."""

    def withdraw(self, message: m.Urgency) -> list[m.Chunk]:
        """The jobs of a change of urgency that nobody below has been sent; tell who was sent others."""

    def lend(self, message: m.Borrow, now: float) -> None:
        """Free resources that the parent wants."""

    def lent(self, src: int, message: m.Lend) -> None:
        """A child has freed what it was asked for."""

    def regain(self, shares: tuple[m.NodeShare, ...]) -> None:
        """The parent gives back what it borrowed."""

    def everybody(self) -> Sequence[int]:
        """All endpoints below."""

    def could_start(self, entry: Entry) -> bool:
        """Whether there is room for a job of a queued entry, and nothing is held for others."""

    def own(self) -> object | None:
        """What below decides by a user's class."""


class Scheduler:
    """See the module's text. ``number`` is its endpoint, ``parent`` whom it reports to, ``name`` what people call it.

    A mistake in a user's policy or distribution stops it: it tells upwards, and starts nothing more.
    """

    def __init__(self, number: int, parent: int, policy: Policy, below: Below, catalog: Catalog,
                 name: str = "") -> None:
        self.number, self.parent = number, parent
        self.name = name or (f"scheduler {number}" if number else "the root scheduler")
        self.policy, self.below, self.catalog = policy, below, catalog
        self.queue = WorkQueue(catalog.priority)
        self.stopped = self.paused = False
        self._stopping: set[int] = set()
        """Who below has not answered a Stop yet."""
        self._cancelled: dict[int, m.Cancel] = {}
        """Jobs that were below when they were cancelled, until their end is reported: they may come back instead."""
        self._out: list[Action] = []
        self._changed = False
        self._owed = 0
        """Jobs that the parent has recalled and that could not be given back yet."""
        self._own = is_own(policy)
        self._idle_since = -1.0
        """Since when it has started nothing although it could; below 0: that is not so."""
        self._idle_jobs = 0

    def receive(self, src: int, message: m.Message, now: float) -> None:
        """Take one message. Nothing is decided before :meth:`settle`."""
        self.queue.now = self.below.now = now
        if isinstance(message, m.Report):
            self._report(src, message, now)
            if self.below.quiet:
                return
        elif isinstance(message, m.Submit):
            self._owed = 0
            if not self.stopped:
                for chunk in message.chunks:
                    for part in self._by_node(chunk):
                        for urgency, piece in self._keep(part):
                            self.queue.push(piece, urgency)
        elif isinstance(message, m.Declare):
            self.catalog.add(message)
        elif isinstance(message, m.Forget):
            self.below.forget(message.groups)
            self.catalog.forget(message.groups)
            return
        elif isinstance(message, m.Cancel):
            self._cancel(message, now)
        elif isinstance(message, m.Recall):
            self._recall(message.n)
        elif isinstance(message, m.Urgency):
            self._urge(message)
        elif isinstance(message, m.Explain):
            self._explain(message)
        elif isinstance(message, m.ExecutorLost):
            self._lost(message.executor, now)
        elif isinstance(message, m.Regrow):
            self._regrow(message, now)
        elif isinstance(message, m.Stop):
            self._stop(message)
        elif isinstance(message, m.Stopped):
            self._stopped_below(src)
        elif isinstance(message, m.Borrow):
            self.queue.era += 1
            self.below.lend(message, now)
        elif isinstance(message, m.Lend):
            self.below.lent(src, message)
        elif isinstance(message, m.Return):
            self.below.regain(message.shares)
        elif isinstance(message, (m.PartStarted, m.PartFailed, m.PartEnded, m.Barrier)):
            self._out += self.below.part(src, message, now) or ()
        elif isinstance(message, m.Output):
            pieces = self.below.part(src, message, now)
            self._out += [(self.parent, message)] if pieces is None else pieces
            return
        elif isinstance(message, (m.Listen, m.Signal, m.Stdin)):
            self.below.reach(message)
        elif isinstance(message, m.Pause):
            self.paused = message.on
            self.below.pause(message)
        elif isinstance(message, (m.NewR, m.Fault, m.Warned, m.Borrowed, m.Explained, m.StdinTaken)):
            self._out.append((self.parent, message))
            return
        self._changed = True

    def settle(self, now: float) -> list[Action]:
        """Let the policy start what may start; everything that is to be sent, in order."""
        self.below.now = now
        is_due, self.below.due = now >= self.below.due, math.inf
        if self._changed or is_due:
            self._changed = False
            if self.queue.jobs and not self.paused:
                self._decide(now)
            if self._owed and self.queue.jobs:
                # they came back from below and do not start here
                self._recall(self._owed)
        if not self.stopped:
            self._out += self.below.collect(now)
            if self.below.again and self.queue.jobs and not self.paused:
                self._decide(now)
                self._out += self.below.collect(now)
            if not self.queue.jobs and not self.paused:
                self._out += self.below.pull(self._owed, now) if self._owed else self.below.balance(now)
        out, self._out = self._out, []
        return merged(out, self.parent)

    @property
    def due(self) -> float:
        """When to settle though nothing comes; infinity: never."""
        return self.below.due

    def _decide(self, now: float) -> None:
        """Ask the policy. What it raises is our own mistake, unless it is a user's or asks a user's distribution."""
        try:
            if not self._own:
                self.policy.schedule(self.queue, self.below, now)
                return
            counted, before = Counted(self.below), self.queue.jobs
            try:
                self.policy.schedule(self.queue, cast(Machine, counted), now)
            except Exception as error:
                raise blame("policy", self.policy, error) from error
            check_taken(self.policy, before - self.queue.jobs, counted.started)
        except Mistake as mistake:
            self.stopped = True
            self.queue.clear()
            self._out.append((self.parent, m.Fault(f"{self.name}: {mistake}", -1, fatal=True)))

    def patrol(self, now: float) -> list[Action]:
        """To be called every few seconds: tells once when a user's class has started nothing for :data:`IDLE` seconds
        although it could."""
        own = self.policy if self._own else self.below.own()
        jobs = self.queue.jobs
        if own is None or not jobs or self.paused or self.stopped or self._idle_since == math.inf:
            return []
        if self._idle_since < 0 or jobs != self._idle_jobs:
            self._idle_since, self._idle_jobs = now, jobs
            return []
        if now < self._idle_since + IDLE:
            return []
        self.below.now = now
        entry = next(filter(self.below.could_start, islice(self.queue, _LOOK)), None)
        if entry is None:
            self._idle_since = now
            return []
        waited, self._idle_since = now - self._idle_since, math.inf
        what = "policy" if self._own else "distribution"
        group, index = self.catalog.group(entry.chunk.group), entry.chunk.start
        return [(self.parent, m.Fault(
            f"{self.name}: {what} {name_of(own)} has started nothing for {waited:.0f} s, although "
            f"{group.name}[{index}] would fit into what is free and {jobs} {'jobs are' if jobs > 1 else 'job is'} "
            f"queued; if it never will, end the run, and go on with run --resume and another {what}", -1))]

    def _stop(self, message: m.Stop) -> None:
        self.stopped = True
        self.below.stop()
        self.queue.clear()
        self._stopping = set(self.below.everybody())
        self._out += [(endpoint, message) for endpoint in self.below.everybody()]
        if not self._stopping:
            self._out.append((self.parent, m.Stopped()))

    def _stopped_below(self, endpoint: int) -> None:
        self._stopping.discard(endpoint)
        if not self._stopping:
            self._out.append((self.parent, m.Stopped()))

    def _report(self, src: int, report: m.Report, now: float) -> None:
        for chunk in self.below.report(src, report, now):
            if not self.stopped:
                self._requeue(chunk, now)
        if self._cancelled and report.records:
            for job in ids(report.records):
                self._cancelled.pop(job, None)
        if report.records or report.started:
            # leases, and chunks that were queued again here, concern nobody above
            up = m.Report(report.records, report.output, report.reasons, report.started)
            self._out.append((self.parent, up))

    def _by_node(self, chunk: m.Chunk) -> list[m.Chunk]:
        """A chunk of jobs that run on one node each, as one for each node; any other as it is."""
        nodes = len(self.catalog.group(chunk.group).on)
        if nodes < 2 or len(chunk) < 2:
            return [chunk]
        indices = range(chunk.start, chunk.stop, chunk.step)
        parts: dict[int, list[int]] = {}
        for index in indices:
            parts.setdefault(index % nodes, []).append(index)
        stride = math.lcm(chunk.step, nodes)
        return [m.Chunk(chunk.group, part[0], part[-1] + 1, stride, chunk.attempt, chunk.alone)
                for part in parts.values()]

    def _recall(self, n: int) -> None:
        """Give back what would start last; what is missing, as soon as it comes back from below: nobody above would
        hear of it otherwise, and ask again."""
        back = self.queue.take_last(n)
        back += self.below.recall(n - sum(map(len, back)))
        self._owed = n - sum(map(len, back))
        if back:
            self._out.append((self.parent, m.Report(returned=tuple((-1, chunk) for chunk in back))))

    def _explain(self, message: m.Explain) -> None:
        entry = self.queue.find(message.group, message.index)
        facts: list[Fact] | None
        if entry is None:
            facts = self.below.explain(message)
        elif entry.lane.priority == HELD:
            facts = [("it is held: its urgency is 0", 0.0)]
        else:
            facts = [*self.below.lacks(entry),
                     *place_in_line(self.queue, self.policy, entry, message.index, self.catalog, self.number)]
        if facts is not None:
            self._out.append((self.parent, m.Explained(message.id, tuple(facts))))

    def _urge(self, message: m.Urgency) -> None:
        self.catalog.urge(message)
        if self.stopped:
            return
        queued = self.queue.pull(message.group, message.start, message.stop)
        queued += [(chunk, self.queue.now) for chunk in self.below.withdraw(message)]
        for chunk, arrived in queued:
            for urgency, piece in self._keep(chunk):
                self.queue.insert(piece, urgency, arrived)

    def _keep(self, chunk: m.Chunk) -> list[tuple[int, m.Chunk]]:
        """The parts of a chunk that are to be queued here, by urgency. Held ones go up: below the root they would
        take the place of jobs that can start."""
        parts = self.catalog.by_urgency(chunk)
        if self.number == _ROOT:
            return parts
        held = tuple((-1, part) for urgency, part in parts if urgency == HELD)
        if held:
            self._out.append((self.parent, m.Report(returned=held)))
        return [part for part in parts if part[0] != HELD]

    def _requeue(self, chunk: m.Chunk, now: float) -> None:
        """Queue again what came back unstarted, without what was cancelled on its way."""
        kept = [chunk]
        if self._cancelled:
            first = self.catalog.group(chunk.group).first_id
            cancelled: list[m.Chunk] = []
            kept = split_out(chunk, lambda _, index: first + index in self._cancelled, cancelled)
            for one in cancelled:
                why = self._cancelled.pop(first + one.start)
                self._end_unstarted([(first + one.start, one.attempt)], Result(why.result), why.reason, now)
        if self._owed and self.below.lets_go:
            kept = [rest for part in kept if (rest := self._pay(part)) is not None]
        for part in reversed(kept):
            for urgency, piece in reversed(self._keep(part)):
                self.queue.push_front(piece, urgency)

    def _pay(self, chunk: m.Chunk) -> m.Chunk | None:
        """Give the parent what it is owed of jobs that came back; what is left of them."""
        n = min(self._owed, len(chunk))
        if not n:
            return chunk
        self._owed -= n
        paid, rest = chunk.split(n)
        self._out.append((self.parent, m.Report(returned=((-1, paid),))))
        return rest

    def _cancel(self, message: m.Cancel, now: float) -> None:
        wanted = frozenset(message.ids)

        def is_wanted(chunk: m.Chunk, index: int) -> bool:
            return not wanted or self.catalog.group(chunk.group).first_id + index in wanted

        removed = self.queue.remove(is_wanted) + self.below.cancel(message)
        self._cancelled.update(dict.fromkeys(self.below.holding(wanted), message))
        jobs = [(job, chunk.attempt) for chunk in removed for job in self.catalog.ids(chunk)]
        self._end_unstarted(jobs, Result(message.result), message.reason, now)

    def _lost(self, executor: int, now: float) -> None:
        # the answer tells the executor's rank that what comes after it is meant for the new supervisor
        self._out.append((executor, m.ExecutorLost(executor)))
        alone = FLAG_ALONE if is_apart(executor) else 0
        self._end_unstarted(self.below.lost(executor), Result.LOST, "its supervisor was killed", now, alone)
        if executor in self._stopping:
            self._stopped_below(executor)

    def _regrow(self, message: m.Regrow, now: float) -> None:
        jobs, back = self.below.regrow(message, now)
        for chunk in reversed(back):
            if not self.stopped:
                self._requeue(chunk, now)
        self._end_unstarted(jobs, Result.LOST, message.reason, now)
        self._out.append((self.parent, m.Regrown(len(jobs))))
        if self.paused:
            self._out += [(node.id, m.Pause(True)) for node in message.gained]
        gone = {*message.lost, *message.executors}
        for endpoint in [one for one in self._stopping if executor_of(one) in gone]:
            self._stopped_below(endpoint)

    def _end_unstarted(self, jobs: list[tuple[int, int]], result: Result, reason: str, now: float,
                       flags: int = 0) -> None:
        if not jobs:
            return
        flags |= FLAG_NOT_STARTED | FLAG_REASON
        records = b"".join(PACK.pack(job, attempt, result, flags, 0, 0, NO_R, 0, now, now, now, 0, 0, 0, 0, 0, 0)
                           for job, attempt in jobs)
        self._out.append((self.parent, m.Report(records, reasons={job: reason for job, _ in jobs})))
