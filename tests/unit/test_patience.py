"""A rank that says nothing for too long is given up; who was stopped beside it waits a little longer."""

from __future__ import annotations

from mpiflux.node.patience import AGAIN, Patience


def test_a_silent_rank_is_given_up_after_a_last_look() -> None:
    one = Patience(10.0, 0.0)
    assert not one.over(9.9) and one.next == 10.0
    one.heard(9.9)
    assert not one.over(19.0)
    assert not one.over(500.0) and one.next == 500.0 + 10 * AGAIN
    assert not one.over(501.0) and one.over(501.25)


def test_a_sign_of_life_after_the_doubt_counts() -> None:
    one = Patience(10.0, 0.0)
    assert not one.over(500.0)
    one.heard(500.1)
    assert not one.over(502.0) and one.next == 510.1


def test_what_was_heard_late_counts_from_when_it_was_true() -> None:
    one = Patience(10.0, 0.0)
    one.heard(4.0)
    one.heard(2.0)
    assert one.next == 14.0


def test_none_at_all_is_for_ever() -> None:
    one = Patience(0.0, 0.0)
    assert not one.over(1e12) and one.next == float("inf")
