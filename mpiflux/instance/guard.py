"""A process that outlives a launcher which is killed, and ends what that has started."""

from __future__ import annotations

import os
import select
import signal
import time

from mpiflux.instance.caught import FORWARDED
from mpiflux.node.pmi import remove_segments


class Guard:
    """A process that ends the ranks when this one is gone without having said so.

    They get TERM, and KILL ``grace`` seconds later, as do the groups that they lead. ``kvsname`` tells which shared
    memory of MPICH is theirs.
    """

    def __init__(self, kvsname: str, grace: float) -> None:
        read, self._write = os.pipe2(os.O_CLOEXEC)
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.close(self._write)
                _stand_guard(read, kvsname, grace)
            finally:
                os._exit(0)
        os.close(read)

    def _send(self, text: str) -> None:
        try:
            os.write(self._write, text.encode())
        except BrokenPipeError:
            pass  # someone killed the guard: the ranks are worth more than it

    def watch(self, pid: int) -> None:
        self._send(f"+{pid}\n")

    def unwatch(self, pid: int) -> None:
        self._send(f"-{pid}\n")

    def dismiss(self) -> None:
        self._send("q\n")
        os.close(self._write)
        os.waitpid(self._pid, 0)


def _stand_guard(read: int, kvsname: str, grace: float) -> None:
    for number in (*FORWARDED, signal.SIGTSTP, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)
    os.setpgid(0, 0)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.closerange(3, read)
    os.closerange(read + 1, os.sysconf("SC_OPEN_MAX"))
    watched: dict[int, int] = {}  # process id -> pidfd
    buffer = b""
    while data := os.read(read, 65536):
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            if line == b"q":
                return
            pid = int(line[1:])
            if line.startswith(b"+"):
                try:
                    watched[pid] = os.pidfd_open(pid)
                except ProcessLookupError:
                    continue  # it has ended already, and its "-" is on the way
            elif pid in watched:
                os.close(watched.pop(pid))
    _end_watched(watched, grace)
    remove_segments(kvsname)


def _end_watched(watched: dict[int, int], grace: float) -> None:
    poll = select.poll()
    for fd in watched.values():
        poll.register(fd, select.POLLIN)
    for number in (signal.SIGTERM, signal.SIGCONT):
        for fd in watched.values():
            try:
                signal.pidfd_send_signal(fd, number)
            except ProcessLookupError:
                continue
    deadline = time.monotonic() + grace
    living = dict(watched)
    while living and (left := deadline - time.monotonic()) > 0:
        ended = {fd for fd, _ in poll.poll(left * 1000)}
        for fd in ended:
            poll.unregister(fd)
        living = {pid: fd for pid, fd in living.items() if fd not in ended}
    for pid in living:  # the leader lives, so the group's number is still its own
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
