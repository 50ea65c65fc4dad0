"""Who is missed, and who is not: those that were heard, and all while we were not there to hear."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpiflux.overlay.heartbeat import BEATS, Heartbeat


def run(heart: Heartbeat, until: float, heard: dict[int, list[float]], step: float = 0.5) -> dict[int, float]:
    """When each rank was first missed, looking every ``step`` seconds up to ``until``."""
    missed: dict[int, float] = {}
    now = 0.0
    while now < until:
        now += step
        for rank, times in heard.items():
            if any(now - step < when <= now for when in times):
                heart.heard(rank, now)
        heart.beat(now)
        for rank in heart.silent(now):
            missed.setdefault(rank, now)
    return missed


def test_only_who_is_silent_for_longer_than_the_time_out_is_missed() -> None:
    heart = Heartbeat((1, 2, 3), 6.0, 0.0)
    missed = run(heart, 30.0, {1: [float(t) for t in range(30)], 2: [1.0, 2.0], 3: [5.5, 11.0, 16.5, 22.0, 27.5]})
    assert set(missed) == {2} and 8.0 < missed[2] <= 8.5


def test_who_is_forgotten_is_not_missed_nor_heard() -> None:
    heart = Heartbeat((1, 2), 6.0, 0.0)
    heart.forget(1)
    heart.heard(1, 1.0)
    assert heart.peers == (2,) and set(run(heart, 20.0, {})) == {2}


def test_who_was_away_itself_blames_nobody_for_that() -> None:
    heart = Heartbeat((1, 2), 6.0, 0.0)
    run(heart, 5.0, {1: [4.0]})
    heart.beat(1000.0)
    assert heart.silent(1000.0) == []
    heart.heard(1, 1001.0)
    for second in range(1001, 1010):
        heart.beat(float(second))
    assert heart.silent(1007.0) == [2]


def test_who_was_heard_before_we_knew_that_we_were_away_is_missed_in_time() -> None:
    heart = Heartbeat((1,), 6.0, 0.0)
    heart.beat(1.0)
    heart.heard(1, 500.0)
    heart.beat(500.0)
    assert run_from(heart, 500.0) <= 507.0


def run_from(heart: Heartbeat, now: float) -> float:
    """When the only peer, which says nothing more, is missed."""
    while not heart.silent(now):
        now += 0.5
        heart.beat(now)
        assert now < 1e4
    return now


def test_an_answer_counts_from_when_the_question_was_sent() -> None:
    heart = Heartbeat((0,), 6.0, 0.0)
    heart.beat(1.0)
    heart.heard(0, 1.0)
    heart.heard(0, 0.5)
    assert run_from(heart, 1.0) == 7.5


@pytest.mark.parametrize("timeout", [1.0, 6.0, 60.0])
def test_signs_of_life_are_given_often_enough(timeout: float) -> None:
    heart = Heartbeat((1,), timeout, 0.0)
    times = [k * timeout / 100 for k in range(1, 1001)]
    given_at = [now for now in times if heart.beat(now)]
    gaps = [b - a for a, b in itertools.pairwise(given_at)]
    assert len(given_at) >= 9 * BEATS and max(gaps) <= 1.1 * timeout / BEATS
    assert heart.next > times[-1]


@given(st.lists(st.floats(0.01, 9.0), min_size=1, max_size=60))
def test_whoever_gives_signs_in_time_is_never_missed(pauses: list[float]) -> None:
    """Looked at as often as the beats are due, and as late as a busy rank may be."""
    heart, now = Heartbeat((7,), 10.0, 0.0), 0.0
    for pause in pauses:
        end = now + pause
        while now < end:
            now = min(now + heart.period, end)
            heart.beat(now)
            assert heart.silent(now) == []
        heart.heard(7, now)


def test_the_first_sign_may_be_expected_sooner() -> None:
    heart = Heartbeat((1, 2), 60.0, 0.0, first=20.0)
    missed = run(heart, 90.0, {1: [12.0]})
    assert 20.0 < missed[2] <= 20.5 and 72.0 < missed[1] <= 72.5
    assert run(Heartbeat((1,), 6.0, 0.0, first=20.0), 5.5, {}) == {}
