"""Processes seen through /proc: who descends from whom, who carries a mark, and how to end them by id."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Process:
    """One process. ``born`` (clock ticks since boot) tells it from a later one with the same id."""

    pid: int
    born: int
    parent: int
    state: str
    comm: str

    @property
    def zombie(self) -> bool:
        return self.state in "ZX"

    def __str__(self) -> str:
        if self.zombie:
            return f"zombie {self.pid} [{self.comm}], which nobody waited for"
        try:
            with open(f"/proc/{self.pid}/cmdline", "rb") as file:
                words = file.read().rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            words = ""
        return f"process {self.pid} ({words or self.comm}), parent {self.parent}"


def stat(pid: int) -> Process | None:
    """The process with this id, or None when there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read().decode(errors="replace")
    except OSError:
        return None
    # the name may hold spaces and brackets: the last bracket ends it
    head, _, tail = text.rpartition(")")
    fields = tail.split()
    return Process(pid, int(fields[19]), int(fields[1]), fields[0], head.partition("(")[2])


def everyone() -> dict[int, Process]:
    """All processes by id."""
    found = (stat(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {p.pid: p for p in found if p is not None}


def descendants(pid: int, table: dict[int, Process]) -> set[Process]:
    """Children of ``pid``, their children, and so on, zombies too; ``pid`` itself is not among them."""
    children: dict[int, list[Process]] = {}
    for process in table.values():
        children.setdefault(process.parent, []).append(process)
    found: set[Process] = set()
    queue = [pid]
    while queue:
        for child in children.get(queue.pop(), ()):
            found.add(child)
            queue.append(child.pid)
    return found


def marked(name: str, value: str, table: dict[int, Process]) -> set[Process]:
    """Processes that were started with the environment variable ``name=value``, wherever they are by now."""
    needle = f"{name}={value}".encode()
    found = set()
    for process in table.values():
        try:
            with open(f"/proc/{process.pid}/environ", "rb") as file:
                if needle in file.read().split(b"\0"):
                    found.add(process)
        except OSError:  # gone, a zombie, or another user's
            continue
    return found


def shared_memory(processes: Iterable[Process]) -> set[str]:
    """Paths of the named shared-memory segments that they have mapped."""
    found = set()
    for process in processes:
        try:
            with open(f"/proc/{process.pid}/maps") as file:
                paths = (line.rstrip("\n").partition("/dev/shm/")[2] for line in file)
                found |= {f"/dev/shm/{path}" for path in paths if path and not path.endswith(" (deleted)")}
        except OSError:
            continue
    return found


def kill(process: Process) -> None:
    """End this very process, never another that got its id; reap it if it is our child."""
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        return
    try:
        now = stat(process.pid)
        if now is not None and now.born == process.born:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            if now.parent == os.getpid():
                os.waitpid(process.pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass
    finally:
        os.close(fd)


def kill_until_none(find: Callable[[], Iterable[Process]], seconds: float = 5.0) -> set[Process]:
    """Kill what ``find`` finds until it finds nothing alive: a dying tree may still be forking.

    Returns everything that was killed; raises RuntimeError when something survives ``seconds``.
    """
    killed: set[Process] = set()
    deadline = time.monotonic() + seconds
    while True:
        # zombies of other parents cannot be reaped from here and hold nothing
        alive = {p for p in find() if not p.zombie or p.parent == os.getpid()}
        if not alive:
            return killed
        if time.monotonic() > deadline:
            raise RuntimeError("cannot kill " + ", ".join(sorted(map(str, alive))))
        for process in alive:
            kill(process)
        killed |= alive
        time.sleep(0.02)
