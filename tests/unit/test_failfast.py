"""The first failure ends the run, where that was asked for."""

from __future__ import annotations

from mpiflux.instance.failfast import FailFast

NEVER = float("inf")


def test_a_run_that_keeps_going_is_never_ended() -> None:
    one = FailFast(False, 0.0)
    assert not one.failed(7, 1.0) and not one.due(1e9) and one.next == NEVER and not one.reason


def test_only_the_first_failure_counts() -> None:
    one = FailFast(True, 0.0)
    assert not one.due(0.5) and one.failed(7, 1.0)
    assert one.reason == "job 7 failed and the run is to fail fast"
    assert not one.failed(8, 2.0) and not one.due(3.0) and one.next == NEVER
    assert "job 7 " in one.reason


def test_a_signal_may_be_behind_it() -> None:
    one = FailFast(True, 0.5)
    assert not one.failed(7, 1.0) and one.next == 1.5
    assert not one.failed(8, 1.2) and not one.due(1.4) and not one.reason, "jobs are tried again until then"
    assert one.due(1.5) and "job 7 " in one.reason and not one.due(9.0)


def test_a_run_that_ends_in_another_way_is_not_ended_twice() -> None:
    one = FailFast(True, 0.5)
    one.failed(7, 1.0)
    one.clear()
    assert not one.due(9.0) and not one.failed(8, 9.0) and not one.reason
