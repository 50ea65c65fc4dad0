"""Groups that are over: packed in the table, forgotten by dependencies and catalogs, and told of as before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpiflux.instance import broker_feed
from mpiflux.instance.broker_feed import FINAL, RECORD, Feed, Selection
from mpiflux.model import messages as m
from mpiflux.model.jobspec import Dependency, JobGroup
from mpiflux.model.params import ParamTable, RangeColumn
from mpiflux.model.records import PACK
from mpiflux.model.states import Result
from mpiflux.sched.catalog import Catalog
from mpiflux.sched.dependencies import Dependencies, Refuse, Release
from mpiflux.store.eventlog import Event
from mpiflux.store.groups import BLOCK, Groups, Instead


def _group(number: int, first: int, count: int = 1, **more: object) -> JobGroup:
    params = ParamTable({"i": RangeColumn(0, count, 1)}, count) if count > 1 else ParamTable()
    return JobGroup(number=number, name=f"job{number % 7}", first_id=first, count=count, command=("true", str(number)),
                    params=params, env={"A": str(number)}, submitted=True, **more)  # type: ignore[arg-type]


def _groups(counts: list[int]) -> list[JobGroup]:
    firsts = np.cumsum([1, *counts]).tolist()
    return [_group(number, firsts[number], count) for number, count in enumerate(counts)]


@given(st.lists(st.sampled_from([1, 1, 1, 3]), min_size=1, max_size=3 * BLOCK), st.data())
def test_packed_groups_are_the_same_groups(counts: list[int], data: st.DataObject) -> None:
    expected = _groups(counts)
    groups = Groups(expected)
    over = data.draw(st.integers(0, len(expected)))
    for number in range(over):
        groups.over(number)
    assert list(groups) == expected and groups[-1] == expected[-1]
    at = data.draw(st.integers(0, len(expected) - 1))
    assert groups[at] == expected[at] and groups[at:at + 5] == expected[at:at + 5]
    current = list(groups.current())
    assert set(range(over, len(expected))) <= {group.number for group in current}
    assert len(expected) - len(current) == over // BLOCK * BLOCK
    with pytest.raises(IndexError):
        groups[len(expected)]
    longer = _group(len(expected), expected[-1].stop_id)
    groups.append(longer)
    assert groups[len(expected)] == longer and list(groups.current(len(expected))) == [longer]


def test_the_workflow_files_own_groups_come_first() -> None:
    groups, other = Groups(_groups([1, 1, 1])), _group(0, 1, priority=3)
    shown = Instead([other], groups)
    assert [shown[0], shown[1], len(shown)] == [other, groups[1], 3] and list(shown) == [other, *groups[1:]]


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 3), st.booleans()), min_size=1, max_size=60),
       st.integers(0, 400), st.integers(1, 20))
def test_archived_events_are_told_as_before(facts: list[tuple[bool, int, bool]], since: int, most: int) -> None:
    def told(loose: int) -> tuple[list[object], set[int]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(broker_feed, "_LOOSE", loose)
            feed, first = Feed(), 1
            for place, (is_group, n, odd) in enumerate(facts):
                if is_group and odd:
                    feed.jobs(first, n, Event("urgency", 2.0, {"urgency": place}))
                elif is_group:
                    feed.submitted(_group(place, first, n), float(place), waits=n == 2)
                    first += n
                else:
                    packed = b"".join(PACK.pack(1 + (first + k) % 9, 1, Result.FAILED, 0, 0, 1, 0, 0, 1.0, 1.0, 2.0,
                                                0.0, 0.0, 0, k, 0, 9) for k in range(n))
                    feed.records(np.frombuffer(packed, RECORD), np.full(n, FINAL, "u1"), {1: "why"} if odd else {})
            out: list[object] = []
            at = since
            while at < feed.next:
                events, at = feed.read(at, Selection(every=True), (), most)
                out += events
            return out, feed.jobs_since(since, range(1, 50))

    assert told(4) == told(1 << 20)


def test_a_dependency_on_what_was_dropped_is_decided_by_the_table() -> None:
    past = {"#0": (_group(0, 1), 1, 0), "#1": (_group(1, 2), 0, 1)}
    dependencies = Dependencies([], past=past.__getitem__)
    for number in (0, 1, 2):
        assert dependencies.add(_group(number, number + 1)) == [Release(number)]
    follower = _group(3, 4, after=(Dependency("#0"),))
    assert dependencies.add(follower) == []
    assert dependencies.ended(0, 1, 0) == [Release(3)]
    dependencies.ended(1, 0, 1)
    for number in (0, 1):
        dependencies.drop(number)
    assert dependencies.add(_group(4, 5, after=(Dependency("#0"),))) == [Release(4)]
    refused = dependencies.add(_group(5, 6, after=(Dependency("#1"),)))
    assert [type(one) for one in refused] == [Refuse] and dependencies.group("#1").number == 1
    assert dependencies.add(_group(6, 7, after=(Dependency("#2"),))) == []
    dependencies.drop(6)
    assert dependencies.ended(2, 1, 0) == [Release(6)], "what still waits is not dropped"


def test_a_catalog_finds_what_it_has_not_forgotten() -> None:
    catalog = Catalog()
    groups = [_group(0, 1), JobGroup(number=1, name="none", first_id=2, count=0), _group(2, 2), _group(3, 3, 4)]
    for group in groups:
        catalog.add(m.Declare(group))
    catalog.forget((2, 0, 17))
    assert catalog.locate(5) == (groups[3], 2)
    for job in (1, 2):
        with pytest.raises(KeyError):
            catalog.locate(job)
    catalog.add(m.Declare(groups[2]))
    assert catalog.locate(2) == (groups[2], 0)
