"""When rank 0 looks at progress, disk and time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mpiflux.instance.rhythm import BEAT, SLOW, Rhythm


def idle(rhythm: Rhythm, times: int) -> list[float]:
    """The rests between so many beats, each taken as soon as it is due."""
    rests = []
    for _ in range(times):
        now = rhythm.next
        assert rhythm.beats(now) and not rhythm.beats(now)
        rests.append(round(rhythm.next - now, 9))
    return rests


def test_the_longer_nothing_happens_the_rarer_it_is() -> None:
    rhythm = Rhythm(100.0)
    assert not rhythm.beats(99.9)
    assert idle(rhythm, 5) == [2 * BEAT, 4 * BEAT, SLOW, SLOW, SLOW]


def test_what_happens_is_seen_soon() -> None:
    rhythm = Rhythm(100.0)
    idle(rhythm, 5)
    now = rhythm.next - SLOW / 2
    rhythm.quicken(now)
    assert rhythm.next == now + BEAT
    rhythm.quicken(now + BEAT / 2)
    assert rhythm.next == now + BEAT, "a beat that is near is not put off by more that happens"
    assert idle(rhythm, 2) == [2 * BEAT, 4 * BEAT]


def test_nothing_is_put_off_by_what_happens_just_before() -> None:
    rhythm = Rhythm(100.0)
    idle(rhythm, 5)
    due = rhythm.next
    rhythm.quicken(due - BEAT / 4)
    assert rhythm.next == due


@given(st.lists(st.floats(0.001, 1.0), min_size=1, max_size=20), st.floats(100.1, 110.0))
def test_an_end_is_not_slept_through(steps: list[float], end: float) -> None:
    rhythm, now = Rhythm(100.0), 100.0
    for step in steps:
        before, now = now, now + step
        if rhythm.beats(now, end):
            assert rhythm.next <= max(end, now + SLOW) and (rhythm.next <= end or end <= now)
        if before < end <= now and rhythm.next <= end:
            assert rhythm.beats(now, end)
