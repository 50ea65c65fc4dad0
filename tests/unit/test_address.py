"""Endpoints as numbers, and the communicator between two of them."""

from __future__ import annotations

import pytest

from mpiflux.overlay import address

ROOT, LEAF = 0, 5
SUPERVISOR, RANK = address.executor(3, 1), address.control(3)


@pytest.mark.parametrize(("one", "other", "whose"), [
    (ROOT, LEAF, ROOT), (LEAF, SUPERVISOR, LEAF), (ROOT, SUPERVISOR, ROOT), (address.MASTER, ROOT, ROOT),
    (RANK, address.control(0), address.EVERYBODY), (RANK, LEAF, address.EVERYBODY),
    (RANK, address.MASTER, address.EVERYBODY),
])
def test_both_ways_go_through_whoever_is_above(one: int, other: int, whose: int) -> None:
    assert address.communicator(one, other) == address.communicator(other, one) == whose


def test_a_rank_is_known_by_what_is_on_it() -> None:
    assert address.rank_of_executor(SUPERVISOR) == address.rank_of_control(RANK) == 3
    assert address.is_executor(SUPERVISOR) and not address.is_control(SUPERVISOR)
    assert address.is_control(RANK) and not address.is_executor(RANK)
    assert not any(map(address.is_control, (ROOT, LEAF, address.MASTER)))
