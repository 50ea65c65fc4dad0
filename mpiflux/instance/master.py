"""What only rank 0 does: it owns the store, releases groups, runs attempts again, and decides when all is over.

Everything that arrives is a batch: records are applied to the job table and appended to the journal as they came,
without a look at single jobs unless one has to run again.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from mpiflux.model import messages as m
from mpiflux.model.jobspec import Workflow
from mpiflux.model.records import FIELDS, FLAG_REASON
from mpiflux.model.states import Result
from mpiflux.overlay import address
from mpiflux.sched.dependencies import Dependencies, Refuse, Verdict
from mpiflux.store.jobtable import Counts, JobTable
from mpiflux.store.journal import Journal

RECORD = np.dtype(list(FIELDS))
ROOT = 0
GRACE = 5.0
"""Seconds between TERM and KILL when the run is interrupted."""
_BEAT = 0.1
_FIRST_FAILURES = 5
_REFUSED_AT_ONCE = 10_000


class Observer(Protocol):
    """Whom the master tells how the run goes; prints for people."""

    def progress(self, view: View) -> None:
        """Called about ten times a second."""

    def note(self, text: str) -> None:
        """Something a person should hear of."""


@dataclass
class View:
    """The run as rank 0 sees it."""

    counts: Counts
    now: float
    t_start: float
    cores: int
    busy: float = 0.0
    """Core-seconds of ended attempts."""
    failures: list[int] = field(default_factory=list)
    """Ids of the first jobs that failed."""
    interrupted: int = 0
    """The signal that ended the run early, 0 while none did."""
    journal_error: str | None = None
    retried: int = 0
    lost: int = 0


class Master:
    """Implements :class:`mpiflux.instance.rank.Master`. ``table`` may hold what an earlier instance finished."""

    def __init__(self, workflow: Workflow, journal: Journal, table: JobTable, observer: Observer, *,
                 cores: int, ranks: int, clock: Callable[[], float], fail_fast: bool = False, t_end: float = 0.0) -> None:
        self.workflow, self.journal, self.table, self.observer = workflow, journal, table, observer
        self.fail_fast, self.t_end = fail_fast, t_end
        self.dependencies = Dependencies(workflow.groups)
        now = clock()
        self.view = View(table.counts(), now, now, cores)
        self._clock, self._ranks = clock, ranks
        self._cores_of: dict[tuple[int, int], int] = {}
        self._out: list[tuple[int, m.Message]] = []
        self._verdicts: list[tuple[int, Verdict]] = []
        """(journal sequence number to wait for, verdict): nobody depends on what could still be lost."""
        self._ending_seq: int | None = None
        self._stop_by = 0.0
        self._next_beat = now
        self._over = False

    # -- begin and end -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Declare every group and submit what may start."""
        for group in self.workflow.groups:
            self._send(m.Declare(group, self.workflow.directory, self.workflow.output_limit))
        for verdict in self.dependencies.begin():
            self._carry_out(verdict)
        for group in self.workflow.groups:
            # what a resumed run had finished before
            completed, *others = self.table.group_ended(group.number)
            if completed or any(others):
                for verdict in self.dependencies.ended(group.number, completed, sum(others)):
                    self._carry_out(verdict)

    def exit_status(self) -> int:
        """The exit status of ``run`` (DESIGN 1.1)."""
        counts = self.table.counts()
        if self.view.interrupted:
            return 128 + self.view.interrupted
        return 0 if counts.completed == counts.total else 1

    def state(self) -> str:
        return "interrupted" if self.view.interrupted else "finished"

    # -- the rank's side -----------------------------------------------------------------------------------------

    def descriptors(self) -> list[int]:
        return [self.journal.wake_fd]

    def readable(self, fd: int) -> None:
        """The journal has committed, or failed."""
        self.journal.acknowledge()

    def collect(self) -> list[tuple[int, m.Message]]:
        out, self._out = self._out, []
        return out

    def next_wake(self) -> float:
        return self._next_beat

    def _send(self, message: m.Message) -> None:
        self._out.append((ROOT, message))

    def handle(self, src: int, message: m.Message, now: float) -> None:
        if isinstance(message, m.Report):
            if message.started:
                self._started(message.started)
            if message.records:
                self._ended(message, now)
        elif isinstance(message, m.Output):
            self.journal.append_output(message.id, message.attempt, message.stream, message.offset, message.data)
        elif isinstance(message, m.NewR):
            self.journal.append_rset(message.sched, message.r_id, message.r)
            self._cores_of[message.sched, message.r_id] = sum(len(share.cores) for share in message.r.shares)
        elif isinstance(message, m.Stopped):
            self._finish()
        elif isinstance(message, m.Fault):
            self.observer.note(message.text)

    def turn(self, now: float) -> None:
        """Once a loop turn: what waited for the journal, the end, the observer."""
        if self._verdicts and self._verdicts[0][0] <= self.journal.committed_seq:
            ready = [verdict for seq, verdict in self._verdicts if seq <= self.journal.committed_seq]
            self._verdicts = [pair for pair in self._verdicts if pair[0] > self.journal.committed_seq]
            for verdict in ready:
                self._carry_out(verdict)
        if self._stop_by and now > self._stop_by:
            self._finish()
        if not self._over and not self._verdicts and self._all_ended():
            self._finish()
        if now >= self._next_beat:
            self._next_beat = now + _BEAT
            self._beat(now)

    def _beat(self, now: float) -> None:
        self.view.counts, self.view.now = self.table.counts(), now
        if self.journal.error != self.view.journal_error:
            self.view.journal_error = self.journal.error
            if self.journal.error:
                self.observer.note(self.journal.error)
        if self.t_end and now >= self.t_end and not self.view.interrupted:
            self.observer.note("the time limit of the run is reached: ending what runs; go on with run --resume")
            self.signalled(signal.SIGTERM, now)
        self.observer.progress(self.view)

    def _all_ended(self) -> bool:
        counts = self.table.counts()
        return counts.inactive == counts.total

    def _finish(self) -> None:
        if not self._over:
            self._over = True
            self._out += [(address.control(rank), m.Shutdown()) for rank in range(self._ranks)]

    def signalled(self, number: int, now: float) -> None:
        """INT and TERM once: stop starting, end what runs, resumable. Twice: at once."""
        if number not in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            return
        if self.view.interrupted:
            self._finish()
            return
        self.view.interrupted = number
        self._verdicts.clear()
        self._stop_by = now + GRACE + 2.0
        self._send(m.Stop(GRACE))

    # -- jobs ----------------------------------------------------------------------------------------------------

    def _started(self, data: bytes) -> None:
        records = np.frombuffer(data, RECORD)
        news = self.table.started(records)
        if news.all():
            self.journal.append_started(data)
        elif news.any():
            self.journal.append_started(records[news].tobytes())

    def _ended(self, report: m.Report, now: float) -> None:
        place = self.journal.append_results(report.records, report.output, report.reasons)
        records = np.frombuffer(report.records, RECORD)
        applied = self.table.apply(records, *place)
        self._account(records)
        if len(applied.again) and not self.view.interrupted:
            self._again(applied.again, records, now)
        for group, (completed, *others) in applied.groups.items():
            not_completed = sum(others)
            if not_completed:
                self._note_failures(applied.ended, applied.results)
            verdicts = self.dependencies.ended(group, completed, not_completed)
            if verdicts:
                seq = self.journal.flush()
                self._verdicts += [(seq, verdict) for verdict in verdicts]

    def _account(self, records: Any) -> None:
        """Add up the core-seconds of attempts; records of a batch are mostly of few resource sets."""
        durations = records["t_finish"] - records["t_start"]
        keys = records["r_sched"].astype("u8") << np.uint64(32) | records["r_id"]
        first = keys[0]
        if (keys == first).all():
            self.view.busy += float(durations.sum()) * self._width(int(first))
            return
        unique, inverse = np.unique(keys, return_inverse=True)
        sums = np.bincount(inverse, durations)
        self.view.busy += sum(total * self._width(int(key)) for key, total in zip(unique, sums.tolist(), strict=True))

    def _width(self, key: int) -> int:
        return self._cores_of.get((key >> 32, key & 0xFFFFFFFF), 0)

    def _again(self, ids: Any, records: Any, now: float) -> None:
        lost = int(np.count_nonzero(records["result"] == Result.LOST))
        self.view.lost += lost
        self.view.retried += len(ids) - lost
        for chunk in self.table.chunks(ids):
            self.table.assign(chunk, 0)
            self._send(m.Submit((chunk,)))

    def _note_failures(self, ids: Any, results: Any) -> None:
        failed = ids[(results == Result.FAILED) | (results == Result.TIMEOUT)]
        room = _FIRST_FAILURES - len(self.view.failures)
        if room > 0:
            self.view.failures += failed[:room].tolist()
        if self.fail_fast and len(failed) and not self._over:
            self.fail_fast = False
            self._cancel_rest(int(failed[0]))

    def _cancel_rest(self, culprit: int) -> None:
        reason = f"job {culprit} failed and the run is to fail fast"
        self.observer.note(f"{reason}: cancelling the rest")
        self._verdicts.clear()
        for group in self.workflow.groups:
            if any(self.table.state[chunk.start + group.first_id - 1] == 1
                   for chunk in self.table.unfinished(group.number)[:1]):
                self._refuse(group.number, reason)
        self._send(m.Cancel((), reason))

    def _carry_out(self, verdict: Verdict) -> None:
        if isinstance(verdict, Refuse):
            self._refuse(verdict.group, verdict.reason)
            return
        group = self.workflow.groups[verdict.group]
        chunks = self.table.unfinished(group.number)
        if group.after:
            self.journal.append_group_event(group.number, self._clock(), "depend")
        for chunk in chunks:
            self.table.depend(chunk)
            self.table.assign(chunk, 0)
        if chunks:
            self._send(m.Submit(tuple(chunks)))

    def _refuse(self, number: int, reason: str) -> None:
        """End every job of a group that never was handed out."""
        now = self._clock()
        group = self.workflow.groups[number]
        for first in range(group.first_id, group.stop_id, _REFUSED_AT_ONCE):
            ids = np.arange(first, min(first + _REFUSED_AT_ONCE, group.stop_id))
            records = self.table.synthesize(ids, Result.CANCELED, now)
            if len(records):
                records["flags"] |= FLAG_REASON
                reasons = dict.fromkeys(records["id"].tolist(), reason)
                self._ended(m.Report(records.tobytes(), reasons=reasons), now)

    def close(self, t_end: float) -> None:
        """Commit everything. Raises JournalError."""
        self.view.counts, self.view.now = self.table.counts(), t_end
        self.journal.set_meta(t_end=t_end, state=self.state(), busy=self.view.busy)
        self.journal.close()


