"""Times before which jobs do not start."""

from __future__ import annotations

import datetime

import pytest

from mpiflux.model.jobspec import Dependency, JobGroup
from mpiflux.sched.dependencies import Dependencies, Refuse, Release
from mpiflux.spec import WorkflowError, load
from mpiflux.spec.moments import as_moment


def test_moments_are_absolute_or_count_from_submission() -> None:
    assert as_moment("2026-11-23T08:00:00Z") == as_moment("2026-11-23T09:00+01:00") == (1795420800.0, 0.0)
    assert as_moment("2026-11-23 08:00") == (datetime.datetime(2026, 11, 23, 8).timestamp(), 0.0)
    assert as_moment("+10m") == as_moment("+600") == (0.0, 600.0)


@pytest.mark.parametrize("text", ["", "+", "tomorrow", "10m", "++5", "+-5", "2026-13-01", "1950-01-01T00:00"])
def test_others_are_none(text: str) -> None:
    assert as_moment(text) is None


def test_the_file_has_them_too() -> None:
    group = load("w.yaml", text=b"jobs: {a: {command: x, begin_time: +1h}}").groups[0]
    assert (group.begin_time, group.begin_after, group.after) == (0.0, 3600.0, (Dependency("", "begin"),))
    with pytest.raises(WorkflowError, match="begin_time: expected a time"):
        load("w.yaml", text=b"jobs: {a: {command: x, begin_time: soon}}")


def test_a_group_waits_for_its_time_and_for_others() -> None:
    first = JobGroup(number=0, name="first", first_id=1, count=2)
    late = JobGroup(number=1, name="late", first_id=3, count=1, after=(Dependency("", "begin"), Dependency("first")))
    one = Dependencies([first, late])
    assert one.begin() == [Release(0)] and one.is_early(1)
    assert one.ended(0, 2, 0) == [] and one.begun(1) == [Release(1)] and one.begun(1) == []
    other = Dependencies([first, late])
    other.begin()
    assert other.begun(1) == [] and other.ended(0, 2, 0) == [Release(1)]
    refused = Dependencies([first, late])
    refused.begin()
    assert isinstance(refused.ended(0, 1, 1)[0], Refuse) and refused.begun(1) == []
