"""Frames between a rank and its supervisors, over a socket that gives what it likes."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from mpiflux.node.link import LIMIT, Link, LinkClosed


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Link]]:
    there, here = socket.socketpair()
    link = Link(here)
    yield there, link
    there.close()
    link.close()


def framed(*frames: bytes) -> bytes:
    return b"".join(len(frame).to_bytes(4, "little") + frame for frame in frames)


def test_frames_come_whole_however_they_are_cut(ends: tuple[socket.socket, Link]) -> None:
    there, link = ends
    data, found = framed(b"one", b"", b"three" * 100), []
    for at in range(0, len(data), 7):
        there.sendall(data[at:at + 7])
        found += link.receive()
    assert found == [b"one", b"", b"three" * 100] and link.receive() == []


def test_both_sides_agree(ends: tuple[socket.socket, Link]) -> None:
    there, link = ends
    peer = Link(there.dup())
    large, got = bytes(3 << 20), []
    link.send(b"first")
    link.send(large)
    while got[-1:] != [large]:
        link.flush()
        got += peer.receive()
    assert got == [b"first", large] and link.flush() and not link.backlog
    peer.close()


def test_what_came_before_the_end_is_still_there(ends: tuple[socket.socket, Link]) -> None:
    there, link = ends
    there.sendall(framed(b"last") + b"\x09\x00")
    there.shutdown(socket.SHUT_WR)
    assert link.receive() == [b"last"]
    with pytest.raises(LinkClosed, match="end of stream"):
        link.receive()


def test_garbage_ends_the_link_and_costs_no_memory(ends: tuple[socket.socket, Link]) -> None:
    there, link = ends
    there.sendall((LIMIT + 1).to_bytes(4, "little"))
    with pytest.raises(LinkClosed, match=str(LIMIT + 1)):
        link.receive()
