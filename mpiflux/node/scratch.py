"""Directories that are taken away by whoever is there last; and those of Open MPI jobs on a node, which go with the
supervisor that made them, or with the next run on the node where nothing outlived it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable

SHARED_MEMORY = "/dev/shm"
_NEW = 60.0
"""Seconds for which a directory may have nobody's lock yet."""


def base() -> str:
    """Where the directories are: in memory where that can be, as Open MPI puts there what tasks share."""
    if os.access(SHARED_MEMORY, os.W_OK | os.X_OK):
        return SHARED_MEMORY
    return os.environ.get("TMPDIR") or "/tmp"


def prefix(supervisor: int) -> str:
    """With what the names of a supervisor's directories begin."""
    return f"{_PREFIX}{supervisor}-"


_PREFIX = "mpiflux-pmix-"


def make_directory(path: str) -> int:
    """Make a directory that is ours for as long as the descriptor is open. Raises OSError."""
    os.mkdir(path, 0o700)
    return _lock(path)


def _lock(path: str) -> int:
    """The kernel lets go of it however we end, and others see it from other PID namespaces too."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def remove_abandoned(now: float) -> None:
    """Take away directories of this user's supervisors that were killed with all that could have done so. ``now`` is
    in Unix seconds."""
    try:
        names = [name for name in os.listdir(base()) if name.startswith(_PREFIX)]
    except OSError:
        return
    for name in names:
        path = os.path.join(base(), name)
        try:
            found = os.stat(path, follow_symlinks=False)
            if found.st_uid != os.getuid() or found.st_mtime > now - _NEW:
                continue
            fd = _lock(path)
        except OSError:
            continue
        remove_directory(path)
        os.close(fd)


def remove_left(supervisors: Iterable[int]) -> None:
    """Take away the directories of supervisors that have ended, once nothing of their jobs runs any more."""
    prefixes = tuple(map(prefix, supervisors))
    try:
        names = [name for name in os.listdir(base()) if name.startswith(prefixes)]
    except OSError:
        return
    for name in names:
        remove_directory(os.path.join(base(), name))


def remove_directory(path: str) -> None:
    """Take away a directory, and what is in it, whoever made it: in a door's also the sockets of instances inside its
    jobs, which may have been killed before they could."""
    try:
        for name in os.listdir(path):
            inner = f"{path}/{name}"
            if os.path.isdir(inner) and not os.path.islink(inner):
                remove_directory(inner)
            else:
                os.unlink(inner)
        os.rmdir(path)
    except OSError:
        return
