"""Directories that are taken away by whoever is there last; and those of Open MPI jobs on a node, which go with the
supervisor that made them, however it ends."""

from __future__ import annotations

import os
from collections.abc import Iterable

SHARED_MEMORY = "/dev/shm"


def base() -> str:
    """Where the directories are: in memory where that can be, as Open MPI puts there what tasks share."""
    if os.access(SHARED_MEMORY, os.W_OK | os.X_OK):
        return SHARED_MEMORY
    return os.environ.get("TMPDIR") or "/tmp"


def prefix(supervisor: int) -> str:
    """With what the names of a supervisor's directories begin."""
    return f"mpiflux-pmix-{supervisor}-"


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
