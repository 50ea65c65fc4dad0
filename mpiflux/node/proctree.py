"""Finding and ending all processes of a job, including those that left its process group and its session.

A supervisor is a subreaper: whoever a job leaves behind becomes the supervisor's child, and is known as the job's
by ``MPIFLUX_JOB_ID`` and ``MPIFLUX_ATTEMPT`` in its environment. One that cleared its environment is known by the job's
process group, by the job's output that it holds open, or by the cores that it is bound to. Reading ``/proc`` costs: for
a job that ends by itself and leaves nobody it is one ``pread`` (:meth:`Strays.none`).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection
from typing import NamedTuple

Key = tuple[int, int]
"""(job id, attempt)."""


def children(pid: int) -> list[int]:
    """Direct children of all threads of ``pid``, zombies too; empty when it is gone."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                found += map(int, file.read().split())
    except FileNotFoundError:
        # gone, or a kernel without CONFIG_PROC_CHILDREN
        return _children_by_parent(pid) if os.path.exists(f"/proc/{pid}") else []
    except OSError:
        pass
    return found


def _children_by_parent(parent: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            pid = int(name)
            if _state_and_parent(pid)[1] == parent:
                found.append(pid)
    return found


ZYGOTE = "mpiflux-zygote"
"""Name of the process below which are all that an instance has started."""


def descendants(pid: int, *, into_instances: bool = True) -> list[int]:
    """Everything below ``pid``, parents first; without ``into_instances`` but for what instances of mpiflux started."""
    found = []
    todo = [pid]
    while todo:
        below = children(todo.pop())
        if not into_instances:
            below = [child for child in below if _name(child) != ZYGOTE]
        found += below
        todo += below
    return found


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return ""


def is_of_instance(pid: int) -> bool:
    """Whether this is a zygote or a supervisor, and runs."""
    return _name(pid) == ZYGOTE and _state_and_parent(pid)[0] not in "ZX"


def abandoned(mark: bytes) -> list[int]:
    """Processes of jobs, with ``mark`` among the entries of their environment, that are below no supervisor and no
    zygote any more, which were killed. A program that a job gave to a batch system is none: it is in another cgroup."""
    ours = _cgroup("self")
    found = []
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                environ = file.read().split(b"\0")
        except OSError:
            continue
        if mark in environ and any(one.startswith(b"MPIFLUX_JOB_ID=") for one in environ) \
                and not _is_below_instance(pid) and _cgroup(str(pid)) == ours:
            found.append(pid)
    return found


def _is_below_instance(pid: int) -> bool:
    """Whether it, or one that it is below, is a zygote or a supervisor; also when it is gone."""
    while pid > 1:
        state, parent = _state_and_parent(pid)
        if state in "ZX" or _name(pid) == ZYGOTE:
            return True
        pid = parent
    return False


def _state_and_parent(pid: int) -> tuple[str, int]:
    """As ``/proc/PID/stat`` has them; ``X`` when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # the name of the program may hold blanks and brackets
            state, parent = file.read().rpartition(b")")[2].split()[:2]
    except OSError:
        return "X", 0
    return state.decode(), int(parent)


def _cgroup(pid: str) -> bytes:
    try:
        with open(f"/proc/{pid}/cgroup", "rb") as file:
            return file.read()
    except OSError:
        return b""


def job_of(pid: int) -> Key | None:
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


def signal_tree(roots: Collection[int], sig: int) -> set[int]:
    """Signal ``roots``, their process groups where they lead one, and everything below, each process once; the groups
    that were signalled.

    Parents first, so that a shell does not start the next command of its script. What an instance inside a job has
    started is the instance's to end, which is signalled itself: only KILL goes to all.
    """
    groups: set[int] = set()
    me = os.getpid()
    for root in roots:
        for pid in [root, *descendants(root, into_instances=sig == signal.SIGKILL)]:
            if pid in (me, 1):
                continue
            try:
                group = os.getpgid(pid)
                if group in groups and sig != signal.SIGKILL:
                    continue  # a program may take a second TERM for more than one
                if group == pid:
                    os.killpg(pid, sig)
                    groups.add(pid)
                else:
                    os.kill(pid, sig)
            except OSError:
                continue
    return groups


def kill_everything(seconds: float = 2.0) -> None:
    """Kill and reap all that is below this process. Loops, because what is being killed may still fork."""
    deadline = time.monotonic() + seconds
    while below := descendants(os.getpid()):
        for pid in below:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        if time.monotonic() > deadline:
            return
        time.sleep(0.001)


class Trace(NamedTuple):
    """What tells a job's processes from others', when all that is known is that they are below this process."""

    key: Key
    group: int
    """The process group of its tasks."""
    cpus: frozenset[int]
    """What it is bound to; empty: to nothing."""
    pipes: frozenset[str]
    """Its stdout and stderr, as links in ``/proc/PID/fd`` read."""


def _open_files(pid: int) -> set[str]:
    """What a process, and those below it, have open, as links in ``/proc/PID/fd``."""
    found = set()
    for one in [pid, *descendants(pid)]:
        try:
            names = os.listdir(f"/proc/{one}/fd")
        except OSError:
            continue
        for name in names:
            try:
                found.add(os.readlink(f"/proc/{one}/fd/{name}"))
            except OSError:
                continue
    return found


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except OSError:
        return 0


class Strays:
    """Children of this process that it did not start as a job's own: what jobs left behind, or put into the
    background by a daemon's double fork."""

    def __init__(self) -> None:
        pid = os.getpid()
        try:
            self._fd = os.open(f"/proc/{pid}/task/{pid}/children", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1
        self._suspects: dict[int, frozenset[Key]] = {}
        """Jobs that a stray without a mark may belong to, by its pid."""

    def fileno(self) -> int:
        """The list of our children, to be read; −1 where the kernel has none."""
        return self._fd

    def none(self, known: int) -> bool:
        """Whether all our children, running or not yet waited for, are the ``known`` ones.

        Then nobody is left of a job whose own processes were waited for: what a process leaves behind becomes our
        child before the process itself can be waited for. Without the kernel's help the answer is no.
        """
        if self._fd < 0:
            return False
        listed = os.pread(self._fd, 4096, 0)
        return len(listed) < 4096 and listed.count(b" ") == known

    def of(self, key: Key, mains: Collection[int], alive: Collection[Trace]) -> list[int]:
        """Strays of one of the jobs ``alive``; ``mains`` are the jobs' own processes."""
        return [pid for pid, owners in self._owners(mains, alive).items() if owners == {key}]

    def orphaned(self, mains: Collection[int], alive: Collection[Trace]) -> list[int]:
        """Strays that belong to none of the jobs ``alive``."""
        return [pid for pid, owners in self._owners(mains, alive).items() if not owners]

    def _owners(self, mains: Collection[int], alive: Collection[Trace]) -> dict[int, frozenset[Key]]:
        """By stray, those of the jobs ``alive`` that it may belong to."""
        found = {pid: self._owner(pid, alive) for pid in children(os.getpid()) if pid not in mains}
        self._suspects = {pid: owners for pid, owners in found.items() if owners}
        return found

    def _owner(self, pid: int, alive: Collection[Trace]) -> frozenset[Key]:
        keys = frozenset(trace.key for trace in alive)
        mark = job_of(pid)
        if mark in keys:
            return keys & {mark}
        # it cleared its environment, or wrote over it, or has another instance's
        possible = self._suspects.get(pid, keys) & keys
        if pid in self._suspects and len(possible) == 1:
            return possible
        group, files = _group(pid), _open_files(pid)
        for trace in alive:
            if group == trace.group or not files.isdisjoint(trace.pipes):
                return frozenset({trace.key})
        if mark is not None:
            return frozenset()
        try:
            bound = os.sched_getaffinity(pid)
        except OSError:
            return possible
        # one job has a core at a time
        return frozenset(t.key for t in alive if t.key in possible and (not t.cpus or t.cpus >= bound)) or possible
