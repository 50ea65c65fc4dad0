"""A small master: dependencies, job table, retries and cancellation, with a virtual journal that commits late."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from mpiflux.model import messages as m
from mpiflux.model.jobspec import JobGroup, Workflow
from mpiflux.model.states import Result, State
from mpiflux.sched.agenda import Agenda
from mpiflux.sched.dependencies import Dependencies, Refuse, Verdict
from mpiflux.sched.policies import PolicyError
from mpiflux.sim.journal import Entry, Saved
from mpiflux.sim.watch import Watcher
from mpiflux.store.crashes import Crashes
from mpiflux.store.elementwise import Elements, Elementwise
from mpiflux.store.jobtable import NOBODY, RECORD, JobTable

ROOT = 0


class SimMaster:
    """What is above the root scheduler. ``wake_at(when)`` has :meth:`turn` called then.

    ``arrivals``: (seconds after the start, chunk), sorted; where given, groups are submitted by these and not when
    their dependencies are met. ``saved``: what an earlier instance left, to be gone on with.
    """

    def __init__(self, workflow: Workflow, commit: float, wake_at: Callable[[float], None], watcher: Watcher,
                 arrivals: Sequence[tuple[float, m.Chunk]] = (), saved: Saved | None = None) -> None:
        self.workflow, self.commit, self.watcher = workflow, commit, watcher
        self.saved = saved
        self.table = JobTable()
        self.records: list[bytes] = []
        self.entries: list[Entry] = []
        """The journal."""
        if saved is None:
            for group in workflow.groups:
                self.table.add_group(group)
        else:
            self.records += saved.records
            self.entries += saved.entries
        self.dependencies = Dependencies(workflow.groups)
        self.elements = Elementwise(self.table, workflow.groups)
        self.submitted = np.zeros(workflow.total, "f8")
        """When each job was handed to the root scheduler for the first time; 0: never."""
        self.borrowed: list[m.Borrowed] = []
        self.rsets: dict[tuple[int, int], m.ResourceSet] = {}
        self.refused = 0
        """Late records of superseded attempts."""
        self.lost = self.retried = 0
        self.changed = 0.0
        """When the last attempt ended."""
        self.crashes = Crashes()
        self.stopping = False
        self.stopped = False
        """The root has said that nothing runs any more."""
        self._wake_at = wake_at
        self._arrivals = list(reversed(arrivals))
        self._verdicts: list[tuple[float, Verdict | Elements]] = []
        self._cancelled: set[int] = set()
        self._begins: Agenda[int] = Agenda()
        """Groups whose time has not come. A date means nothing here: only what counts from submission does."""
        self._waits: Agenda[Any] = Agenda()
        """Ids of jobs that are to be tried again, but not at once."""
        self._resting: set[int] = set()
        """Of those, the ones that an earlier instance tried: their groups are handed out without them."""
        self._out: list[m.Message] = []
        self._start = 0.0

    def begin(self, now: float) -> None:
        self._start = self.changed = now
        submitted = self._take_over(self.saved, now) if self.saved is not None else now
        for group in self.workflow.groups:
            self._out.append(m.Declare(group, self.workflow.directory, self.workflow.output_limit))
            if not group.priority:
                # held, and nobody is there to let them go
                self._out.append(m.Urgency(group.number, 0, group.count, 1))
        if self._arrivals:
            self._wake_at(now + self._arrivals[-1][0])
            return
        for group in self.workflow.groups:
            if self.dependencies.is_early(group.number):
                self._begins.add(submitted + group.begin_after, group.number)
                self._wake_at(submitted + group.begin_after)
        for verdict in self.dependencies.begin():
            self._carry_out(verdict, now)
        for group in self.workflow.groups:
            for elements in self.elements.refuse(group.number):
                self._carry_out(elements, now)
            completed, *others = self.table.group_ended(group.number)
            if completed or any(others):
                for verdict in self.dependencies.ended(group.number, completed, sum(others)):
                    self._carry_out(verdict, now)

    def _take_over(self, saved: Saved, now: float) -> float:
        """Go on with what an earlier instance left; when the jobs had been submitted."""
        resumed = saved.resume(now)
        self.table, self.crashes = resumed.table, resumed.crashes
        self.elements = Elementwise(self.table, self.workflow.groups)
        if len(resumed.lost):
            self.records.append(resumed.lost.tobytes())
            self.entries.append(Entry(now, True, resumed.lost.tobytes()))
            for record in resumed.lost[resumed.lost["result"] != Result.LOST]:
                # it died with rank 0 once too often
                self.watcher.final(int(record["id"]), int(record["result"]))
        for when, ids in resumed.waits:
            if when > now:
                self._waits.add(when, ids)
                self._wake_at(when)
                self._resting.update(ids.tolist())
        return saved.t_submit

    @property
    def over(self) -> bool:
        counts = self.table.counts()
        return counts.inactive == counts.total

    def collect(self) -> list[m.Message]:
        out, self._out = self._out, []
        return out

    def turn(self, now: float) -> None:
        """Carry out what has been committed by now; submit what has arrived."""
        ready = [verdict for when, verdict in self._verdicts if when <= now]
        self._verdicts = [pair for pair in self._verdicts if pair[0] > now]
        for verdict in ready:
            self._carry_out(verdict, now)
        for number in self._begins.due(now):
            for verdict in self.dependencies.begun(number):
                self._carry_out(verdict, now)
        for ids in self._waits.due(now):
            self._resting.difference_update(ids.tolist())
            self._submit(self._chunks(self.table.here(ids)), now)
        while self._arrivals and self._start + self._arrivals[-1][0] <= now:
            self._submit([self._arrivals.pop()[1]], now)
        if self._arrivals:
            self._wake_at(self._start + self._arrivals[-1][0])

    def handle(self, src: int, message: m.Message, now: float) -> None:
        """Raises PolicyError when a user's policy or distribution failed."""
        if isinstance(message, m.Fault) and message.fatal:
            raise PolicyError(message.text)
        if isinstance(message, m.Report):
            if message.started:
                records = np.frombuffer(message.started, RECORD)
                news = self.table.started(records)
                if news.any():
                    self.entries.append(Entry(now, False, records[news].tobytes()))
            if message.records:
                self._ended(message.records, now)
        elif isinstance(message, m.NewR):
            self.rsets[message.sched, message.r_id] = message.r
        elif isinstance(message, m.Borrowed):
            self.borrowed.append(message)
        elif isinstance(message, m.Stopped):
            self.stopped = True

    def cancel(self, ids: Iterable[int], reason: str, now: float) -> None:
        """End these jobs, in whatever state they are."""
        live = [job for job in ids if self.table.state[job - 1] != State.INACTIVE]
        held = [job for job in live if self.table.owner[job - 1] != NOBODY]
        waiting = [job for job in live if self.table.owner[job - 1] == NOBODY]
        self._cancelled.update(live)
        self._end_here(np.asarray(waiting, "i8"), now)
        if held:
            self._out.append(m.Cancel(tuple(held), reason))

    def urge(self, ids: range, urgency: int) -> None:
        """Change the urgency of these jobs; 0 holds them."""
        for group in self.workflow.groups:
            low, high = max(ids.start, group.first_id), min(ids.stop, group.stop_id)
            if low < high:
                self._out.append(m.Urgency(group.number, low - group.first_id, high - group.first_id, urgency))

    def cancel_impossible(self, impossible: Callable[[JobGroup], tuple[str, Sequence[int]]], now: float) -> None:
        """End what can never run on what is left."""
        for group in self.workflow.groups:
            why, indices = impossible(group)
            if indices and not self.stopping:
                self.cancel([group.first_id + index for index in indices], why, now)

    def stop(self, grace: float) -> None:
        """Interrupt the run."""
        self.stopping = True
        self._verdicts.clear()
        self._arrivals.clear()
        self._waits.clear()
        self._begins.clear()
        self._out.append(m.Stop(grace))

    def _end_here(self, ids: Any, now: float) -> None:
        records = self.table.synthesize(ids, Result.CANCELED, now)
        if len(records):
            self._ended(records.tobytes(), now)

    def _ended(self, data: bytes, now: float) -> None:
        self.changed = now
        records = np.frombuffer(data, RECORD)
        if not self.stopping and (records["result"] == Result.LOST).any():
            running = self.table.current(records) & (self.table.state[records["id"].astype("i8") - 1] == State.RUN)
            records, _ = self.crashes.judge(records, running, {})
            data = records.tobytes()
        applied = self.table.apply(records, len(self.records))
        self.records.append(data)
        self.entries.append(Entry(now, True, data))
        self.refused += int(np.count_nonzero(applied.late | applied.repeated))
        for job, result in zip(applied.ended.tolist(), applied.results.tolist(), strict=True):
            self.watcher.final(job, result)
        if len(applied.again) and not self.stopping:
            self._again(applied.again, records, now)
        over = tuple(group for group in applied.groups
                     if sum(self.table.group_ended(group)) == self.table.groups[group].count)
        if over and not self.over:
            self._out.append(m.Forget(over))
        for group, (completed, *others) in applied.groups.items():
            for verdict in self.dependencies.ended(group, completed, sum(others)):
                self._verdicts.append((now + self.commit, verdict))
                self._wake_at(now + self.commit)
        for elements in self.elements.ended(applied.ended):
            self._verdicts.append((now + self.commit, elements))
            self._wake_at(now + self.commit)

    def _again(self, ids: Any, records: Any, now: float) -> None:
        lost = int(np.count_nonzero(records["result"] == Result.LOST))
        self.lost += lost
        self.retried += len(ids) - lost
        if self._cancelled:
            unwanted = np.asarray([job for job in ids.tolist() if job in self._cancelled], "i8")
            ids = np.setdiff1d(ids, unwanted)
            self._end_here(unwanted, now)
        failed = np.setdiff1d(ids, records["id"][records["result"] == Result.LOST].astype("i8"))
        self._submit(self._chunks(np.setdiff1d(ids, failed)), now)
        for seconds, some in self.table.delays(failed):
            if seconds:
                self._waits.add(now + seconds, some)
                self._wake_at(now + seconds)
            else:
                self._submit(self._chunks(some), now)

    def _carry_out(self, verdict: Verdict | Elements, now: float) -> None:
        if isinstance(verdict, Elements):
            ids = self.elements.waiting(verdict.ids)
            if verdict.refused:
                self._end_here(ids, now)
            else:
                self._submit(self._chunks(self._awake(ids)), now)
            return
        group = self.workflow.groups[verdict.group]
        if isinstance(verdict, Refuse):
            self._end_here(np.arange(group.first_id, group.stop_id), now)
        elif self.elements.concerns(verdict.group):
            for elements in self.elements.open(verdict.group):
                self._carry_out(elements, now)
        elif not self._arrivals:
            self._submit(self._unfinished(group), now)

    def _unfinished(self, group: JobGroup) -> list[m.Chunk]:
        """What is to be handed out of a group that is released."""
        chunks = self.table.unfinished(group.number)
        if not self._resting and not self.crashes.suspects:
            return chunks
        ids = [group.first_id + index for chunk in chunks for index in range(chunk.start, chunk.stop, chunk.step)]
        return self._chunks(self._awake(np.sort(np.asarray(ids, "i8"))))

    def _awake(self, ids: Any) -> Any:
        """Without those that are to wait before they are tried again."""
        return ids[~np.isin(ids, np.fromiter(self._resting, "i8", len(self._resting)))] if self._resting else ids

    def _chunks(self, ids: Any) -> list[m.Chunk]:
        return self.crashes.chunks(self.table, ids)

    def _submit(self, chunks: list[m.Chunk], now: float) -> None:
        for chunk in chunks:
            self.table.depend(chunk)
            self.table.assign(chunk, ROOT)
            first = self.workflow.groups[chunk.group].first_id - 1
            new = self.submitted[first + chunk.start:first + chunk.stop:chunk.step]
            new[new == 0] = now
        if chunks:
            self._out.append(m.Submit(tuple(chunks)))
