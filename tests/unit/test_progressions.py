"""Numbers as few ranges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpiflux.store.progressions import progressions


@given(st.sets(st.integers(0, 60)))
def test_they_cover_exactly(values: set[int]) -> None:
    got = progressions(np.array(sorted(values), "i8"))
    assert [i for r in got for i in range(*r)] == sorted(values)


@pytest.mark.parametrize(("values", "ranges"), [
    ([], []), ([7], [(7, 8, 1)]), ([0, 1, 2, 9, 10, 11], [(0, 3, 1), (9, 12, 1)]),
    (range(3, 1000, 7), [(3, 998, 7)]), ([1, 5], [(1, 6, 4)]), ([1, 5, 6, 7], [(1, 2, 1), (5, 8, 1)]),
])
def test_they_are_few(values: list[int], ranges: list[tuple[int, int, int]]) -> None:
    assert progressions(np.array(values, "i8")) == ranges
