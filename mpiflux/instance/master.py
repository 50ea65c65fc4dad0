"""What only rank 0 does: it owns the store, releases groups, runs attempts again, and decides when all is over.

Everything that arrives is a batch: records are applied to the job table and appended to the journal as they came,
without a look at single jobs unless one has to run again.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from mpiflux.instance.alarm import LISTEN, Alarm
from mpiflux.instance.asked import Asked
from mpiflux.instance.broker_feed import RECORD, STARTED, Feed
from mpiflux.instance.deadline import Deadline
from mpiflux.instance.failfast import FailFast
from mpiflux.instance.postponed import Postponed
from mpiflux.instance.released import Released
from mpiflux.instance.rhythm import Rhythm
from mpiflux.instance.storage import Storage
from mpiflux.instance.usage import Usage
from mpiflux.instance.vault import Vault
from mpiflux.instance.verdicts import Verdicts
from mpiflux.instance.view import Desk, Lives, Observer, View
from mpiflux.model import messages as m
from mpiflux.model.jobspec import JobGroup, Workflow
from mpiflux.model.records import FLAG_REASON
from mpiflux.model.states import Result, State
from mpiflux.overlay import address
from mpiflux.sched.agenda import Agenda
from mpiflux.sched.dependencies import Dependencies, Verdict
from mpiflux.sched.urgency import Urgencies
from mpiflux.store.crashes import Crashes
from mpiflux.store.elementwise import Elements, Elementwise
from mpiflux.store.groups import Instead
from mpiflux.store.jobtable import NOBODY, JobTable
from mpiflux.store.journal import Journal

ROOT = 0
GRACE = 5.0
"""Seconds between TERM and KILL when the run is interrupted."""
_NEVER = float("inf")
SIGNAL = "signal"
"""For whose sake nothing is started after a signal that has not come to rank 0."""
_FIRST_FAILURES = 5


class Master(Asked, Released):
    """Implements :class:`mpiflux.instance.rank.Master`. ``table`` may hold what an earlier instance finished."""

    def __init__(self, workflow: Workflow, journal: Journal, table: JobTable, observer: Observer, *, cores: int,
                 ranks: int, clock: Callable[[], float], fail_fast: bool = False, deadline: Deadline | None = None,
                 t_submit: Sequence[float] = (), urged: Sequence[m.Urgency] = (),
                 waits: Sequence[tuple[float, Any]] = (), removed: Sequence[int] = (),
                 gone: Mapping[int, Any] | None = None, vault: Vault | None = None,
                 crashes: Crashes | None = None, suspicion: float = 0.0) -> None:
        self.workflow, self.journal, self.table, self.observer = workflow, journal, table, observer
        self.deadline = deadline or Deadline()
        self.groups: Sequence[JobGroup] = Instead(workflow.groups, table.groups)
        """Of the workflow file, and then those that were submitted."""
        self.dependencies = Dependencies(self.groups, self._outcome, self._past)
        self.elements = Elementwise(table, self.groups)
        self.feed = Feed()
        self.desk: Desk | None = None
        self.lives: Lives | None = None
        self.holders: set[object] = set()
        """Whose work is not over even when all jobs are: the instance goes on for them."""
        self.program_status: int | None = None
        """Exit status of the initial program, once it has ended."""
        self.controller_failed = False
        self._crashes = crashes or Crashes()
        self._doomed: dict[int, str] = {}
        """Jobs that were handed out and are to be cancelled, and why: they are not tried again."""
        self._t_submit = t_submit
        """By group; grows with what is submitted."""
        self._urged = urged
        """Changes of urgency that an earlier instance was asked for."""
        self._urgencies: dict[int, Urgencies] = {}
        self._warned_of: set[str] = set()
        self._ended_groups: list[int] = []
        """Those that were submitted, of which schedulers have not been told yet that they are over."""
        self.vault = vault or Vault()
        self.storage = Storage()
        self.pausers: set[str] = set()
        """For whose sake no more jobs are started at the moment."""
        self._of_file = len(workflow.groups)
        self._removed = removed
        """Groups that the workflow file does not have any more: how they ended, does not matter."""
        self._gone = {number: int(np.count_nonzero(table.result[ids - 1] != Result.COMPLETED))
                      for number, ids in (gone or {}).items()}
        """Jobs likewise, of groups of which others are still there: how many have ended and not completed."""
        self._begins: Agenda[int] = Agenda()
        """Groups whose time has not come."""
        now = clock()
        self._waits = Postponed(waits, now)
        self.view = View(table.counts(), now, now, cores)
        self._clock, self._ranks = clock, ranks
        self._usage = Usage()
        self._out: list[tuple[int, m.Message]] = []
        self._verdicts = Verdicts()
        self.alarm = Alarm()
        self._suspicion = suspicion
        """Seconds for which nothing is cancelled because of a failure."""
        self._fail_fast = FailFast(fail_fast, suspicion)
        self._stop_by = 0.0
        self._rhythm = Rhythm(now)
        self._over = False
        self._broken = False
        """A part of the instance, such as a user's policy, cannot go on."""

    # -- begin and end -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Declare every group and submit what may start."""
        now = self._clock()
        for group in self.groups:
            self._declare(group)
            self.feed.submitted(group, now, waits=bool(group.after))
            self._await_begin(group)
            self.deadline.watch(group)
        for message in self._urged:
            self._tell_urgency(message)
        self._note_held()
        self._withhold(now)
        for verdict in self.dependencies.begin():
            self._carry_out(verdict)
        for group in self.groups:
            for elements in self.elements.refuse(group.number):
                self._carry_out(elements)
            # what a resumed run had finished before
            completed, *others = self.table.group_ended(group.number)
            gone = self._gone.get(group.number, 0)
            if completed or any(others):
                for verdict in self.dependencies.ended(group.number, completed + gone, sum(others) - gone):
                    self._carry_out(verdict)
                if group.submitted and self.table.is_over(group.number):
                    self._ended_groups.append(group.number)

    def _note_held(self) -> None:
        for group in self.groups:
            if group.priority == 0 and not group.submitted:
                self.observer.note(f"{group.name} has priority 0: its jobs are held until "
                                   f"`mpiflux job urgency {group.name} 16` lets them go")

    def begin_of(self, group: JobGroup) -> float:
        """When a group may start at the earliest (Unix seconds); 0: at any time."""
        submitted = self._t_submit[group.number] if group.number < len(self._t_submit) else self.view.t_start
        return max(group.begin_time, submitted + group.begin_after if group.begin_after else 0.0)

    def _await_begin(self, group: JobGroup) -> None:
        if self.dependencies.is_early(group.number):
            self._begins.add(self.begin_of(group), group.number)

    def _declare(self, group: JobGroup) -> None:
        self._send(m.Declare(group, self.workflow.directory, self.workflow.output_limit, self.vault.of(group)))

    def exit_status(self) -> int:
        """The exit status of ``run`` and ``start`` (DESIGN 1.1)."""
        counts = self.table.counts()
        if self.view.interrupted:
            return 128 + self.view.interrupted
        if self._broken:
            return 3
        if self.program_status is not None:
            return self.program_status
        others = sum(sum(self.table.group_ended(number)[1:]) for number in self._removed) + sum(self._gone.values())
        return 0 if counts.completed + others == counts.total and not self.controller_failed else 1

    @property
    def is_stopping(self) -> bool:
        """Nothing more is started; the run can be resumed."""
        return self._broken or bool(self.view.interrupted)

    def state(self) -> str:
        return "interrupted" if self.is_stopping else "finished"

    # -- the rank's side -----------------------------------------------------------------------------------------

    def descriptors(self) -> list[int]:
        return [self.journal.wake_fd, *(self.desk.descriptors() if self.desk else ())]

    def readable(self, fd: int) -> None:
        """The journal has committed, or failed; or the desk has something, which ``turn`` will see."""
        if fd == self.journal.wake_fd:
            self.journal.acknowledge()

    def collect(self) -> list[tuple[int, m.Message]]:
        if self.desk is not None:
            # what clients hear comes before the end
            self._out[:0] = self.desk.collect()
        out, self._out = self._out, []
        return out

    def next_wake(self) -> float:
        return min(self._rhythm.next, self._waits.next, self._begins.next, self.deadline.next, self._fail_fast.next,
                   self._verdicts.next(self.journal.committed_seq))

    def _send(self, message: m.Message) -> None:
        self._out.append((ROOT, message))

    def handle(self, src: int, message: m.Message, now: float) -> None:
        self._rhythm.quicken(now)
        if isinstance(message, m.Report):
            if message.started:
                self._started(message.started)
            if message.records:
                self._ended(message, now)
        elif isinstance(message, m.Output):
            self.journal.append_output(message.id, message.attempt, message.stream, message.offset, message.data)
            self.feed.output(message.id, message.attempt, message.stream, message.offset + len(message.data))
            if self.desk is not None:
                self.desk.output(message)
        elif isinstance(message, m.StdinTaken):
            if self.desk is not None:
                self.desk.stdin_taken(message)
        elif isinstance(message, m.NewR):
            self.journal.append_rset(message.sched, message.r_id, message.r)
            self._usage.learn(message)
            if self.desk is not None:
                self.desk.resources(message)
        elif isinstance(message, (m.ClientRequest, m.ClientGone, m.ClientReady)):
            if self.desk is not None and not self._over:
                self.desk.handle(src, message, now)
        elif isinstance(message, m.Borrowed):
            self.journal.append_event(0, now, "borrow", {"scheduler": message.sched, "cores": message.cores,
                                                         "waited": message.waited, "idle": message.idle})
        elif isinstance(message, m.Explained):
            if self.desk is not None:
                self.desk.explained(message)
        elif isinstance(message, m.Stopped):
            self._finish()
        elif isinstance(message, m.Warned):
            self.alarm.heard(message, now)
            if not self.is_stopping:
                self.pause(SIGNAL, True)
        elif isinstance(message, m.Regrown):
            if self.lives is not None:
                self.lives.regrown(message.jobs)
        elif isinstance(message, m.Fault) and message.fatal:
            if not self.is_stopping:
                self.observer.error(f"{message.text}. No more jobs are started and those that run are ended; mend it "
                                    "or choose another, and go on with run --resume")
                self._broken = True
                self._stop(now)
        elif isinstance(message, m.Fault):
            self.observer.note(message.text)

    def turn(self, now: float) -> None:
        """Once a loop turn: what waited for the journal, the end, the observer."""
        if self._verdicts.waiting:
            for verdict in self._verdicts.due(self.journal.committed_seq, now):
                self._carry_out(verdict)
        if self._fail_fast.due(now):
            self._cancel_rest()
        if self.deadline.next <= now:
            self._withhold(now)
        if self._begins.next <= now:
            for number in self._begins.due(now):
                self._later(self.dependencies.begun(number))
        if self._waits.next <= now:
            for ids in self._waits.due(now):
                self._hand_out(self.table.here(ids))
        if self._stop_by and now > self._stop_by:
            self._finish()
        if self.desk is not None and not self._over:
            self.desk.work(now)
        if not self._over and not self._verdicts.waiting and not self.holders and self.table.over:
            self._finish()
        if self._rhythm.beats(now, self.deadline.t_end):
            self._beat(now)
            self._forget()

    def _beat(self, now: float) -> None:
        self.view.counts, self.view.now = self.table.counts(), now
        self.view.journal_error = self.journal.error
        if not self.is_stopping and not self._over:
            self._watch_storage(now)
            if self.alarm.until <= now:
                self.alarm.over()
                self.pause(SIGNAL, False)
        if not self.is_stopping and not self._over:
            if self.deadline.passed(now):
                self.observer.note(f"{self.deadline.what} is reached: ending what runs; go on with run --resume")
                self._time_is_up(now)
            elif self.deadline.too_late and now > self.deadline.settled_at and self._only_late():
                self.observer.note(f"nothing is left that could finish before {self.deadline.what}; go on with "
                                   "run --resume")
                self._time_is_up(now)
        self.observer.progress(self.view)

    def _watch_storage(self, now: float) -> None:
        storage, journal = self.storage, self.journal
        said = storage.look(journal.error, journal.backlog_bytes, self.view.counts.run, now)
        if said:
            self.observer.note(said)
        self.pause("storage", storage.paused)
        if storage.given_up:
            self.observer.error(f"{journal.directory} can still not be written: the run ends; make room there and go "
                                "on with run --resume")
            self._broken = True
            self._stop(now)

    def _forget(self) -> None:
        """Jobs that are submitted one by one are a group each: who schedules and starts them is to keep nothing of
        those that are over."""
        over, self._ended_groups = self._ended_groups, []
        if over and not self._over:
            for group in over:
                self.dependencies.drop(group)
                self.table.groups.over(group)
                self.vault.drop(group)
                self._urgencies.pop(group, None)
            self._send(m.Forget(tuple(over)))

    def _withhold(self, now: float) -> None:
        """Start no more jobs of groups that could not finish in time."""
        for number in self.deadline.due(now):
            if self.table.is_over(number):
                continue
            group = self.groups[number]
            counts = self.table.group_counts(number)
            waiting = counts.depend + counts.sched
            self._send(m.Urgency(number, 0, group.count, 0))
            if waiting:
                self.observer.note(f"{group.name}: {waiting:,} job{'s' * (waiting != 1)} not started: "
                                   f"{self.deadline.why(group)}")

    def _only_late(self) -> bool:
        """Whether nothing runs, and nothing will but by somebody's word."""
        counts = self.table.counts()
        if (counts.run or not counts.sched or self._verdicts.waiting or self.holders or len(self._waits)
                or len(self._begins)):
            return False
        late = sum(self.table.group_counts(number).sched for number in self.deadline.too_late)
        return late == counts.sched and not any(self.dependencies.is_held(group.number) for group in self.groups)

    def _finish(self) -> None:
        if not self._over:
            self._over = True
            if self.desk is not None:
                self.desk.farewell("the run was interrupted" if self.is_stopping else "the run is over")
                self._out += self.desk.collect()
            self._out += [(address.control(rank), m.Shutdown()) for rank in range(self._ranks)]

    def _time_is_up(self, now: float) -> None:
        """The run ends as by the TERM that a batch system would send."""
        self.view.time_is_up = True
        self.signalled(signal.SIGTERM, now)

    def signalled(self, number: int, now: float) -> None:
        """One that asks for the end, or a batch system's warning (USR1, USR2): stop starting, end what runs, resumable.
        INT, TERM or HUP after that: at once."""
        warning = number in (signal.SIGUSR1, signal.SIGUSR2)
        self._rhythm.quicken(now)
        if warning and self.is_stopping:
            return
        if self.is_stopping:
            self._finish()
            return
        self.view.interrupted = number
        self._stop(now)

    def _stop(self, now: float) -> None:
        self._verdicts.clear()
        self._waits.clear()
        self._begins.clear()
        self._fail_fast.clear()
        self._stop_by = now + GRACE + 2.0
        # LSF's first signal is INT, and srun passes it on to all processes; without a batch system it is Ctrl-C's
        to_all = self.view.interrupted not in (0, signal.SIGINT) or (self.view.interrupted and self._suspicion)
        self._send(m.Stop(GRACE, LISTEN if to_all else 0.0))

    # -- jobs ----------------------------------------------------------------------------------------------------

    def _started(self, data: bytes) -> None:
        records = np.frombuffer(data, RECORD)
        news = self.table.started(records)
        if news.all():
            self.journal.append_started(data)
        elif news.any():
            records = records[news]
            self.journal.append_started(records.tobytes())
        else:
            return
        self.feed.records(records, np.full(len(records), STARTED, "u1"), {})
        if self.desk is not None:
            self.desk.started(records)

    def _ended(self, report: m.Report, now: float) -> None:
        records = np.frombuffer(report.records, RECORD)
        if not self.is_stopping and (records["result"] == Result.LOST).any():
            records, reasons = self._crashes.judge(records, self.table.running(records), report.reasons)
            report = msgspec.structs.replace(report, records=records.tobytes(), reasons=reasons)
        place = self.journal.append_results(report.records, report.output, report.reasons)
        applied = self.table.apply(records, *place)
        self.view.busy += self._usage.of(records)
        self.feed.ended(records, applied, report.reasons)
        if report.reasons:
            self._note_warnings(records, report.reasons)
        if self.desk is not None:
            self.desk.ended(place, records, report, applied.ended)
        if self._doomed:
            for job in applied.ended.tolist():
                self._doomed.pop(job, None)
        if len(applied.again) and not self.is_stopping:
            self._again(applied.again, records, now)
        if not applied.plain and any(any(others) for _, *others in applied.groups.values()):
            self._note_failures(applied.ended, applied.results)
        verdicts: list[Verdict] = []
        for group, (completed, *others) in applied.groups.items():
            verdicts += self.dependencies.ended(group, completed, sum(others))
            if (group >= self._of_file or self.groups[group].submitted) and self.table.is_over(group):
                self._ended_groups.append(group)
        if self.dependencies.wants_jobs:
            verdicts += self.dependencies.jobs_ended(
                zip(applied.ended.tolist(), applied.results.tolist(), strict=True))
        self._later([*verdicts, *self.elements.ended(applied.ended)])

    def _later(self, verdicts: Sequence[Verdict | Elements]) -> None:
        """Carry them out once what they rest upon is on disk."""
        if verdicts:
            seq = self.journal.flush()
            later = self._clock() + self._suspicion if self._suspicion else 0.0
            self._verdicts.add(verdicts, seq, later)

    def _again(self, ids: Any, records: Any, now: float) -> None:
        lost = int(np.count_nonzero(records["result"] == Result.LOST))
        if self.alarm.until < _NEVER:
            self.view.signalled += lost
        else:
            self.view.lost += lost
        self.view.retried += len(ids) - lost
        if self._fail_fast.reason:
            self._end_unstarted(ids, self._fail_fast.reason, now)
            return
        if self._doomed:
            doomed = np.isin(ids, np.fromiter(self._doomed, "i8", len(self._doomed)))
            if doomed.any():
                reasons = {job: self._doomed[job] for job in ids[doomed].tolist()}
                self._end_unstarted(ids[doomed], reasons.__getitem__, now)
                ids = ids[~doomed]
        failed = ids
        if lost:
            again = np.isin(ids, records["id"][records["result"] == Result.LOST])
            self._hand_out(ids[again])
            failed = ids[~again]
        for seconds, some in self.table.delays(failed):
            if seconds:
                self._waits.add(now + seconds, some)
            else:
                self._hand_out(some)

    def _hand_out(self, ids: Any) -> None:
        """Give jobs that may start to the root scheduler."""
        chunks = self._crashes.chunks(self.table, ids)
        for chunk in chunks:
            self.table.assign(chunk, 0)
        if chunks:
            self._send(m.Submit(tuple(chunks)))

    def _note_warnings(self, records: Any, reasons: Mapping[int, str]) -> None:
        """What is odd about jobs that have completed, once for each group."""
        odd = (records["result"] == Result.COMPLETED) & ((records["flags"] & FLAG_REASON) != 0)
        for job in records["id"][odd].tolist():
            group = self.groups[self.table.group_of(job)]
            if group.name not in self._warned_of:
                self._warned_of.add(group.name)
                self.observer.note(f"{group.name}[{job - group.first_id}]: {reasons.get(job, '')}")

    def _note_failures(self, ids: Any, results: Any) -> None:
        failed = ids[(results == Result.FAILED) | (results == Result.TIMEOUT)]
        room = _FIRST_FAILURES - len(self.view.failures)
        if room > 0:
            self.view.failures += failed[:room].tolist()
        if len(failed) and not self._over and self._fail_fast.failed(int(failed[0]), self._clock()):
            self._cancel_rest()

    def _cancel_rest(self) -> None:
        reason = self._fail_fast.reason
        self.observer.note(f"{reason}: cancelling the rest")
        self._verdicts.clear()
        self._waits.clear()
        n = len(self.table)
        nobodys = (self.table.state[:n] != State.INACTIVE) & (self.table.owner[:n] == NOBODY)
        self._end_unstarted(np.flatnonzero(nobodys) + 1, reason, self._clock())
        self._send(m.Cancel((), reason))

    def _outcome(self, job: int) -> int:
        return int(self.table.result[job - 1])

    def _past(self, name: str) -> tuple[JobGroup, int, int]:
        """A group that is over, as ``#number``, and how many of its jobs completed and did not."""
        number = int(name[1:])
        completed, *others = self.table.group_ended(number)
        return self.groups[number], completed, sum(others)

    def close(self, t_end: float) -> None:
        """Commit everything. Raises JournalError."""
        if self.view.interrupted:
            doubtful = self.alarm.run_again(self.table, self.journal, t_end)
            self.view.doubtful = len(doubtful)
            self.view.failures = [job for job in self.view.failures if job not in doubtful]
        self.view.counts, self.view.now = self.table.counts(), t_end
        self.journal.set_meta(t_end=t_end, state=self.state(), busy=self.view.busy)
        if self.desk is not None:
            self.desk.close()
        self.journal.close(1.0 if self.storage.given_up else 10.0)


