"""Going on with a run that did not end: what is done, what comes next, and what died with the last instance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from mpiflux.model.jobspec import JobGroup
from mpiflux.model.messages import Urgency
from mpiflux.model.states import Result, State
from mpiflux.store.crashes import Crashes
from mpiflux.store.eventlog import ELEMENTS, Event
from mpiflux.store.jobtable import Array, JobTable
from mpiflux.store.kvs import Kvs
from mpiflux.store.reader import RunReader
from mpiflux.store.schema import RunError


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
    """Records of the attempts that ran when the instance died, as LOST; FAILED where it was not the first instance or
    supervisor to die with that job. Journal and apply them first, like any others: the jobs of the lost ones then come
    next with a higher attempt number, without using up a retry."""
    reasons: dict[int, str]
    """Why jobs in ``lost`` have failed."""
    crashes: Crashes


class Source(Protocol):
    """What is known of a run whose instance is gone: a :class:`RunReader`, or what a simulation has kept."""

    @property
    def table(self) -> JobTable: ...
    @property
    def records(self) -> Array: ...

    groups: Sequence[JobGroup]
    t_submit: Sequence[float]
    running: Mapping[int, Any]
    """Job to the record of its attempt that runs."""

    def latest(self, ids: Array) -> Array: ...
    def kvs(self) -> Kvs: ...
    def events(self, name: str = "") -> Iterable[tuple[int, Event]]: ...


def resume(reader: Source, now: float) -> Resumed:
    """What ``reader`` says of a run whose instance is gone; ``now`` is when its running attempts count as ended.

    Jobs of a group with ``after`` that were not tried yet are in DEPEND, whether or not their dependencies had been
    satisfied: ask the dependencies again, whose outcome is in the table.
    """
    table = reader.table
    waits = _waits(reader, now)
    ids = np.flatnonzero(table.state[:len(table)] == State.RUN) + 1
    lost = table.synthesize(ids, Result.LOST, now)
    for record in lost:
        # Resource sets are numbered by each instance: without t_alloc the record names none.
        began = reader.running[int(record["id"])]
        record["t_start"], record["tasks"], record["pid"] = began.t_start, began.tasks, began.pid
        # the clock may have been set back since, or be another node's
        record["t_finish"] = max(now, began.t_start)
    crashes = Crashes(reader.records)
    lost, reasons = crashes.count(lost, np.arange(len(lost)), {})
    return Resumed(table, reader.groups, reader.t_submit, reader.kvs(), _urged(reader), waits, lost, reasons, crashes)


def _waits(reader: Source, now: float) -> list[tuple[float, Array]]:
    """The back-off of a retry is from the end of the attempt before, whoever was there to see it; where the clock was
    set back since, or is another node's, it is no longer than it ever was."""
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
                by_time.setdefault(math.ceil(100 * (min(ends[job], now) + seconds)) / 100, []).append(job)
    return [(when, np.array(jobs, "i8")) for when, jobs in sorted(by_time.items())]


def _urged(reader: Source) -> list[Urgency]:
    found: list[Urgency] = []
    for id, event in reader.events("urgency"):
        group = reader.groups[-1 - id]
        found += [Urgency(group.number, start, stop, event.context["urgency"])
                  for start, stop, _ in event.context.get(ELEMENTS, [(0, group.count, 1)])]
    return found


_RESULTS = {"completed": Result.COMPLETED, "failed": Result.FAILED, "canceled": Result.CANCELED,
            "cancelled": Result.CANCELED, "timeout": Result.TIMEOUT}


def chosen(reader: RunReader, words: Sequence[str]) -> Array:
    """Ids of the ended jobs that ``--rerun`` names: results (``failed``), names and ids; a job must match one of the
    results, and one of the names. Raises RunError for a word that is neither."""
    results: set[int] = set()
    named: list[Sequence[int]] = []
    for word in words:
        if word.lower() in _RESULTS:
            results.add(_RESULTS[word.lower()])
        else:
            try:
                named.append(reader.resolve(word))
            except RunError as error:
                raise RunError(f"--rerun: {word!r} is none of completed, failed, canceled, timeout, nor a name or id: "
                               f"{error}") from None
    table = reader.table
    n = len(table)
    mask = table.state[:n] == State.INACTIVE
    if results:
        mask &= np.isin(table.result[:n], sorted(results))
    if named:
        mine = np.zeros(n, bool)
        for ids in named:
            mine[np.asarray(ids, "i8") - 1] = True
        mask &= mine
    found: Array = np.flatnonzero(mask) + 1
    return found


