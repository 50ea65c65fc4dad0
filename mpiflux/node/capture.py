"""A job's stdout and stderr: pipes, or files where the workflow names them, bounded in memory.

Pipes and not files in memory: a program may reopen ``/dev/stderr``, which would truncate a file but not a pipe.

A job that ends at once is never registered with epoll, and its pipes are used again for the next one: while it runs
we keep their write ends open, and once no process of it is left, :meth:`Stream.collect` takes what they hold. Only
for a job that lives longer, or that leaves somebody behind, is the write end given up (:meth:`Stream.release`), so that
the stream's end can be seen; its pipe is then its own.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os

_READ = 1 << 16
SPILL = 1 << 18
"""Bytes of a running job's stream that are kept before they are sent on."""

_libc_read = ctypes.CDLL(None, use_errno=True).read
_libc_read.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
_libc_read.restype = ctypes.c_ssize_t
_buffer = ctypes.create_string_buffer(_READ)
_view = memoryview(_buffer).cast("B")


class Stream:
    """One captured stream of one attempt."""

    __slots__ = ("child_fd", "data", "fd", "limit", "size", "spilled", "truncated")

    def __init__(self) -> None:
        self.fd = -1
        """Read end; −1 once it is at its end."""
        self.child_fd = -1
        """Write end, for the job's processes; −1 once it was given up."""
        self.data: list[bytes] = []
        self.size = 0
        """Bytes in ``data``."""
        self.spilled = 0
        """Bytes sent on while the job ran."""
        self.limit = 0
        """Bytes that are kept; the rest is dropped and ``truncated`` set."""
        self.truncated = False

    def open(self) -> None:
        """A pipe of its own. Raises OSError."""
        # the read end must not block; the write end must: a job does not expect EAGAIN
        self.fd, self.child_fd = os.pipe2(os.O_CLOEXEC)
        fcntl.fcntl(self.fd, fcntl.F_SETFL, os.O_NONBLOCK)

    def collect(self) -> None:
        """Take all that is in the pipe, at a time when only we could still write to it; it stays open."""
        # ctypes: most jobs write nothing to one of their streams, and os.read makes an exception of that
        while (n := _libc_read(self.fd, _buffer, _READ)) > 0:
            self._keep(bytes(_view[:n]))
            if n < _READ:
                break
        # a job may have set O_NONBLOCK, which would hit the next one
        fcntl.fcntl(self.child_fd, fcntl.F_SETFL, 0)

    def release(self) -> None:
        """Give up the write end: from now on the stream ends with its last writer."""
        if self.child_fd >= 0:
            os.close(self.child_fd)
            self.child_fd = -1

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
        if not self.size:
            return b""
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
        self.release()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Pipes:
    """The two streams of one job, and of the next."""

    __slots__ = ("err", "out")

    def __init__(self) -> None:
        self.out, self.err = Stream(), Stream()

    def begin(self, limit: int) -> None:
        """Make ready for a job of whose stdout and stderr at most ``limit`` bytes each are kept.

        Raises OSError when there are no descriptors left.
        """
        for stream in (self.out, self.err):
            if stream.fd < 0:
                stream.open()
            stream.limit = limit
            stream.truncated = False

    @property
    def reusable(self) -> bool:
        """Whether both streams are as new. They are once they were collected and taken."""
        return self.out.child_fd >= 0 and self.err.child_fd >= 0

    @property
    def ended(self) -> bool:
        """Whether both streams are at their end."""
        return self.out.fd < 0 and self.err.fd < 0

    def links(self) -> frozenset[str]:
        """What ``/proc/PID/fd`` shows for them where somebody has them open."""
        return frozenset(f"pipe:[{os.fstat(stream.fd).st_ino}]" for stream in (self.out, self.err) if stream.fd >= 0)

    def close(self) -> None:
        self.out.close()
        self.err.close()
