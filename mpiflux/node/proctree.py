"""Finding and ending all processes of a job, including those that left its process group and its session.

A supervisor is a subreaper: whoever a job leaves behind becomes the supervisor's child, and is known as the job's
by ``MPIFLUX_JOB_ID`` and ``MPIFLUX_ATTEMPT`` in its environment. Reading ``/proc`` costs, so nothing here is called
for a job that ends by itself and leaves nobody.
"""

from __future__ import annotations

import os


def children(pid: int) -> list[int]:
    """Direct children of all threads of ``pid``; empty when it is gone."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                found += map(int, file.read().split())
    except OSError:
        pass
    return found


def descendants(pid: int) -> list[int]:
    """Everything below ``pid``, parents first."""
    found = []
    todo = [pid]
    while todo:
        below = children(todo.pop())
        found += below
        todo += below
    return found


def job_of(pid: int) -> tuple[int, int] | None:
    """(job id, attempt) that a process was started for, from its environment; None when it does not say."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environ = file.read().split(b"\0")
    except OSError:
        return None
    job = attempt = 0
    for item in environ:
        if item.startswith(b"MPIFLUX_JOB_ID="):
            job = _number(item[15:])
        elif item.startswith(b"MPIFLUX_ATTEMPT="):
            attempt = _number(item[16:])
    return (job, attempt) if job else None


def _number(text: bytes) -> int:
    return int(text) if text.isdigit() else 0


def signal_tree(roots: list[int], sig: int) -> int:
    """Signal ``roots``, their process groups where they lead one, and everything below; number of processes found.

    Parents first, so that a shell does not start the next command of its script.
    """
    count = 0
    me = os.getpid()
    for root in roots:
        for pid in [root, *descendants(root)]:
            if pid in (me, 1):
                continue
            try:
                if os.getpgid(pid) == pid:
                    os.killpg(pid, sig)
                else:
                    os.kill(pid, sig)
                count += 1
            except OSError:
                continue
    return count
