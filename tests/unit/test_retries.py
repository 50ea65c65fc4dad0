"""The rules of many groups on a batch, against the rule of one group on one attempt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpiflux.model.jobspec import JobGroup
from mpiflux.model.records import FLAG_CRASHED
from mpiflux.model.retry import Retry
from mpiflux.model.states import Result
from mpiflux.store.jobtable import RECORD
from mpiflux.store.retries import Retries

rules = st.builds(
    Retry, every=st.booleans(), timeout=st.booleans(), backoff=st.sampled_from([0.0, 1.0, 3.0]),
    codes=st.lists(st.tuples(st.integers(-9, 3), st.integers(0, 9)), max_size=2).map(tuple))
limits = st.integers(0, 3)
ends = st.tuples(st.integers(0, 39), st.sampled_from(list(Result)), st.integers(-9, 9), st.integers(0, 3),
                 st.integers(0, 2), st.booleans())
"""(group, result, return code, retries used, attempt, crashed)."""


def made(groups: list[tuple[int, Retry]]) -> tuple[list[JobGroup], Retries]:
    found: list[JobGroup] = []
    retries = Retries(found)
    for number, (limit, rule) in enumerate(groups):
        found.append(JobGroup(number=number, name="g", first_id=number + 1, count=1, retries=limit, retry=rule))
        retries.note(found[-1])
    return found, retries


def batch(items: list[Any]) -> tuple[Any, Any, Any]:
    records = np.zeros(len(items), RECORD)
    for record, (_, result, code, _, attempt, crashed) in zip(records, items, strict=True):
        record["result"], record["returncode"], record["attempt"] = result, code, attempt
        record["flags"] = FLAG_CRASHED * crashed
    return records, np.array([item[0] for item in items], "i8"), np.array([item[3] for item in items], "u2")


@given(st.lists(st.tuples(limits, rules), min_size=40, max_size=40), st.lists(ends, min_size=1, max_size=20))
def test_a_batch_is_judged_as_each_attempt_alone(groups: list[tuple[int, Retry]], items: list[Any]) -> None:
    found, retries = made(groups)
    records, numbers, used = batch(items)
    wanted = retries.wanted(numbers, retries.limits[numbers], used, records).tolist()
    for (number, result, code, spent, attempt, crashed), again in zip(items, wanted, strict=True):
        group = found[number]
        assert again == (
            result in (Result.FAILED, Result.TIMEOUT) and spent < group.retries and attempt > 0 and not crashed
            and group.retry.wants(result == Result.TIMEOUT, code))


@given(limits, rules, st.lists(ends, min_size=1, max_size=20))
def test_the_number_of_one_group_does_for_all_records(limit: int, rule: Retry, items: list[Any]) -> None:
    _, retries = made([(limit, rule)])
    records, numbers, used = batch(items)
    numbers[:] = 0
    one = retries.wanted(0, retries.limits[0], used, records)
    assert one.tolist() == retries.wanted(numbers, retries.limits[numbers], used, records).tolist()


@given(st.lists(st.tuples(limits, rules), min_size=3, max_size=3),
       st.lists(st.tuples(st.integers(0, 2), st.integers(1, 5)), min_size=1, max_size=20))
def test_each_job_has_one_wait(groups: list[tuple[int, Retry]], jobs: list[tuple[int, int]]) -> None:
    found, retries = made(groups)
    delays = retries.delays(*np.array(jobs, "i8").T)
    waits = {place: seconds for seconds, places in delays for place in places.tolist()}
    assert sum(len(places) for _, places in delays) == len(waits) == len(jobs)
    assert [waits[place] for place in range(len(jobs))] == [found[number].retry.delay(n) for number, n in jobs]
    assert len({seconds for seconds, _ in delays}) == len(delays)


@pytest.mark.parametrize("limit", [0, 2])
def test_the_last_word_on_a_group_counts(limit: int) -> None:
    groups, retries = made([(2, Retry(backoff=1.0, every=False, codes=((1, 1),)))])
    assert retries.patient
    groups[0] = JobGroup(number=0, name="g", first_id=1, count=1, retries=limit, retry=Retry())
    retries.note(groups[0])
    records, numbers, used = batch([(0, Result.FAILED, 5, 0, 1, False)])
    assert retries.wanted(numbers, retries.limits[numbers], used, records).tolist() == [limit > 0]
    assert not retries.patient
