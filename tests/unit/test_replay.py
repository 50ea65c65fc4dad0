"""The table that a journal tells of is the one that the instances had, and each job alone tells the same."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpiflux.model.jobspec import Dependency, JobGroup
from mpiflux.model.messages import Chunk
from mpiflux.model.records import FLAG_CRASHED, FLAG_NOT_STARTED
from mpiflux.model.states import Result, State
from mpiflux.store.attempts import Attempt, accepted, ended, lately
from mpiflux.store.eventlog import Record
from mpiflux.store.history import REDEFINE, RERUN, History, Step
from mpiflux.store.jobtable import NOBODY, RECORD, Array, JobTable
from mpiflux.store.replay import Release, replayed
from mpiflux.store.schema import RunError

COLUMNS = "state", "result", "returncode", "attempt", "retries_used", "batch", "pos"


class Instances:
    """What instances do one after the other, and what a journal keeps of it. ``a`` has ids 1 to 4, ``b``, which waits
    for it, 5 to 7."""

    def __init__(self, retries: int) -> None:
        self.groups = [JobGroup(number=0, name="a", first_id=1, count=4, retries=retries),
                       JobGroup(number=1, name="b", first_id=5, count=3, after=(Dependency("a"),))]
        self.table = JobTable()
        for group in self.groups:
            self.table.add_group(group)
        self.batches: list[Array] = []
        self.steps: list[Step] = []
        self.releases: list[Release] = []
        self.running: dict[int, Any] = {}
        self.events = 0

    def hand_out(self) -> None:
        table = self.table
        free = np.flatnonzero((table.state[:7] == State.SCHED) & (table.owner[:7] == NOBODY)) + 1
        for chunk in table.chunks(free):
            table.assign(chunk, 0)

    def records(self, items: list[tuple[int, int, Result, bool]]) -> Array:
        """(id, how many attempts ago, result, crashed); of jobs never handed out: that they were cancelled."""
        out = np.zeros(len(items), RECORD)
        for record, (id, ago, result, crashed) in zip(out, items, strict=True):
            now = int(self.table.attempt[id - 1])
            record["id"], record["attempt"], record["result"] = id, max(now - ago, min(now, 1)), result
            record["flags"] = FLAG_CRASHED * (crashed and result == Result.FAILED)
            if not now or self.table.state[id - 1] == State.DEPEND:
                record["attempt"], record["result"], record["flags"] = now, Result.CANCELED, FLAG_NOT_STARTED
        return out

    def do(self, what: str, *args: Any) -> None:
        self.hand_out()
        getattr(self, what)(*args)

    def start(self, ids: list[int]) -> None:
        records = self.records([(id, 0, Result.NONE, False) for id in ids if self.table.state[id - 1] == State.SCHED])
        for record in records[self.table.started(records)]:
            self.running[int(record["id"])] = record

    def end(self, items: list[tuple[int, int, Result, bool]]) -> None:
        records = self.records(items)
        applied = self.table.apply(records, len(self.batches), 0)
        for id in (*applied.ended.tolist(), *applied.again.tolist()):
            self.running.pop(id, None)
        self.batches.append(records)

    def release(self, ranges: list[tuple[int, int, int]] | None) -> None:
        self.events += 1
        self.releases.append(Release(self.events, -2, ranges))
        for start, stop, step in ranges or [(0, 3, 1)]:
            self.table.depend(Chunk(1, start, stop, step))

    def rerun(self, group: int, ranges: list[tuple[int, int, int]]) -> None:
        self.resume()
        first, table = self.groups[group].first_id, self.table
        ids = np.array([first + i for one in ranges for i in range(*one) if i < self.groups[group].count], "i8")
        ids = ids[table.state[ids - 1] == State.INACTIVE]
        self._step(RERUN, group, [(id - first, id - first + 1, 1) for id in np.unique(ids).tolist()], None)
        table.rerun(ids)

    def redefine(self, group: int, retries: int) -> None:
        self.resume()
        was = self.groups[group]
        self._step(REDEFINE, group, [], was)
        self.groups[group] = msgspec.structs.replace(was, retries=retries)
        self.table.redefine(self.groups[group])

    def resume(self) -> None:
        """The instance has died, and another one goes on. It knows no more than the journal does."""
        self.end([(id, 0, Result.LOST, False) for id in self.running])
        self.table = self.check()

    def _step(self, kind: str, group: int, ranges: list[tuple[int, int, int]], was: JobGroup | None) -> None:
        self.events += 1
        self.steps.append(Step(self.events, 0.0, kind, group, len(self.batches), ranges, was, False))

    def replay(self) -> JobTable:
        first = np.cumsum([0, *map(len, self.batches)])
        running = np.array([record.item() for record in self.running.values()], RECORD)
        return replayed(self.groups, History(self.steps), np.concatenate([np.zeros(0, RECORD), *self.batches]), first,
                        self.releases, running)

    def check(self) -> JobTable:
        """The table that the journal tells of, which is ours."""
        table = self.replay()
        for name in COLUMNS:
            now, then = getattr(self.table, name)[:7], getattr(table, name)[:7]
            if name == "attempt":
                # that a job was handed out for the first time is in no record
                now, then = np.maximum(now, 1), np.maximum(then, 1)
            assert then.tolist() == now.tolist(), name
        assert table.counts() == self.table.counts()
        return table

    def attempts(self, id: int) -> list[Attempt]:
        return [Attempt(Record._make(record.item()), 0, number, pos, "") for number, batch in enumerate(self.batches)
                for pos, record in enumerate(batch) if record["id"] == id]


ids = st.integers(1, 7)
ranges = st.lists(st.sampled_from([(0, 3, 1), (0, 3, 2), (0, 1, 1), (1, 3, 1), (2, 3, 1)]), min_size=1, max_size=2)
ends = st.tuples(ids, st.sampled_from([0, 0, 0, 1]), st.sampled_from(list(Result)[1:]), st.booleans())
deeds = st.one_of(
    st.tuples(st.just("start"), st.lists(ids, max_size=3)), st.tuples(st.just("end"), st.lists(ends, max_size=6)),
    st.tuples(st.just("end"), st.lists(ends, max_size=6)), st.tuples(st.just("release"), st.none() | ranges),
    st.tuples(st.just("rerun"), st.integers(0, 1), ranges),
    st.tuples(st.just("redefine"), st.integers(0, 1), st.integers(0, 2)))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2), st.lists(deeds, max_size=16))
def test_a_journal_tells_what_happened(retries: int, deeds: list[Any]) -> None:
    live = Instances(retries)
    for deed in deeds:
        live.do(*deed)
    table, history = live.check(), History(live.steps)
    for id in range(1, 8):
        group = live.groups[id > 4]
        counted = accepted(history, group, live.attempts(id))
        assert ended(history, group, counted) == (table.state[id - 1] == State.INACTIVE)
        assert (counted[-1].batch, counted[-1].offset) == (table.batch[id - 1], table.pos[id - 1]) if counted else (
            table.batch[id - 1] == -1)
        assert sum(one.record.result in (Result.FAILED, Result.TIMEOUT) for one in lately(history, group, counted)) >= (
            table.retries_used[id - 1])


@pytest.mark.parametrize(("steps", "releases"), [
    ([Step(1, 0.0, RERUN, 0, 0, [(3, 5, 1)], None, False)], []), ([], [Release(1, 8, None)]),
    ([], [Release(1, -4, None)]), ([], [Release(1, -2, [(2, 4, 1)])]),
])
def test_what_makes_no_sense_is_refused(steps: list[Step], releases: list[Release]) -> None:
    live = Instances(0)
    live.steps, live.releases = steps, releases
    with pytest.raises((ValueError, IndexError, RunError)):
        live.replay()
