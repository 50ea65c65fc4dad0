"""Starts that fail for want of something are tried again, for a while."""

from __future__ import annotations

from mpiflux.model.messages import NodeShare
from mpiflux.node.launch import Lease, Place
from mpiflux.node.shortage import AGAIN, PATIENCE, Shortage

ONE, OTHER = (Lease(number, 0, 1, 0, 1, Place(NodeShare(0), (frozenset(),), {})) for number in (1, 2))


def test_leases_wait_together_for_the_next_try() -> None:
    shortage = Shortage()
    assert not shortage.leases
    assert shortage.bears(ONE, 50.0) and shortage.bears(OTHER, 50.01)
    assert shortage.leases == [ONE, OTHER] and shortage.at == 50.01 + AGAIN
    assert shortage.take() == [ONE, OTHER] and not shortage.leases
    assert shortage.since == 50.0, "another try is no success"


def test_after_a_while_each_job_fails_that_cannot_be_started_then() -> None:
    shortage = Shortage()
    assert shortage.bears(ONE, 50.0) and shortage.bears(ONE, 50.0 + PATIENCE - 0.1)
    assert not shortage.bears(ONE, 50.0 + PATIENCE)
    # the next job of the lease is another: it gets as long
    assert shortage.bears(ONE, 51.0 + PATIENCE) and not shortage.bears(OTHER, 51.0 + 2 * PATIENCE)


def test_a_start_that_goes_well_ends_it() -> None:
    shortage = Shortage()
    assert shortage.bears(ONE, 50.0)
    shortage.since = 0.0
    assert shortage.bears(ONE, 55.0 + PATIENCE) and shortage.since == 55.0 + PATIENCE
