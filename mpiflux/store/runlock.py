"""One writer a run directory: a POSIX record lock on ``run.db-lock``.

A POSIX lock goes with its process, however that dies, is not inherited by what the process forks, and works across
hosts on NFS and on Lustre mounted with ``flock``. It does not keep a process from locking twice, and closing any
descriptor of the file would drop it; so this module remembers what this process holds and opens that file no more.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from pathlib import Path

NAME = "run.db-lock"

_UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
_mine: set[tuple[int, int]] = set()


class Held(Exception):
    """Another instance writes to this run directory."""


class RunLock:
    """Held from construction until :meth:`release`. Raises Held, or OSError when the directory is not writable."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        path = Path(directory) / NAME
        self.supported = True
        """False where the file system has no locks: then nothing keeps a second writer out."""
        self._key = _key(path)
        if self._key in _mine:
            raise Held(f"{directory}: this process already writes to this run directory")
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._take(directory)
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except BaseException:
            os.close(self._fd)
            raise
        self._key = _key(path)
        if self._key:
            _mine.add(self._key)

    def _take(self, directory: str | os.PathLike[str]) -> None:
        # A reader that looks whether the lock is held takes it for some microseconds: that is no reason to give up.
        for attempt in range(10):
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno in _UNSUPPORTED:
                    self.supported = False
                    return
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise
            if attempt < 9:
                time.sleep(0.02)
        holder = os.pread(self._fd, 200, 0).decode(errors="replace").strip() or "another instance"
        raise Held(f"{directory}: {holder} is writing to this run directory; wait until it ends, "
                   "or choose another with --run-dir")

    def release(self) -> None:
        """Give the lock up. More than once does no harm."""
        if self._fd >= 0:
            _mine.discard(self._key or (0, 0))
            os.close(self._fd)
            self._fd = -1


def _key(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def held(directory: str | os.PathLike[str]) -> bool:
    """Whether an instance writes to this run directory now. False where the file system has no locks."""
    path = Path(directory) / NAME
    if _key(path) in _mine:
        return True
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN)
    finally:
        os.close(fd)
    return False
