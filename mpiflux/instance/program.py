"""A program of the instance's own, a process of rank 0 beside the jobs: the initial program of ``start``, with whose
end the instance ends, or the controller of a workflow, for whose end it waits."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mpiflux.instance.rank import Rank

if TYPE_CHECKING:
    from mpiflux.instance.master import Master

# PR_SET_PDEATHSIG, in the process that is to have it: setting it from here would take a fork, and MPI is up
_WRAPPER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]): sys.exit(1)
try: os.execvp(sys.argv[2], sys.argv[2:])
except OSError as e:
    os.write(2, f"mpiflux: {sys.argv[2]}: {e.strerror}\\n".encode("utf-8", "surrogateescape"))
    os._exit(127 if isinstance(e, FileNotFoundError) else 126)
"""
_GRACE = 5.0


class Program:
    """Starts it; the loop of ``rank`` hears of its end, and ``master`` of its status. It dies with this process."""

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str], rank: Rank, master: Master, *,
                 controller: bool = False) -> None:
        self._rank, self._master, self._controller = rank, master, controller
        master.holders.add(self)
        self._process = subprocess.Popen([sys.executable, "-ISc", _WRAPPER, str(os.getpid()), *argv],
                                         env=dict(environ), restore_signals=True)
        self._pidfd = os.pidfd_open(self._process.pid)
        rank.watch(self._pidfd, select.EPOLLIN, self._ended)

    def _ended(self, fd: int, events: int) -> None:
        self._rank.unwatch(fd)
        os.close(fd)
        self._pidfd = -1
        code = self._process.wait()
        ended = self._master.controller_ended if self._controller else self._master.program_ended
        ended(self, code if code >= 0 else 128 - code)

    def close(self) -> None:
        """The instance ends first: TERM, then KILL."""
        if self._pidfd < 0:
            return
        os.close(self._pidfd)
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
