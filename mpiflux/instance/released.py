"""What follows for groups of jobs when what they waited for has ended: they are handed out, or end unstarted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiflux.instance.broker_feed import DEPENDED, RECORD, Feed
from mpiflux.instance.postponed import Postponed
from mpiflux.model import messages as m
from mpiflux.model.jobspec import JobGroup
from mpiflux.model.records import FLAG_REASON
from mpiflux.model.states import Result, State
from mpiflux.sched.dependencies import Refuse, Verdict
from mpiflux.store.crashes import Crashes
from mpiflux.store.elementwise import Elements, Elementwise
from mpiflux.store.eventlog import ELEMENTS, Event
from mpiflux.store.jobtable import JobTable
from mpiflux.store.journal import Journal

_REFUSED_AT_ONCE = 10_000


class Released:
    """The part of :class:`mpiflux.instance.master.Master` that carries out verdicts."""

    journal: Journal
    table: JobTable
    groups: Sequence[JobGroup]
    elements: Elementwise
    feed: Feed
    _crashes: Crashes
    _clock: Callable[[], float]
    _waits: Postponed

    if TYPE_CHECKING:
        def _send(self, message: m.Message) -> None: ...
        def _hand_out(self, ids: Any) -> None: ...
        def _ended(self, report: m.Report, now: float) -> None: ...

    def _carry_out(self, verdict: Verdict | Elements) -> None:
        if isinstance(verdict, Elements):
            self._carry_out_elements(verdict)
            return
        if isinstance(verdict, Refuse):
            self._refuse(verdict.group, verdict.reason)
            return
        if self.elements.concerns(verdict.group):
            for elements in self.elements.open(verdict.group):
                self._carry_out(elements)
            return
        group = self.groups[verdict.group]
        chunks = self._unfinished(group)
        if group.after and chunks:
            now = self._clock()
            self.journal.append_group_event(group.number, now, "depend")
            self.feed.jobs(group.first_id, group.count, Event("depend", now, {}))
        for chunk in chunks:
            self.table.depend(chunk)
            self.table.assign(chunk, 0)
        if chunks:
            self._send(m.Submit(tuple(chunks)))

    def _unfinished(self, group: JobGroup) -> list[m.Chunk]:
        """What is to be handed out of a group that is released."""
        chunks = self.table.unfinished(group.number)
        if not self._waits.resting and not any(group.first_id <= job < group.stop_id for job in self._crashes.suspects):
            return chunks
        ids = np.fromiter((group.first_id + index for chunk in chunks
                           for index in range(chunk.start, chunk.stop, chunk.step)), "i8")
        return self._crashes.chunks(self.table, np.sort(self._waits.awake(ids)))

    def _carry_out_elements(self, verdict: Elements) -> None:
        group, now = self.groups[verdict.group], self._clock()
        ids = self.elements.waiting(verdict.ids)
        if verdict.refused:
            self._end_unstarted(ids, lambda job: verdict.reason(job - group.first_id), now)
            return
        ids = self._waits.awake(ids)
        depended = ids[self.table.state[ids - 1] == State.DEPEND]
        if len(depended):
            chunks = self.table.chunks(depended)
            for chunk in chunks:
                self.table.depend(chunk)
            self.journal.append_group_event(group.number, now, "depend", {
                ELEMENTS: [(chunk.start, chunk.stop, chunk.step) for chunk in chunks]})
            records = np.zeros(len(depended), RECORD)
            records["id"], records["t_alloc"] = depended, now
            self.feed.records(records, np.full(len(records), DEPENDED, "u1"), {})
        self._hand_out(ids)

    def _refuse(self, number: int, reason: str) -> None:
        """End every job of a group that never was handed out."""
        group = self.groups[number]
        self._end_unstarted(np.arange(group.first_id, group.stop_id), reason, self._clock())

    def _end_unstarted(self, ids: Any, reason: str | Callable[[int], str], now: float) -> None:
        """End jobs that nobody has; ``reason`` may be one for each."""
        for at in range(0, len(ids), _REFUSED_AT_ONCE):
            records = self.table.synthesize(ids[at:at + _REFUSED_AT_ONCE], Result.CANCELED, now)
            if len(records):
                records["flags"] |= FLAG_REASON
                jobs = records["id"].tolist()
                reasons = {job: reason if isinstance(reason, str) else reason(job) for job in jobs}
                self._ended(m.Report(records.tobytes(), reasons=reasons), now)
