"""Ranks of one node wake each other."""

from __future__ import annotations

import os
import select
import socket
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpiflux.instance.bell import Bell


def rung(bell: Bell) -> bool:
    return bool(select.select([bell], [], [], 0)[0])


def test_a_rank_is_woken_by_another(tmp_path: Path) -> None:
    one, two = Bell(str(tmp_path), 1, {2}, {2}), Bell(str(tmp_path), 2, {1}, {1})
    # the later one greets, the earlier one answers: both know then that everybody rings
    assert rung(one) and not rung(two) and not one.reliable
    one.heard()
    assert one.reliable and not rung(one) and rung(two)
    two.heard()
    assert two.reliable and not rung(one) and not rung(two)
    two.ring(1)
    assert rung(one)
    one.heard()
    assert not rung(one) and not rung(two)
    one.close()
    two.close()
    assert not os.listdir(tmp_path)


def test_what_is_no_rank_s_number_is_only_noise(tmp_path: Path) -> None:
    one, two = Bell(str(tmp_path), 1, {2}, {2}), Bell(str(tmp_path), 2, {1}, {1})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        for noise in (b"nonsense", b"-1", b"99999999999999999999", b"\xb2", b" 1"):
            stranger.sendto(noise, str(tmp_path / "bell-1"))
    one.heard()
    assert not rung(one) and one.reliable
    one.close()
    two.close()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([b"7", b"2", b"1", b"1_0", b"+2"])), max_size=8))
def test_no_bytes_at_a_bell_end_its_rank(datagrams: list[bytes]) -> None:
    """Nor do they make it believe anything of ranks that are not its neighbours."""
    with tempfile.TemporaryDirectory() as directory:
        one, two = Bell(directory, 1, {2}, {2, 7}), Bell(directory, 2, {1}, {1})
        one.heard()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
            for data in datagrams:
                stranger.sendto(data, os.path.join(directory, "bell-1"))
        one.heard()
        assert not rung(one) and not one.gone
        assert not one.reliable
        two.ring(1)
        assert rung(one)
        one.close()
        two.close()


def test_senders_elsewhere_make_a_bell_unreliable(tmp_path: Path) -> None:
    one, two = Bell(str(tmp_path), 1, {2}, {2, 7}), Bell(str(tmp_path), 2, {1}, {1})
    one.heard()
    assert not one.reliable
    one.ring(7)
    two.heard()
    assert two.reliable
    one.close()
    two.close()


def test_who_rings_too_often_or_a_rank_that_left_is_not_held_up(tmp_path: Path) -> None:
    one, two = Bell(str(tmp_path), 1, {2, 3}, {2}), Bell(str(tmp_path), 2, {1}, {1})
    for _ in range(10_000):
        two.ring(1)
    one.heard()
    assert not rung(one)
    one.ring(3)
    one.close()
    two.ring(1)
    again = Bell(str(tmp_path), 1, {2}, {2})
    two.heard()
    two.ring(1)
    assert rung(again)
    again.close()
    os.unlink(tmp_path / "bell-2")
    two.close()


def test_without_a_directory_there_is_no_bell(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        Bell(str(tmp_path / "nowhere"), 1, {2}, {2})


def test_whose_bell_nobody_holds_any_more_is_gone(tmp_path: Path) -> None:
    """A process that was killed takes no path away; one that left in order does, and one that comes later has none."""
    one = Bell(str(tmp_path), 1, {2, 3, 4}, set())
    killed, late = Bell(str(tmp_path), 2, {1}, set()), Bell(str(tmp_path), 4, {1}, set())
    one.ring(2)
    one.ring(3)
    assert one.gone == set() and one.peers == (2, 3, 4)
    killed._socket.close()
    late._socket.close()
    for rank in (2, 3, 4):
        one.ring(rank)
    # the last was never rung while it was there
    assert one.gone == {2, 4}
    one.forget(2)
    one.ring(2)
    one.knock(3)
    assert one.gone == {4} and one.peers == (3, 4)
    one.close()
    for rank in (2, 4):
        os.unlink(tmp_path / f"bell-{rank}")


def test_a_knock_wakes_nobody(tmp_path: Path) -> None:
    one, two = Bell(str(tmp_path), 1, {2}, set()), Bell(str(tmp_path), 2, {1}, set())
    one.knock(2)
    assert one.gone == set() and not rung(two)
    two._socket.close()
    one.knock(2)
    assert one.gone == {2}
    one.close()
    os.unlink(tmp_path / "bell-2")


def test_a_bell_that_was_taken_down_is_no_sign_of_death(tmp_path: Path) -> None:
    one, two = Bell(str(tmp_path), 1, {2}, {2}), Bell(str(tmp_path), 2, {1}, {1})
    one.ring(2)
    two.take_down()
    one.ring(2)
    one.knock(2)
    assert one.gone == set() and os.listdir(tmp_path) == ["bell-1"]
    one.close()
