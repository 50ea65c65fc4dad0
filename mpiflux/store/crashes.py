"""Jobs that take down what runs them: their supervisor, their rank, their node. Pure.

A lost attempt is not the job's fault and uses up no retry, but a job whose attempts are lost again and again may be
the cause, and would be tried for ever. So attempts that had begun are counted. From the second on a job is a suspect,
and tried alone, under a supervisor that runs nothing else: so whoever only was beside the cause is rid of it. What
merely waited in the queue of whoever died does not count, nor what ended as the run was interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from mpiflux.model.messages import Chunk
from mpiflux.model.records import FLAG_ALONE, FLAG_CRASHED, FLAG_NOT_STARTED, FLAG_REASON
from mpiflux.model.states import Result
from mpiflux.store.jobtable import JobTable

SUSPECT = 2
"""Lost attempts of a job, that had begun, after which it is tried alone."""
LIMIT = 5
"""Those after which it has failed, if the last one was alone. HyperQueue's crash limit is the same."""
MOST = 10
"""Those after which it has failed in any case: where ranks, nodes or instances die nobody can say of what."""
_KILLED = -9

Array = npt.NDArray[Any]


class Crashes:
    """Counts by job. ``history``: all records that an earlier instance left, in order."""

    def __init__(self, history: Array | None = None) -> None:
        self._count: dict[int, int] = {}
        self._suspects: set[int] = set()
        if history is not None:
            crashed = history[(history["flags"] & FLAG_CRASHED) != 0]
            for job, result in zip(crashed["id"].tolist(), crashed["result"].tolist(), strict=True):
                # a job that has failed by this and is run again for a person's sake begins anew
                self._note(job, self._count.get(job, 0) + 1 if result == Result.LOST else 0)

    @property
    def suspects(self) -> Set[int]:
        """Jobs that are to be tried alone, some of which may have ended."""
        return self._suspects

    def _note(self, job: int, times: int) -> None:
        self._count[job] = times
        if times >= SUSPECT:
            self._suspects.add(job)
        else:
            self._suspects.discard(job)

    def chunks(self, table: JobTable, ids: Array) -> list[Chunk]:
        """Jobs as :meth:`JobTable.chunks` has them, those that are to be tried alone as such."""
        if not self._suspects:
            return table.chunks(ids)
        suspects = np.isin(ids, np.fromiter(self._suspects, "i8", len(self._suspects)))
        return table.chunks(ids[~suspects]) + [
            msgspec.structs.replace(chunk, alone=True) for chunk in table.chunks(ids[suspects])]

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
            times = self._count.get(job, 0) + 1
            self._note(job, times)
            alone = bool(records["flags"][at] & FLAG_ALONE)
            if times >= (LIMIT if alone else MOST):
                records["result"][at], records["returncode"][at] = Result.FAILED, _KILLED
                records["flags"][at] |= FLAG_REASON
                last = kept.get(job, "the instance was killed")
                why = "it was alone then" if alone else "it may be the cause"
                kept[job] = (f"what ran it died {times} times, the last time: {last}; {why}, and is not tried again; "
                             "run --resume --rerun failed does")
                self._note(job, 0)
        return records, kept
