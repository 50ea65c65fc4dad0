"""Jobs that end with whoever submitted them."""

from __future__ import annotations

from typing import Any

import pytest

from mpiflux.instance.broker import RequestError, Session
from mpiflux.instance.broker_messages import GRACE
from mpiflux.instance.broker_ties import Ties
from mpiflux.model import requests as r
from mpiflux.model.jobspec import JobGroup
from mpiflux.model.params import ParamTable, RangeColumn
from mpiflux.model.states import Result
from mpiflux.store.jobtable import JobTable


class _Tied:
    def __init__(self, jobs: int) -> None:
        self.table = JobTable()
        params = ParamTable({"i": RangeColumn(0, jobs, 1)}, jobs)
        self.table.add_group(JobGroup(number=0, name="a", first_id=1, count=jobs, command=("true",), params=params))
        self.cancelled: list[int] = []
        self.ties = Ties(self.table, self.cancel)
        self.now = 100.0

    def cancel(self, ids: Any, reason: str) -> int:
        assert "gone" in reason
        self.cancelled += ids.tolist()
        return len(ids)

    def hold(self, name: str, sub: int = 1) -> Session:
        session = Session(7, 1)
        self.ties.handlers()[r.Tie](session, 1, r.Tie(sub, name))
        return session

    def end(self, *jobs: int) -> None:
        self.table.apply(self.table.synthesize(list(jobs), Result.CANCELED, 1.0), 0)

    def later(self, seconds: float) -> list[int]:
        self.ties.turn(self.now)
        self.now += seconds
        self.ties.turn(self.now)
        return self.cancelled


def _gone(session: Session) -> None:
    for end in session.subs.values():
        end()


def test_what_has_not_ended_is_cancelled_once_nobody_is_left() -> None:
    tied = _Tied(9)
    first, second = tied.hold("mine"), tied.hold("mine", 5)
    other = tied.hold("theirs")
    for name, low, high in (("mine", 1, 4), ("theirs", 4, 5), ("mine", 5, 6), ("mine", 6, 8)):
        tied.ties.check(name)
        tied.ties.add(name, low, high)
    tied.end(2, 6)
    _gone(first)
    assert tied.later(GRACE + 1) == []
    _gone(second)
    assert tied.later(GRACE - 1) == []
    again = tied.hold("mine")
    assert tied.later(GRACE + 1) == [], "it came back in time"
    _gone(again)
    assert tied.later(GRACE + 1) == [1, 3, 5, 7]
    with pytest.raises(RequestError, match="tie 'mine'"):
        tied.ties.check("mine")
    _gone(other)
    assert tied.later(GRACE + 1)[4:] == [4] and tied.later(GRACE + 1)[5:] == []


def test_jobs_that_have_ended_are_not_remembered_for_ever() -> None:
    tied = _Tied(9000)
    session = tied.hold("mine")
    kept = 0
    for job in range(1, 9000, 2):
        tied.ties.add("mine", job, job + 1)
        if job > 10:
            tied.end(job)
        kept = max(kept, len(tied.ties._ties["mine"].ranges))
    assert kept < 2100
    _gone(session)
    assert tied.later(GRACE + 1) == [1, 3, 5, 7, 9]


@pytest.mark.parametrize("name", ["", "a..b", "x" * 5000])
def test_names_are_checked(name: str) -> None:
    with pytest.raises(RequestError):
        _Tied(1).hold(name)
