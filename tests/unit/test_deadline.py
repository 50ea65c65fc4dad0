"""The end of a run's time."""

from __future__ import annotations

from mpiflux.instance.deadline import MARGIN, SETTLED, deadline
from mpiflux.model.jobspec import JobGroup


def test_the_first_of_several_ends_counts_and_none_that_has_passed() -> None:
    assert deadline(100.0, 0.0, 0.0).t_end == 0.0 and not deadline(100.0, 0.0, 0.0).passed(1e12)
    assert deadline(100.0, 0.0, 99.0).t_end == 0.0
    assert (deadline(100.0, 50.0, 0.0).t_end, deadline(100.0, 50.0, 0.0).what) == (150.0, "the time limit of the run")
    assert deadline(100.0, 50.0, 1000.0).t_end == 150.0
    near = deadline(100.0, 50.0, 120.0)
    assert near.t_end == 120.0 - MARGIN and near.what == "the end of the allocation" and near.passed(110.0)


def test_groups_are_too_late_one_by_one() -> None:
    end = deadline(0.0, 100.0, 0.0)
    for number, limit in enumerate((10.0, 60.0, 0.0, 500.0)):
        end.watch(JobGroup(number=number, name=f"g{number}", first_id=number + 1, count=1, time_limit=limit))
    assert end.due(0.0) == [3] and end.next == 40.0
    assert end.due(39.0) == [] and end.due(90.0) == [1, 0] and end.next == float("inf")
    assert end.too_late == {0, 1, 3} and end.settled_at == 90.0 + SETTLED and end.passed(100.0)
