"""The end of the run's time: what could not finish before it is not started."""

from __future__ import annotations

import time

from mpiflux.model.jobspec import JobGroup
from mpiflux.sched.agenda import Agenda

MARGIN = 15.0
"""Seconds before the end of an allocation by which jobs are ended: time for their TERM, KILL and the last commit."""
SETTLED = 1.0
"""Seconds after which nothing of a group is on its way to start any more."""


def deadline(now: float, limit: float, allocation_end: float) -> Deadline:
    """``limit``: seconds that the run may take; ``allocation_end``: Unix seconds. 0 is none; so is an end that has
    passed: it was left in the environment by something else."""
    ends = []
    if limit:
        ends.append((now + limit, "the time limit of the run"))
    if allocation_end > now:
        ends.append((allocation_end - MARGIN, "the end of the allocation"))
    return Deadline(*min(ends, default=(0.0, "")))


class Deadline:
    """``t_end`` is when the run ends (Unix seconds; 0: never), ``what`` says what that is."""

    def __init__(self, t_end: float = 0.0, what: str = "") -> None:
        self.t_end, self.what = t_end, what
        self.too_late: set[int] = set()
        """Groups whose jobs are not started any more."""
        self.settled_at = 0.0
        self._agenda: Agenda[int] = Agenda()

    @property
    def next(self) -> float:
        """When the next group is too late; infinity: never."""
        return self._agenda.next

    def watch(self, group: JobGroup) -> None:
        """A group that is to be told of when its jobs cannot finish any more."""
        if self.t_end and group.time_limit:
            self._agenda.add(self.t_end - group.time_limit, group.number)

    def due(self, now: float) -> list[int]:
        """Groups that are too late now."""
        numbers = self._agenda.due(now)
        if numbers:
            self.too_late.update(numbers)
            self.settled_at = now + SETTLED
        return numbers

    def passed(self, now: float) -> bool:
        return bool(self.t_end) and now >= self.t_end

    def why(self, group: JobGroup) -> str:
        """Why jobs of a group that is too late do not start."""
        clock = time.strftime("%H:%M:%S", time.localtime(self.t_end))
        return f"with a time limit of {group.time_limit:g} s it could not finish before {clock}, {self.what}"
