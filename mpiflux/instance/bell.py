"""Bells: how a rank that waits is told at once that another rank of its node has sent it something.

MPI can only be asked whether anything has come, not waited for beside file descriptors. Ranks of one node therefore
ring each other after they have sent: an empty datagram to a unix socket in the directory of the node's
door, which no other user may enter. A bell is never needed, only faster: who heard nothing still asks MPI now and then.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection

from mpiflux.node.zygote import BELL

_TAKEN_DOWN: list[socket.socket] = []
"""Bells that nobody can find any more."""


class Bell:
    """Rank ``me``'s own bell, and those of ``peers``, the other ranks of its node.

    ``neighbours`` are those ranks, on any node, that usually send to this one. Raises OSError when there can be no bell
    in ``directory``.
    """

    def __init__(self, directory: str, me: int, peers: Collection[int], neighbours: Collection[int]) -> None:
        self.reliable = False
        """Whether everybody rings who usually sends. Not before the first ring: ranks that share a host name need not
        share its directories."""
        self._peers = set(peers)
        self.gone: set[int] = set()
        """Ranks whose process is no more, as their bell tells: nobody holds it any longer."""
        self._all_near = self._peers.issuperset(neighbours)
        self._directory, self._me = directory, me
        self._ropes: dict[int, socket.socket] = {}
        self._socket = _datagrams()
        try:
            self._socket.bind(_path(directory, me))
        except OSError:
            self._socket.close()
            raise
        for rank in self._peers.intersection(neighbours):
            # who hangs its bell later says so to this one
            self._send(rank, str(me).encode())

    def fileno(self) -> int:
        return self._socket.fileno()

    def ring(self, rank: int) -> None:
        """Wake ``rank``, which was sent something; nothing happens when it is on another node, has no bell, or was rung
        already."""
        if rank in self._peers:
            self._send(rank, b"")

    def knock(self, rank: int) -> None:
        """Find out whether ``rank`` still holds its bell, see :attr:`gone`; that does not wake it."""
        if rank in self._peers:
            with _datagrams() as rope:
                try:
                    rope.connect(_path(self._directory, rank))
                except ConnectionRefusedError:
                    self.gone.add(rank)
                except OSError:
                    pass  # not hung up yet, or its rank has left

    @property
    def peers(self) -> tuple[int, ...]:
        """The other ranks of this node that are not lost, ascending."""
        return tuple(sorted(self._peers))

    def forget(self, rank: int) -> None:
        """A rank is lost."""
        self._peers.discard(rank)
        self.gone.discard(rank)
        rope = self._ropes.pop(rank, None)
        if rope is not None:
            rope.close()

    def _send(self, rank: int, data: bytes) -> None:
        try:
            self._rope(rank).send(data)
        except BlockingIOError:
            pass  # rung often enough
        except OSError as error:
            # not hung up yet, or its rank has left
            if isinstance(error, ConnectionRefusedError):
                self.gone.add(rank)
            rope = self._ropes.pop(rank, None)
            if rope is not None:
                rope.close()

    def _rope(self, rank: int) -> socket.socket:
        rope = self._ropes.get(rank)
        if rope is None:
            rope = _datagrams()
            try:
                rope.connect(_path(self._directory, rank))
            except OSError:
                rope.close()
                raise
            self._ropes[rank] = rope
        return rope

    def heard(self) -> int:
        """Take every ring that has come, and answer who says that its bell hangs now. How many of them tell that
        something was sent."""
        self.reliable = self._all_near
        rings = 0
        try:
            while True:
                data = self._socket.recv(16)
                if not data:
                    rings += 1
                elif data.isdigit():
                    self.ring(int(data))
        except OSError:
            return rings

    def take_down(self) -> None:
        """The rank leaves, as all do. Whoever has not heard of that yet and still rings shall not think that this
        process has died: the bell itself stays until the process ends."""
        _TAKEN_DOWN.append(self._socket.dup())
        self.close()

    def close(self) -> None:
        for rope in self._ropes.values():
            rope.close()
        name = self._socket.getsockname()
        self._socket.close()
        try:
            os.unlink(name)
        except OSError:
            pass  # the door was closed before, with all that is in its directory


def _datagrams() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)


def _path(directory: str, rank: int) -> str:
    return f"{directory}/{BELL}{rank}"
