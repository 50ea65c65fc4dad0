"""Going on with a run that did not end: what is done, what comes next, and what died with the last instance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpiflux.model.jobspec import JobGroup
from mpiflux.model.messages import Urgency
from mpiflux.model.states import Result, State
from mpiflux.store.eventlog import ELEMENTS
from mpiflux.store.jobtable import Array, JobTable
from mpiflux.store.kvs import Kvs
from mpiflux.store.reader import RunReader


@dataclass(frozen=True, slots=True)
class Resumed:
    """All that a new instance starts from."""

    table: JobTable
    """Ended jobs are INACTIVE for good; attempts and used retries count on. Owners: nobody."""
    groups: Sequence[JobGroup]
    t_submit: Sequence[float]
    kvs: Kvs
    urged: list[Urgency]
    """Changes of urgency that were asked for, in order."""
    waits: list[tuple[float, Array]]
    """Jobs that are to be tried again after a failure, by when that may be (Unix seconds), which may have passed."""
    lost: Array
    """Records of the attempts that ran when the instance died, as LOST. Journal and apply them first, like any
    others: their jobs then come next with a higher attempt number, without using up a retry."""


def resume(reader: RunReader, now: float) -> Resumed:
    """What ``reader`` says of a run whose instance is gone; ``now`` is when its running attempts count as ended.

    Jobs of a group with ``after`` that were not tried yet are in DEPEND, whether or not their dependencies had been
    satisfied: ask the dependencies again, whose outcome is in the table.
    """
    table = reader.table
    waits = _waits(reader)
    ids = np.flatnonzero(table.state[:len(table)] == State.RUN) + 1
    lost = table.synthesize(ids, Result.LOST, now)
    for record in lost:
        # Resource sets are numbered by each instance: without t_alloc the record names none.
        began = reader.running[int(record["id"])]
        record["t_start"], record["tasks"], record["pid"] = began.t_start, began.tasks, began.pid
    return Resumed(table, reader.groups, reader.t_submit, reader.kvs(), _urged(reader), waits, lost)


def _waits(reader: RunReader) -> list[tuple[float, Array]]:
    """The back-off of a retry is from the end of the attempt before, whoever was there to see it."""
    table = reader.table
    n = len(table)
    ids = np.flatnonzero((table.state[:n] == State.SCHED) & (table.retries_used[:n] > 0)) + 1
    latest = reader.latest(ids)
    failed = (latest["result"] == Result.FAILED) | (latest["result"] == Result.TIMEOUT)
    ends = dict(zip(ids[failed].tolist(), latest["t_finish"][failed].tolist(), strict=True))
    by_time: dict[float, list[int]] = {}
    for seconds, some in table.delays(ids[failed]):
        if seconds:
            for job in some.tolist():
                by_time.setdefault(math.ceil(100 * (ends[job] + seconds)) / 100, []).append(job)
    return [(when, np.array(jobs, "i8")) for when, jobs in sorted(by_time.items())]


def _urged(reader: RunReader) -> list[Urgency]:
    found: list[Urgency] = []
    for id, event in reader.events("urgency"):
        group = reader.groups[-1 - id]
        found += [Urgency(group.number, start, stop, event.context["urgency"])
                  for start, stop, _ in event.context.get(ELEMENTS, [(0, group.count, 1)])]
    return found
