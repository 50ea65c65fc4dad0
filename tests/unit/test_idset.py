"""Idsets against RFC 22: what it allows is read back, what it forbids is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpiflux.model import idset


@pytest.mark.parametrize(("ids", "text"), [
    ((), ""), ((0,), "0"), ((0, 1, 2, 3, 7), "0-3,7"), ((1, 2), "1-2"),
    ((5, 3, 3, 4), "3-5"), ((0, 2, 4), "0,2,4"),
])
def test_encode(ids: tuple[int, ...], text: str) -> None:
    assert idset.encode(ids) == text
    assert idset.decode(text) == tuple(sorted(set(ids)))


def test_brackets_and_rfc_example() -> None:
    assert idset.decode("[1-3,5-6,42]") == (1, 2, 3, 5, 6, 42)
    assert idset.decode("[]") == ()
    assert idset.decode("1-3,4-5") == (1, 2, 3, 4, 5)


@pytest.mark.parametrize("text", [
    "a", "1,", ",1", "1,,2", "01", "1-02", "3-1", "2-2", "2,1", "1,1", "1-3,3", "1 - 2", " 1", "-1", "1-",
    "[1", "1]", "1-2-3", "0-99999999999", "²", "１", "1;2",
])
def test_refused(text: str) -> None:
    with pytest.raises(ValueError, match="idset"):
        idset.decode(text)


def test_negative_is_refused() -> None:
    with pytest.raises(ValueError, match="-4"):
        idset.encode([1, -4])


@given(st.sets(st.integers(0, 300)))
def test_round_trip(ids: set[int]) -> None:
    text = idset.encode(ids)
    assert idset.decode(text) == tuple(sorted(ids))
    assert idset.encode(idset.decode(text)) == text
