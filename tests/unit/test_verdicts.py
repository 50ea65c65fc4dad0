"""Verdicts wait for the journal, and refusals for a signal that may come."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mpiflux.instance.verdicts import Verdicts
from mpiflux.sched.dependencies import Refuse, Release, Verdict
from mpiflux.store.elementwise import Elements

NONE = np.zeros(0, "i8")
NEVER = float("inf")
kinds = st.sampled_from(["release", "refuse", "some may", "some never"])


def made(kind: str, number: int) -> Verdict | Elements:
    return {"release": Release(number), "refuse": Refuse(number, "why"), "some may": Elements(number, NONE),
            "some never": Elements(number, NONE, "a", "did not complete")}[kind]


@given(st.lists(st.tuples(kinds, st.integers(0, 5), st.floats(1.0, 9.0)), max_size=12),
       st.lists(st.tuples(st.integers(0, 5), st.floats(0.0, 10.0)), max_size=8))
def test_each_is_due_once_and_not_before_its_time(said: list[tuple[str, int, float]],
                                                  asked: list[tuple[int, float]]) -> None:
    verdicts, open_ = Verdicts(), []
    for number, (kind, seq, refuse_at) in enumerate(said):
        verdict = made(kind, number)
        verdicts.add([verdict], seq, refuse_at)
        open_.append((seq, refuse_at if kind in ("refuse", "some never") else 0.0, verdict))
    for committed, now in asked:
        due = [verdict for seq, when, verdict in open_ if seq <= committed and when <= now]
        assert (verdicts.next(committed) <= now) == bool(due)
        assert list(map(id, verdicts.due(committed, now))) == list(map(id, due))
        open_ = [one for one in open_ if one[0] > committed or one[1] > now]
        assert len(verdicts.waiting) == len(open_)
        assert verdicts.next(committed) == min((when for seq, when, _ in open_ if seq <= committed), default=NEVER)


def test_what_is_cleared_is_never_due() -> None:
    verdicts = Verdicts()
    verdicts.add([made("release", 1), made("refuse", 2)], 0, 0.0)
    verdicts.clear()
    assert not verdicts.waiting and not verdicts.due(9, 9.0) and verdicts.next(9) == NEVER
