"""The end of a run's time."""

from __future__ import annotations

import pytest

from mpiflux.instance.deadline import MARGIN, SETTLED, AllocationEnd, allocation_end, deadline
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


NOW = 1_700_000_000.0


@pytest.mark.parametrize(("environ", "time"), [
    ({}, 0.0), ({"SLURM_JOB_END_TIME": "1700000900"}, NOW + 900), ({"SLURM_JOB_END_TIME": "1600000000"}, 0.0),
    ({"SLURM_JOB_END_TIME": "4294967295"}, 0.0), ({"SLURM_JOB_END_TIME": ""}, 0.0), ({"MPIFLUX_END_TIME": "0"}, 0.0),
    ({"MPIFLUX_END_TIME": "1700000300.5", "SLURM_JOB_END_TIME": "1700000900"}, NOW + 300.5),
    ({"MPIFLUX_END_TIME": "", "SLURM_JOB_END_TIME": "1700000900"}, NOW + 900),
])
def test_the_end_of_the_allocation_is_read(environ: dict[str, str], time: float) -> None:
    assert allocation_end(environ, NOW) == AllocationEnd(time)


@pytest.mark.parametrize("text", ["garbage", "-5", "10m", "1e9", "1700000300000", "nan", "٣"])
def test_an_end_that_a_person_gave_must_be_right(text: str) -> None:
    end = allocation_end({"MPIFLUX_END_TIME": text, "SLURM_JOB_END_TIME": "1700000900"}, NOW)
    assert f"MPIFLUX_END_TIME is {text!r}: it must be in Unix seconds" in end.trouble and not end.time


def test_an_end_that_cannot_be_used_is_told_of() -> None:
    assert allocation_end({"MPIFLUX_END_TIME": "1600000000"}, NOW) == AllocationEnd(
        notes=("MPIFLUX_END_TIME is 1600000000, which has passed: taken for no end",))
    slurm = allocation_end({"SLURM_JOB_END_TIME": "soon"}, NOW)
    assert not slurm.time and not slurm.trouble and "SLURM_JOB_END_TIME is 'soon'" in slurm.notes[0]
