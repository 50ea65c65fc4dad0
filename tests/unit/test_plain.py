"""The quick way to end a plain batch of jobs does what the general one does."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mpiflux.model.jobspec import JobGroup
from mpiflux.model.messages import Chunk
from mpiflux.model.records import FIELDS, FLAG_STDOUT_TRUNCATED
from mpiflux.model.states import IllegalTransition, Result
from mpiflux.store import jobtable
from mpiflux.store.jobtable import RECORD, Applied, JobTable
from mpiflux.store.plain import complete, words

SIZES = 7, 5
COLUMNS = "state", "result", "returncode", "attempt", "owner", "retries_used", "batch", "pos"


def table() -> JobTable:
    made, first = JobTable(), 1
    for number, count in enumerate(SIZES):
        made.add_group(JobGroup(number=number, name=f"g{number}", first_id=first, count=count, command=("true",),
                                retries=number))
        made.assign(Chunk(number, 0, count), 3)
        first += count
    return made


def batch(jobs: list[int], **same: Any) -> Any:
    records = np.zeros(len(jobs), RECORD)
    records["id"], records["attempt"], records["result"] = jobs, 1, Result.COMPLETED
    for name, value in same.items():
        records[name] = value
    return records


def general(made: JobTable, records: Any, number: int, pos: int) -> Applied | str:
    with mock.patch.object(jobtable, "complete", lambda *_: None):
        return applied(made, records, number, pos)


def applied(made: JobTable, records: Any, number: int, pos: int) -> Applied | str:
    try:
        return made.apply(records, number, pos)
    except IllegalTransition as error:
        return str(error)


def told(what: Applied | str) -> Any:
    if isinstance(what, str):
        return what
    return [what.late.tolist(), what.repeated.tolist(), what.ended.tolist(), what.results.tolist(), what.again.tolist(),
            what.ran.tolist(), what.groups]


JOBS = st.one_of(st.lists(st.integers(0, sum(SIZES) + 1), max_size=6), st.permutations(range(1, SIZES[0] + 1)),
                 st.builds(range, st.integers(1, 4), st.integers(4, 13)).map(list))
ALIKE = st.fixed_dictionaries({}, optional={
    "attempt": st.integers(0, 2), "result": st.sampled_from(list(Result)), "returncode": st.sampled_from([0, 0, -9]),
    "flags": st.sampled_from([0, 0, FLAG_STDOUT_TRUNCATED])})
BATCHES = st.lists(st.tuples(st.booleans(), JOBS, ALIKE, st.integers(0, 9), st.booleans()), max_size=8)


@settings(deadline=None)
@given(BATCHES)
def test_both_ways_do_the_same(batches: list[tuple[bool, list[int], dict[str, Any], int, bool]]) -> None:
    one, other = table(), table()
    for number, (start, jobs, same, pos, odd) in enumerate(batches):
        records = batch(jobs, **same)
        if odd and jobs:
            records["result"][-1] = Result.FAILED
        if start:
            assert one.started(records).tolist() == other.started(records).tolist()
        assert told(applied(one, records, number, pos)) == told(general(other, records, number, pos))
        for name in COLUMNS:
            assert getattr(one, name).tolist() == getattr(other, name).tolist(), name
        assert one.counts() == other.counts() and one.over == other.over
        assert one.over == (one.counts().inactive == sum(SIZES))
        for group in range(len(SIZES)):
            assert one.group_ended(group) == other.group_ended(group)


def test_what_is_usual_goes_the_quick_way() -> None:
    for jobs in ([3], [1, 2, 3], [2, 1, 5], list(range(1, 8)), [12, 10]):
        assert complete(table(), batch(jobs), 0, 0) is not None
    running = table()
    running.started(batch([1, 2]))
    found = complete(running, batch([1, 2]), 0, 0)
    assert found is not None and found.ran.all() and found.plain
    for unusual in (batch([1, 1]), batch([7, 8]), batch([1, 2], attempt=2), batch([1], flags=1), batch([]), batch([13]),
                    batch([1], returncode=1), batch([0])):
        assert complete(table(), unusual, 0, 0) is None
    assert complete(running, batch([1, 2, 3]), 0, 0) is None, "they were not all in one state"


def test_words_are_what_they_are_said_to_be() -> None:
    records = batch([5], attempt=2, result=1, r_sched=7, r_id=9)
    first = words(records)[0].tolist()
    assert first[:3] == [5, 2 | 1 << 16, 7 | 9 << 32]
    assert [name for name, _ in FIELDS][:8] == ["id", "attempt", "result", "flags", "returncode", "tasks", "r_sched",
                                               "r_id"]
