"""What is asked of the master while the instance runs: jobs to add, to hold, to hurry and to cancel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiflux.instance.broker_feed import Feed
from mpiflux.instance.deadline import Deadline
from mpiflux.instance.postponed import Postponed
from mpiflux.instance.view import Observer, View
from mpiflux.model import messages as m
from mpiflux.model.jobspec import JobGroup, Workflow
from mpiflux.model.states import State
from mpiflux.sched.dependencies import Dependencies, Verdict
from mpiflux.sched.urgency import HELD, Urgencies
from mpiflux.store.elementwise import Elements, Elementwise
from mpiflux.store.eventlog import ELEMENTS, Event
from mpiflux.store.jobtable import NOBODY, JobTable
from mpiflux.store.journal import Journal

DEFAULT = 16
"""The urgency of jobs unless they ask for another."""


class Asked:
    """The part of :class:`mpiflux.instance.master.Master` that clients and programs of the instance call."""

    workflow: Workflow
    journal: Journal
    table: JobTable
    observer: Observer
    groups: Sequence[JobGroup]
    dependencies: Dependencies
    elements: Elementwise
    deadline: Deadline
    feed: Feed
    view: View
    holders: set[object]
    pausers: set[str]
    program_status: int | None
    controller_failed: bool
    _clock: Callable[[], float]
    _over: bool
    _doomed: dict[int, str]
    _waits: Postponed
    _urgencies: dict[int, Urgencies]

    if TYPE_CHECKING:
        @property
        def is_stopping(self) -> bool: ...
        def _send(self, message: m.Message) -> None: ...
        def _declare(self, group: JobGroup) -> None: ...
        def _await_begin(self, group: JobGroup) -> None: ...
        def _withhold(self, now: float) -> None: ...
        def _later(self, verdicts: Sequence[Verdict | Elements]) -> None: ...
        def _carry_out(self, verdict: Verdict | Elements) -> None: ...
        def _end_unstarted(self, ids: Any, reason: str | Callable[[int], str], now: float) -> None: ...

    @property
    def over(self) -> bool:
        """Every rank has been told to leave."""
        return self._over

    @property
    def ending(self) -> bool:
        """Nothing new is started any more."""
        return self._over or self.is_stopping

    def now(self) -> float:
        return self._clock()

    def submit(self, group: JobGroup, *, held: bool = False) -> None:
        """A group that comes while the instance runs. Its number and first id are the next ones."""
        now = self._clock()
        self.table.add_group(group)
        self.journal.append_group(group, now)
        self.feed.submitted(group, now, waits=bool(group.after))
        self._declare(group)
        self.elements.add(group)
        verdicts = self.dependencies.add(group, held=held)
        self._await_begin(group)
        self.deadline.watch(group)
        self._withhold(now)
        if group.after:
            self._later([*verdicts, *self.elements.refuse(group.number)])
        else:
            for verdict in verdicts:
                self._carry_out(verdict)

    def hold(self, group: int, held: bool) -> bool:
        """Keep a waiting group back, or release it; False when it does not wait any more."""
        waiting = self.dependencies.is_waiting(group)
        self._later(self.dependencies.hold(group, held))
        return waiting

    def urge(self, first: int, stop: int, urgency: int) -> int:
        """Give the jobs with ids ``range(first, stop)``, all of one group, another urgency, 0 to hold them; how many
        of them have not started."""
        group = self.table.groups[self.table.group_of(first)]
        now, low, high = self._clock(), first - group.first_id, stop - group.first_id
        state = self.table.state[first - 1:stop - 1]
        waiting = np.flatnonzero((state == State.DEPEND) | (state == State.SCHED)) + low
        if not len(waiting):
            return 0
        if urgency and self.dependencies.is_held(group.number):
            # held as a whole since its submission: now only the others are
            for rest in ((0, low), (high, group.count)):
                if rest[0] < rest[1]:
                    self._urge(group, *rest, np.arange(*rest), 0, now)
            self._later(self.dependencies.hold(group.number, False))
        self._urge(group, low, high, waiting, urgency, now)
        return len(waiting)

    def _urge(self, group: JobGroup, start: int, stop: int, indices: Any, urgency: int, now: float) -> None:
        """``indices`` are those of the range that it is told of."""
        ends = np.flatnonzero(np.diff(indices) != 1)
        runs = list(zip(indices[[0, *(ends + 1)]].tolist(), (indices[[*ends, -1]] + 1).tolist(), strict=True))
        self.journal.append_group_event(group.number, now, "urgency", {
            "urgency": urgency, ELEMENTS: [(low, high, 1) for low, high in runs]})
        for low, high in runs:
            self.feed.jobs(group.first_id + low, high - low, Event("urgency", now, {"urgency": urgency}))
        self._tell_urgency(m.Urgency(group.number, start, stop, urgency))

    def _tell_urgency(self, message: m.Urgency) -> None:
        self._urgencies.setdefault(message.group, Urgencies()).set(message.start, message.stop, message.urgency)
        if message.group not in self.deadline.too_late:
            self._send(message)

    def urgency(self, job: int) -> int:
        """The urgency of a job as it is now; 0: it is held."""
        group = self.groups[self.table.group_of(job)]
        changed = self._urgencies.get(group.number)
        value = changed.at(job - group.first_id) if changed is not None else None
        return group.priority if value is None else value

    def tried_again(self, job: int) -> float:
        """When a job that failed comes next (Unix seconds); 0: it waits for no time."""
        return self._waits.when(job)

    def let_go(self, first: int, stop: int) -> int:
        """Give those jobs of a range (all of one group) that are held the urgency that they were submitted with."""
        group = self.groups[self.table.group_of(first)]
        if self.dependencies.is_held(group.number):
            return self.urge(first, stop, group.priority or DEFAULT)
        every = m.Chunk(group.number, first - group.first_id, stop - group.first_id)
        changed = self._urgencies.get(group.number)
        pieces = changed.pieces(every) if changed is not None else [(None, every)]
        return sum(self.urge(group.first_id + part.start, group.first_id + part.stop, group.priority or DEFAULT)
                   for value, part in pieces if (group.priority if value is None else value) == HELD)

    def program_ended(self, program: object, status: int) -> None:
        """The initial program is over, and with it the instance: what still runs is cancelled."""
        self.program_status = status
        self.holders.discard(program)
        if not self.ending:
            self.cancel(np.arange(1, len(self.table) + 1), "the initial program has ended")

    def controller_ended(self, program: object, status: int) -> None:
        """The workflow's controller is over: the run goes on until all jobs have ended."""
        self.holders.discard(program)
        if status and not self.ending:
            self.controller_failed = True
            how = f"was killed by signal {status - 128}" if status > 128 else f"ended with exit status {status}"
            name = " ".join(self.workflow.controller)[:80]
            self.observer.note(f"the controller {name!r} {how}; the run goes on with the jobs that there are")

    def reach(self, message: m.Listen | m.Signal | m.Stdin | m.Pause | m.Explain) -> None:
        """Something for jobs that run, for all schedulers, or for the one that has a job."""
        self._send(message)

    def pause(self, who: str, on: bool) -> None:
        """Start no more jobs for the sake of ``who``, or go on as far as it is concerned."""
        before = bool(self.pausers)
        if on:
            self.pausers.add(who)
        else:
            self.pausers.discard(who)
        if before != bool(self.pausers):
            self._send(m.Pause(not before))

    def cancel(self, ids: Any, reason: str) -> int:
        """End these jobs, wherever they are; how many that are."""
        rows = np.asarray(ids, "i8") - 1
        alive = self.table.state[rows] != State.INACTIVE
        handed = alive & (self.table.owner[rows] != NOBODY)
        waiting = rows[alive & ~handed] + 1
        handed = rows[handed] + 1
        if len(waiting):
            self._end_unstarted(waiting, reason, self._clock())
        if len(handed):
            out = handed.tolist()
            self._doomed.update(dict.fromkeys(out, reason))
            self._send(m.Cancel(tuple(out), reason))
        return len(waiting) + len(handed)
