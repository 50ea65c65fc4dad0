"""A job's stdout and stderr: pipes, or files where the workflow names them, bounded in memory.

Pipes and not files in memory: a program may reopen ``/dev/stderr``, which would truncate a file but not a pipe.
A job that ends at once is never registered with epoll; its pipes are read once, after it has ended.
"""

from __future__ import annotations

import errno
import fcntl
import os

_READ = 1 << 16
SPILL = 1 << 18
"""Bytes of a running job's stream that are kept before they are sent on."""


class Stream:
    """One captured stream of one attempt."""

    __slots__ = ("data", "fd", "limit", "size", "spilled", "truncated")

    def __init__(self, fd: int, limit: int) -> None:
        self.fd = fd
        """Read end; −1 once it is at its end or was never captured."""
        self.data: list[bytes] = []
        self.size = 0
        """Bytes in ``data``."""
        self.spilled = 0
        """Bytes sent on while the job ran."""
        self.limit = limit
        self.truncated = False

    def read(self, rounds: int = 4) -> bool:
        """Take what is there, at most ``rounds`` reads; True once the stream has ended."""
        for _ in range(rounds):
            try:
                data = os.read(self.fd, _READ)
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno == errno.EINTR:
                    continue
                data = b""
            if not data:
                self.close()
                return True
            self._keep(data)
        return False

    def _keep(self, data: bytes) -> None:
        room = self.limit - self.spilled - self.size
        if len(data) > room:
            self.truncated = True
            data = data[:max(room, 0)]
            if not data:
                return
        self.data.append(data)
        self.size += len(data)

    def take(self) -> bytes:
        """What was read and not yet taken."""
        data = b"".join(self.data)
        self.data.clear()
        self.size = 0
        return data

    def spill(self) -> tuple[int, bytes]:
        """The same, as a piece of a stream that goes on: (offset of its first byte, bytes)."""
        offset = self.spilled
        data = self.take()
        self.spilled += len(data)
        return offset, data

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def make_pipe() -> tuple[int, int]:
    """A pipe whose read end does not block. The write end must: the job does not expect EAGAIN."""
    read, write = os.pipe2(os.O_CLOEXEC)
    fcntl.fcntl(read, fcntl.F_SETFL, os.O_NONBLOCK)
    return read, write
