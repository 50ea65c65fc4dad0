"""What the limits of a process (``ulimit``) mean for mpiflux, in words that say what to change."""

from __future__ import annotations

import errno
import resource

LEAST_MEMORY = 384 << 20
"""Bytes of address space without which not even the libraries load."""


def too_little_memory() -> str:
    """Why this process may not use enough memory; empty when it may."""
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    if soft == resource.RLIM_INFINITY or soft >= LEAST_MEMORY:
        return ""
    return f"ulimit -v allows {soft >> 10:,} KiB of memory, and at least {LEAST_MEMORY >> 10:,} are needed: raise it"


def in_words(error: BaseException) -> str:
    """An error that comes of a limit, or of a machine that is full; empty for any other."""
    if isinstance(error, MemoryError):
        soft = resource.getrlimit(resource.RLIMIT_AS)[0]
        limit = "" if soft == resource.RLIM_INFINITY else f" (ulimit -v allows {soft >> 10:,} KiB: raise it)"
        return f"out of memory{limit}"
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        error = OSError(errno.EAGAIN, str(error))
    if not isinstance(error, OSError):
        return ""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"out of file descriptors (ulimit -n allows {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}: raise it)"
    if error.errno == errno.EAGAIN:
        return (f"out of processes (ulimit -u allows {resource.getrlimit(resource.RLIMIT_NPROC)[0]}, threads and other "
                "programs of the user counted in: raise it)")
    if error.errno == errno.ENOMEM:
        return f"out of memory: {error.strerror}"
    return ""
