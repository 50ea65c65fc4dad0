"""Jobs that take down what runs them: their supervisor, their rank, their node. Pure.

A lost attempt is not the job's fault and uses up no retry, but a job whose attempts are lost again and again may be
the cause, and would be tried for ever. So attempts that had begun are counted, and the last one that is allowed ends
the job. What merely waited in the queue of whoever died does not count, nor what ended as the run was interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mpiflux.model.records import FLAG_CRASHED, FLAG_NOT_STARTED, FLAG_REASON
from mpiflux.model.states import Result

LIMIT = 5
"""Lost attempts of a job, that had begun, after which it has failed. Who only had the bad luck to run beside the cause
is seldom there five times; each costs a supervisor or a node. HyperQueue's crash limit is the same."""
_KILLED = -9

Array = npt.NDArray[Any]


class Crashes:
    """Counts by job. ``history``: all records that an earlier instance left, in order."""

    def __init__(self, history: Array | None = None) -> None:
        self._count: dict[int, int] = {}
        if history is not None:
            crashed = history[(history["flags"] & FLAG_CRASHED) != 0]
            for job, result in zip(crashed["id"].tolist(), crashed["result"].tolist(), strict=True):
                # a job that has failed by this and is run again for a person's sake begins anew
                self._count[job] = self._count.get(job, 0) + 1 if result == Result.LOST else 0

    def judge(self, records: Array, running: Array, reasons: Mapping[int, str]) -> tuple[Array, dict[int, str]]:
        """Mark the LOST records of attempts that were running (``running``: a mask), and make FAILED of those that
        are the last allowed; the records and reasons that are to be kept, which are the given ones where nothing
        has crashed."""
        crashed = running & (records["result"] == Result.LOST)
        # by themselves supervisors report as lost only what they ended as the run was interrupted
        crashed &= ((records["flags"] & FLAG_NOT_STARTED) != 0) | (records["tasks"] > 1)
        return self.count(records, np.flatnonzero(crashed), reasons)

    def count(self, records: Array, places: Array, reasons: Mapping[int, str]) -> tuple[Array, dict[int, str]]:
        """As :meth:`judge`, for the records at these places, which have crashed."""
        kept = dict(reasons)
        if not len(places):
            return records, kept
        records = records.copy()
        records["flags"][places] |= FLAG_CRASHED
        for at in places.tolist():
            job = int(records["id"][at])
            times = self._count[job] = self._count.get(job, 0) + 1
            if times >= LIMIT:
                records["result"][at], records["returncode"][at] = Result.FAILED, _KILLED
                records["flags"][at] |= FLAG_REASON
                last = kept.get(job, "the instance was killed")
                kept[job] = (f"what ran it died {times} times, the last time: {last}; it may be the cause, and is not "
                             "tried again; run --resume --rerun failed does")
                self._count[job] = 0
        return records, kept
