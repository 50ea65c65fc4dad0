"""PMI-1 over socketpairs: the thin shell around :class:`mpiflux.model.pmi.PmiServer`.

The caller owns the loop::

    service = PmiService(PmiServer(size, name, mapping))
    for rank in service.server.ranks:
        fd, variables = service.open(rank)          # fd is inheritable: spawn the rank now, with its variables
        ...spawn...
        service.started(rank)                       # the child has its end
    ...register service.fds() for reading; on one ready: service.on_readable(fd)...
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping

from mpiflux.model.pmi import Abort, Action, PmiServer, Reply, mpich_segments
from mpiflux.node.scratch import SHARED_MEMORY

READ_SIZE = 16384


class PmiService:
    """Sockets of one :class:`PmiServer`. Nothing here blocks, and no rank can make it raise."""

    def __init__(self, server: PmiServer) -> None:
        self.server = server
        self._ours: dict[int, socket.socket] = {}
        self._theirs: dict[int, socket.socket] = {}
        self._rank_of: dict[int, int] = {}

    def open(self, rank: int) -> tuple[int, dict[str, str]]:
        """A rank's end of a new connection, inheritable, and the variables that tell the rank of it.

        Between this and :meth:`started` whatever is spawned inherits the descriptor: spawn that rank and nothing
        else. Raises OSError when there are no descriptors left.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        theirs.set_inheritable(True)
        self._ours[rank], self._theirs[rank] = ours, theirs
        self._rank_of[ours.fileno()] = rank
        local = self.server.ranks
        fd = theirs.fileno()
        return fd, rank_variables(fd, rank, self.server.size, local.index(rank), len(local))

    def started(self, rank: int) -> None:
        """The rank's process exists, or could not be made: let go of its end."""
        self._theirs.pop(rank).close()

    def fds(self) -> list[int]:
        """Descriptors to wait on for reading. A descriptor leaves this list once its rank has closed."""
        return list(self._rank_of)

    def serves(self, fd: int) -> bool:
        return fd in self._rank_of

    def rank_of(self, fd: int) -> int:
        return self._rank_of[fd]

    def fd_of(self, rank: int) -> int:
        """The descriptor of a rank's connection; −1 when it is closed."""
        ours = self._ours.get(rank)
        return -1 if ours is None else ours.fileno()

    def on_readable(self, fd: int) -> list[Action]:
        """Serve one readable descriptor. Returns what the caller must act on: everything but replies.

        Unregister ``fd`` before the next wait if it is no longer among :meth:`fds`; it is then closed already.
        """
        rank = self._rank_of[fd]
        try:
            data = self._ours[rank].recv(READ_SIZE)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            self.close_rank(rank)
            return []
        return self._perform(self.server.feed(rank, data))

    def complete_barrier(self, puts: Mapping[bytes, bytes]) -> list[Action]:
        """See :meth:`PmiServer.complete_barrier`. Returns what the caller must act on."""
        return self._perform(self.server.complete_barrier(puts))

    def close_rank(self, rank: int) -> None:
        """The rank has ended, or its connection is of no more use. Does nothing the second time."""
        self.server.disconnect(rank)
        ours = self._ours.pop(rank, None)
        if ours is not None:
            del self._rank_of[ours.fileno()]
            ours.close()

    def close(self) -> None:
        """Close every descriptor."""
        for rank in list(self._ours):
            self.close_rank(rank)
        for theirs in self._theirs.values():
            theirs.close()
        self._theirs.clear()

    def _perform(self, actions: list[Action]) -> list[Action]:
        left: list[Action] = []
        for action in actions:
            if not isinstance(action, Reply):
                left.append(action)
                if isinstance(action, Abort):
                    self.close_rank(action.rank)
            elif action.rank in self._ours and not self._send(action):
                self.close_rank(action.rank)
                left.append(Abort(action.rank, 1, f"rank {action.rank} does not read its PMI replies"))
        return left

    def _send(self, reply: Reply) -> bool:
        """False for a rank that left so many replies unread that one more does not fit: it is not in lock-step."""
        try:
            return self._ours[reply.rank].send(reply.data) == len(reply.data)
        except BlockingIOError:
            return False
        except OSError:
            return True  # the rank has gone; its end of file comes to on_readable


def rank_variables(fd: int, rank: int, size: int, local_rank: int, local_size: int) -> dict[str, str]:
    """What RFC 13 wants in a rank's environment, and what tells mpiflux itself who started it
    (:func:`mpiflux.instance.launcher.detect`)."""
    return {"PMI_FD": str(fd), "PMI_RANK": str(rank), "PMI_SIZE": str(size),
            "MPIFLUX_LAUNCH_RANK": str(rank), "MPIFLUX_LAUNCH_SIZE": str(size),
            "MPIFLUX_LAUNCH_LOCAL_RANK": str(local_rank), "MPIFLUX_LAUNCH_LOCAL_SIZE": str(local_size)}


def kvs_name(label: str = "mpiflux") -> str:
    """A key-value space name that no other program started by this user's processes has now.

    MPICH derives names of shared-memory segments from it, and hangs on a dead program's: see
    :func:`remove_segments`.
    """
    return f"{label}_{os.getpid()}_{os.urandom(4).hex()}"


def remove_segments(kvsname: str, nodes: int = 1) -> None:
    """Give back the memory that MPICH ranks of this key-value space shared here. All of them have ended."""
    remove_named(mpich_segments(kvsname, nodes))


def remove_named(segments: Iterable[str]) -> None:
    """The same for segments by name (:func:`mpiflux.model.pmi.mpich_segments`)."""
    for name in segments:
        _unlink(os.path.join(SHARED_MEMORY, name))


def unlink_own_segments() -> None:
    """Take the name from the memory this rank shares with its neighbours, so that it is freed with the last of
    them however they end. MPICH only; for any other library this does nothing.

    Call it once MPI is initialised and a barrier of all ranks is passed: before, a rank may still look for it.
    """
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        paths = {line.rstrip("\n").split(None, 5)[5] for line in maps if f" {SHARED_MEMORY}/mpich_" in line}
    for path in paths:
        _unlink(path)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # never made, or a neighbour was first
