"""The job table that a journal tells of: all that happened, applied once more in its order. Pure.

Records say how attempts ended. What came between them and is no record stands among the events: dependencies that were
met, and what resumptions changed (:mod:`mpiflux.store.history`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mpiflux.model.jobspec import JobGroup
from mpiflux.model.messages import Chunk
from mpiflux.store.history import RERUN, History, Step
from mpiflux.store.jobtable import Array, JobTable
from mpiflux.store.references import group_of


class Release(NamedTuple):
    """An event: the dependencies of some jobs were met."""

    number: int
    """Of the event, in the order of all events."""
    id: int
    """Of the job; below 0 it concerns jobs of a group (−1 − its number)."""
    ranges: Sequence[tuple[int, int, int]] | None
    """Of a group: which indices, as (start, stop, step); None: all."""


def replayed(groups: Sequence[JobGroup], history: History, records: Array, first: Array, releases: Iterable[Release],
             running: Array) -> JobTable:
    """The table after all this. Raises IllegalTransition, ValueError, IndexError or RunError where it makes no sense.

    ``groups`` as they are now; ``records`` of all ended attempts as they were committed, batch after batch; ``first``:
    where each batch begins in them, and the end of the last one; ``releases`` in order; ``running``: records of the
    attempts that run.
    """
    table = JobTable()
    for group in groups:
        table.add_group(history.first(group))
    batch = np.repeat(np.arange(len(first) - 1), np.diff(first))
    pos = np.arange(len(records)) - first[batch]
    low, coming = 0, iter(releases)
    release = next(coming, None)
    for k, step in enumerate([*history.steps, None]):
        while release is not None and (step is None or release.number < step.number):
            _release(table, groups, release)
            release = next(coming, None)
        high = len(batch) if step is None else max(int(np.searchsorted(batch, step.batch)), low)
        if high > low:
            table.replay(records[low:high], batch[low:high], pos[low:high])
        low = high
        if step is not None:
            _change(table, groups[step.group], step, history.steps[k + 1:])
    if len(running):
        table.started(running, replay=True)
    return table


def _change(table: JobTable, group: JobGroup, step: Step, later: Sequence[Step]) -> None:
    """What a resumption changed; ``group`` is what it is about, as it is now."""
    if step.kind == RERUN:
        indices = np.concatenate([np.zeros(0, "i8"), *(np.arange(*one) for one in step.ranges)])
        if len(indices) and not 0 <= indices.min() <= indices.max() < group.count:
            raise ValueError(f"event {step.number} speaks of jobs that are not there")
        table.rerun(indices + group.first_id)
    else:
        # a step tells what was before it: what came after it was, or is, before the next one
        table.redefine(next((one.was for one in later if one.group == step.group and one.was), group))


def _release(table: JobTable, groups: Sequence[JobGroup], release: Release) -> None:
    id = release.id
    group = group_of(groups, id) if id > 0 else groups[-1 - id]
    some = [(id - group.first_id, id - group.first_id + 1, 1)] if id > 0 else (
        release.ranges if release.ranges is not None else [(0, group.count, 1)])
    for start, stop, step in some:
        table.depend(Chunk(group.number, start, stop, step))
