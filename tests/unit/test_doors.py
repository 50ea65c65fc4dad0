"""A door's socket among those of other instances on the same machine."""

from __future__ import annotations

import os
import socket

import pytest

from mpiflux.instance import doors


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
