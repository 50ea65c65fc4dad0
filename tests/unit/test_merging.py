"""Reports of one round become one, and nothing changes its order that something else builds on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mpiflux.model import messages as m
from mpiflux.sched.merging import MOST_OUTPUT, merged

NEW_R = m.NewR(3, 1, m.ResourceSet(()))


def test_reports_are_joined_behind_the_news_that_they_build_on() -> None:
    first, second = m.Report(b"a" * 72, b"x", {1: "why"}), m.Report(b"b" * 72, b"yz", {2: "so"}, b"c" * 72)
    other = (5, m.Report(b"d" * 72))
    joined = m.Report(b"a" * 72 + b"b" * 72, b"xyz", {1: "why", 2: "so"}, b"c" * 72)
    assert merged([(9, first), other, (9, NEW_R), (9, second), (9, m.Stopped())], 9) == [
        other, (9, NEW_R), (9, joined), (9, m.Stopped())]


def test_what_cannot_be_joined_is_not() -> None:
    one = m.Report(b"a" * 72, reasons={1: "first"})
    two = m.Report(b"b" * 72, reasons={1: "second"})
    back = m.Report(returned=((-1, m.Chunk(0, 0, 1)),))
    large = m.Report(b"c" * 72, b"x" * (MOST_OUTPUT + 1))
    actions = [(9, one), (9, back), (9, two), (9, large)]
    assert merged(actions, 9) == [(9, back), (9, one), (9, two), (9, large)]
    assert merged([(9, one)], 9) == [(9, one)]


reports = st.builds(m.Report, st.binary(max_size=3), st.binary(max_size=3),
                    st.dictionaries(st.integers(1, 5), st.text(max_size=2), max_size=2), st.binary(max_size=3))


@given(st.lists(st.tuples(st.sampled_from([9, 9, 9, 5]), st.one_of(reports, st.just(NEW_R)))))
def test_nothing_is_lost_and_order_is_kept(actions: list[tuple[int, m.Message]]) -> None:
    after = merged(actions, 9)
    for field in ("records", "output", "started"):
        def of(some: list[tuple[int, m.Message]], name: str = field) -> bytes:
            return b"".join(getattr(one, name) for dst, one in some if dst == 9 and isinstance(one, m.Report))

        assert of(after) == of(actions)
    told = [(job, text) for dst, one in actions if dst == 9 and isinstance(one, m.Report)
            for job, text in one.reasons.items()]
    assert told == [(job, text) for dst, one in after if dst == 9 and isinstance(one, m.Report)
                    for job, text in one.reasons.items()]
    assert [one for one in after if one[0] != 9 or not isinstance(one[1], m.Report)] == [
        one for one in actions if one[0] != 9 or not isinstance(one[1], m.Report)]