def outdated(reader: RunReader, judged: Mapping[int, Array | None]) -> Array:
    """Ids of the jobs that ended as something else than their group is now; ``judged``: groups that change now, and
    which of their jobs do; None: all."""
    found = [np.zeros(0, "i8")]
    table = reader.table
    for group in reader.groups:
        rows = np.arange(group.first_id - 1, group.stop_id - 1)
        rows = rows[table.state[rows] == State.INACTIVE]
        old = np.zeros(len(rows), bool)
        for step in reader.history.judged(group.number):
            mine = table.batch[rows] < step.batch
            if step.ranges:
                mine &= np.isin(rows - group.first_id + 1, np.concatenate([np.arange(*one) for one in step.ranges]))
            old |= mine
        if group.number in judged:
            ids = judged[group.number]
            old |= True if ids is None else np.isin(rows + 1, ids)
        found.append(rows[old] + 1)
    return np.concatenate(found)


class Early(NamedTuple):
    """Jobs of a group that ended before further jobs of an entry that they wait for as a whole."""

    group: int
    ids: Array
    entry: str
    further: int
    """How many jobs of that entry."""


def early(reader: RunReader, groups: Sequence[JobGroup], gone: Mapping[int, Array]) -> list[Early]:
    """Who ended before the jobs that were added to an entry that it waits for, or that took the place of that entry's;
    whether they were added now, or have run since.

    ``groups`` as they are from now on; ids that are ``gone`` are not waited for, and do not wait.
    """
    table, n = reader.table, len(reader.table)
    last = np.where(table.state[:n] == State.INACTIVE, table.batch[:n], np.iinfo("i8").max)
    last = np.append(last, np.full(groups[-1].stop_id - 1 - n, np.iinfo("i8").max) if groups else [])
    renewed = {group.name.split("~")[0] for group in groups if "~" in group.name and not group.submitted}
    named = {group.name: group for group in reversed(groups) if not group.submitted}
    found = []
    for group in groups[:len(reader.groups)]:
        ids = np.setdiff1d(np.arange(group.first_id, group.stop_id), gone.get(group.number, ()))
        ids = ids[(table.state[ids - 1] == State.INACTIVE) & (table.result[ids - 1] != Result.CANCELED)]
        later: dict[str, list[Array]] = {}
        for one in group.after if len(ids) and not group.submitted else ():
            if one.kind in ("ok", "any") and not one.ids:
                other = groups[int(one.group[1:])] if one.group.startswith("#") else named[one.group]
                if other.base or other.name in renewed:
                    theirs = np.arange(other.first_id, other.stop_id)
                    later.setdefault(other.name, []).append(np.setdiff1d(theirs, gone.get(other.number, ())))
        for name, parts in later.items():
            batches = last[np.concatenate(parts) - 1]
            mine = ids[table.batch[ids - 1] < batches.max(initial=-1)]
            if len(mine):
                first = table.batch[mine - 1].min()
                found.append(Early(group.number, mine, name, int(np.count_nonzero(batches > first))))
    return found


def with_dependants(reader: RunReader, groups: Sequence[JobGroup], ids: Array) -> Array:
    """``ids``, and the jobs that were cancelled only because one of these had not completed, and so on.

    ``groups`` as they are from now on; only those that ``reader`` has are looked at. Jobs that ran are left alone.
    """
    if not len(ids):
        return ids
    table, n = reader.table, len(reader.table)
    again = np.zeros(n, bool)
    again[ids - 1] = True
    victims = _victims(reader)
    by_name: dict[str, JobGroup] = {}
    for group in groups:
        if not group.submitted:
            by_name.setdefault(group.name, group)
    old = groups[:len(reader.groups)]
    while True:
        before = int(np.count_nonzero(again))
        for group in old:
            mine = slice(group.first_id - 1, group.stop_id - 1)
            for dependency in group.after:
                if dependency.ids:
                    hit = any(again[job - 1] for job in dependency.ids if job <= n)
                elif dependency.group:
                    other = by_name.get(dependency.group) or groups[int(dependency.group[1:])]
                    theirs = again[other.first_id - 1:other.stop_id - 1]
                    if dependency.kind == "each":
                        if len(theirs) == group.count:
                            again[mine] |= victims[mine] & theirs
                        continue
                    # a group that is new has no jobs yet, and what waits for it is not over
                    hit = bool(theirs.any()) or other.number >= len(old)
                else:
                    continue
                if hit:
                    again[mine] |= victims[mine]
        if int(np.count_nonzero(again)) == before:
            found: Array = np.flatnonzero(again & (table.state[:n] == State.INACTIVE)) + 1
            return found


def _victims(reader: RunReader) -> npt.NDArray[np.bool_]:
    """Mask over all jobs: cancelled because a dependency could not be met."""
    table, n = reader.table, len(reader.table)
    mask = np.zeros(n, bool)
    canceled = np.flatnonzero((table.state[:n] == State.INACTIVE) & (table.result[:n] == Result.CANCELED)) + 1
    if len(canceled):
        for job in reader.jobs(ids=canceled.tolist()):
            mask[job["id"] - 1] = str(job["reason"]).startswith("dependency")
    return mask
