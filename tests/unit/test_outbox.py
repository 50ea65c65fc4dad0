"""When a supervisor's reports are due, and how a leaf scheduler reckons what it gives ahead."""

from __future__ import annotations

import select
import socket

from hypothesis import given
from hypothesis import strategies as st

from mpiflux.node.link import Link
from mpiflux.node.outbox import FLUSH, Outbox
from mpiflux.sched.catalog import Catalog
from mpiflux.sched.handed import SLOW, Handed


def test_a_report_is_due_a_while_after_its_first_record() -> None:
    here, there = socket.socketpair()
    with here, there, select.epoll() as epoll:
        outbox = Outbox(Link(here), 100, epoll)
        assert outbox.due == float("inf")
        outbox.oldest = 7.0
        outbox.report(3).count(1, 0, 0.001, 1)
        assert outbox.due == 7.0 + FLUSH
        outbox.flush()
        assert outbox.due == float("inf")


@given(st.lists(st.floats(0.0009, 0.0011), min_size=1, max_size=50))
def test_what_is_given_ahead_does_not_follow_every_small_change(seconds: list[float]) -> None:
    handed = Handed((100,), Catalog())
    assert handed.ahead(0) == 0
    handed.took(0, 0.001)
    assert handed.ahead(0) == 100
    for one in seconds:
        handed.took(0, one)
        assert handed.ahead(0) == 100


@given(st.lists(st.floats(1e-5, 1.0), min_size=1, max_size=50))
def test_what_is_given_ahead_is_near_what_was_measured_and_nothing_of_slow_jobs(seconds: list[float]) -> None:
    handed = Handed((100,), Catalog())
    average = seconds[0]
    for one in seconds:
        average = 0.5 * (average + one)
        handed.took(0, one)
    wanted = min(256.0, 0.1 / average)
    if average > SLOW:
        assert handed.ahead(0) == 0
    else:
        assert 0.75 * wanted <= handed.ahead(0) <= 1.4 * wanted + 1
