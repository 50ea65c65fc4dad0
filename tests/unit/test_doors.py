"""A door's socket among those of other instances on the same machine."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from mpiflux.instance import doors
from mpiflux.model import requests as r
from mpiflux.model.frames import Unpacker, pack


def sweeping(base):
    """A socket class under which another instance that starts sweeps the directory between all steps of ours."""

    class Swept(socket.socket):
        def bind(self, address):
            super().bind(address)
            doors.remove_stale(base)

        def listen(self, backlog=0):
            doors.remove_stale(base)
            super().listen(backlog)
            doors.remove_stale(base)

    return Swept


@pytest.mark.parametrize("make", [doors.listen, doors.listen_again])
def test_an_instance_that_starts_leaves_the_door_of_another_that_starts(tmp_path, monkeypatch, make):
    path = doors.socket_path(str(tmp_path), "abcdef12", 3)
    monkeypatch.setattr(socket, "socket", sweeping(str(tmp_path)))
    with make(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        assert os.listdir(os.path.dirname(path)) == ["door"] and os.stat(path).st_mode & 0o777 == 0o600


def test_a_door_is_opened_again_where_a_lost_rank_held_it(tmp_path):
    path = doors.socket_path(str(tmp_path), "abcdef12", 3)
    with doors.listen(path) as lost, doors.listen_again(path) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        listener.accept()[0].close()
        with pytest.raises(BlockingIOError):
            lost.accept()


def test_what_was_killed_is_taken_away(tmp_path):
    path = doors.socket_path(str(tmp_path), "abcdef12", 3)
    doors.listen(path).close()
    doors.remove_stale(str(tmp_path))
    assert os.listdir(tmp_path) == []


class Loop:
    """What a door needs of a rank."""

    def __init__(self):
        self.watched = {}

    def watch(self, fd, events, callback):
        self.watched[fd] = (events, callback)

    def unwatch(self, fd):
        del self.watched[fd]

    def deliver(self, dst, src, message):
        pass

    def look(self):
        for fd, (events, callback) in list(self.watched.items()):
            callback(fd, events)


@pytest.mark.parametrize("said", [b"", pack(r.encode(r.Hello(r.VERSION)))[:5]])
def test_who_does_not_say_who_it_is_is_dropped_with_a_reason(tmp_path, said):
    path, now, loop = doors.socket_path(str(tmp_path), "abcdef12", 0), 100.0, Loop()
    door = doors.Door(path, doors.listen(path), 0, loop, lambda: now)
    with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as other:
        for client, words in ((other, pack(r.encode(r.Hello(r.VERSION)))), (silent, said)):
            client.settimeout(10)
            client.connect(path)
            client.sendall(words)
        loop.look()
        loop.look()
        door.turn(now)
        assert door.next_wake() == now + doors.GREETING
        now += doors.GREETING - 1
        door.turn(now)
        assert len(loop.watched) == 3
        now += 1
        door.turn(now)
        [frame] = Unpacker().feed(silent.recv(1000))
        assert "has not said who it is" in r.decode_answer(frame).reason and silent.recv(1) == b""
        assert len(loop.watched) == 2 and door.next_wake() == float("inf")
    door.close()
    assert os.listdir(tmp_path) == []


def test_no_descriptor_left_and_nobody_waiting_is_no_reason_to_turn_anybody_away(tmp_path):
    path = doors.socket_path(str(tmp_path), "abcdef12", 3)
    door = doors.Door(path, doors.listen(path), 0, Loop(), lambda: 0.0)
    real, asked = door._listener, []

    class Full:
        def accept(self):
            asked.append(1)
            assert len(asked) < 10
            raise OSError(errno.EMFILE, "") if len(asked) % 2 else BlockingIOError()

    door._listener = Full()
    door._accept(0, 0)
    door._listener = real
    door.close()
    assert len(asked) == 2
