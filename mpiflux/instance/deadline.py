"""The end of the run's time: what could not finish before it is not started."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import NamedTuple

from mpiflux.model.jobspec import JobGroup
from mpiflux.sched.agenda import Agenda

MARGIN = 15.0
"""Seconds before the end of an allocation by which jobs are ended: time for their TERM, KILL and the last commit."""
_FAR = 20 * 365.25 * 86400.0
"""Seconds: an end later than that is in milliseconds, or nonsense."""
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


class AllocationEnd(NamedTuple):
    """What the environment says of when the allocation ends."""

    time: float = 0.0
    """Unix seconds; 0: it does not say."""
    trouble: str = ""
    """Why nothing should be started."""
    notes: tuple[str, ...] = ()


def allocation_end(environ: Mapping[str, str], now: float) -> AllocationEnd:
    """From ``MPIFLUX_END_TIME``, which a person sets and which must be right, else from ``SLURM_JOB_END_TIME``, which
    is passed over with a note when it is not."""
    given = environ.get("MPIFLUX_END_TIME", "").strip()
    if given and given != "0":
        end = _unix(given)
        if end is None or end > now + _FAR:
            return AllocationEnd(trouble=f"MPIFLUX_END_TIME is {given!r}: it must be in Unix seconds, as `date +%s` "
                                         f"and `date -d '1 hour' +%s` print them (now: {now:.0f}); unset it for no end")
        if end <= now:
            return AllocationEnd(notes=(f"MPIFLUX_END_TIME is {given}, which has passed: taken for no end",))
        return AllocationEnd(end)
    given = environ.get("SLURM_JOB_END_TIME", "").strip()
    if not given or given == "0":
        return AllocationEnd()
    end = _unix(given)
    if end is None:
        return AllocationEnd(notes=(f"SLURM_JOB_END_TIME is {given!r}, not a time in Unix seconds: the end of the "
                                    "allocation is not known; --time-limit says when to end",))
    # later than any allocation: Slurm's word for none
    return AllocationEnd(end if now < end <= now + _FAR else 0.0)


def _unix(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[0-9]{1,15}(\.[0-9]{0,9})?", text, re.ASCII) else None


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
