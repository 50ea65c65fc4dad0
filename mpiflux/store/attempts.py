"""Which of a job's records count, and whether the last of them was its end. Pure.

For one job, by reading its few records, what :meth:`mpiflux.store.jobtable.JobTable.apply` decides for whole batches;
tests hold the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from mpiflux.model.jobspec import JobGroup
from mpiflux.model.records import FLAG_CRASHED
from mpiflux.model.states import Result
from mpiflux.store.eventlog import Record
from mpiflux.store.history import History


class Attempt(NamedTuple):
    """An ended attempt and where it is kept."""

    record: Record
    run: int
    batch: int
    offset: int
    """Where its output begins in the batch's blob."""
    reason: str


class HasRecord(Protocol):
    @property
    def record(self) -> Record: ...


def was_end(group: JobGroup, attempts: Sequence[HasRecord]) -> bool:
    """Whether the last of these attempts was the job's end; LOST is none, nor a failure with retries left."""
    if not attempts or attempts[-1].record.result == Result.LOST:
        return False
    failing = (Result.FAILED, Result.TIMEOUT)
    last = attempts[-1].record
    if last.result not in failing or not last.attempt or last.flags & FLAG_CRASHED:
        return True
    if not group.retry.wants(last.result == Result.TIMEOUT, last.returncode):
        return True
    return sum(a.record.result in failing for a in attempts) > group.retries


def accepted(history: History, group: JobGroup, attempts: Sequence[Attempt]) -> list[Attempt]:
    """Of all records of a job, in the order in which they were committed, those that did not come too late."""
    out: list[Attempt] = []
    reruns = [step.batch for step in history.reruns(group, attempts[0].record.id)] if attempts else []
    at = 0
    for attempt in attempts:
        anew = False
        while reruns and attempt.batch >= reruns[0]:
            del reruns[0]
            at, anew = len(out), True
        later = not out or attempt.record.attempt > out[-1].record.attempt or (anew and not attempt.record.attempt)
        if later and not _over(history, group, out[at:]):
            out.append(attempt)
    return out


def lately(history: History, group: JobGroup, attempts: Sequence[Attempt]) -> Sequence[Attempt]:
    """The attempts since the job was to run again although it had ended."""
    reruns = history.reruns(group, attempts[0].record.id) if attempts else []
    return [attempt for attempt in attempts if attempt.batch >= reruns[-1].batch] if reruns else attempts


def ended(history: History, group: JobGroup, attempts: Sequence[Attempt]) -> bool:
    """Whether a job has ended, these being all its attempts that count; ``group`` is what its group is now."""
    return _over(history, group, lately(history, group, attempts))


def _over(history: History, group: JobGroup, attempts: Sequence[Attempt]) -> bool:
    """Whether the last of these was a job's end, by what its group was then."""
    return bool(attempts) and was_end(history.group_at(group, attempts[-1].batch), attempts)
