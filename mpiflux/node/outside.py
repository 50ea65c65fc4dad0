"""Signals from outside that reach all processes of a node: what died of one did not fail by itself.

Batch systems signal every process of a step, the user's programs too: Slurm at the time limit and for ``scancel``, LSF
for ``bkill``. A job that dies of such a signal before the instance has heard of it would count as failed, and a
resumed run would not run it again. A supervisor is one of these processes: what it gets, its jobs got.

They are signalled one after the other. The child of a script may die first, and the script go on, and end with 0 or 1
before its own signal comes: an end shortly before or after that of the supervisor says nothing, whatever its code.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable

from mpiflux.node.spawn import signalfd

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
WINDOW = 5.0
"""Seconds after a signal for which failures are taken to come from it, and nothing is started: whoever asked for the
end of everything says so by then."""
AROUND = 0.25
"""Seconds before and after a signal within which the end of a job may be its doing, whatever the code. Slurm takes
some milliseconds to signal a node's processes, more where they are many or the node is busy."""
PATIENCE = 0.05
"""Seconds to wait for a signal of which a job has died already: a batch system sends them one after the other."""
REASON = "{} reached all processes of this node: it came from the batch system, or from who ended the instance"
_INFO = 128
"""Bytes of a ``signalfd_siginfo``, which begins with the number."""


class Outside:
    """A supervisor's descriptor for signals, and what it knows by them. ``fd`` becomes readable also for SIGCHLD."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.fd = signalfd({signal.SIGCHLD, *SIGNALS})
        self._clock = clock
        self._at = -float("inf")
        """When the latest came."""
        self._number = 0
        self.news = 0
        """The signal that has come and has not been dealt with; 0: none."""

    def read(self) -> None:
        """Take what has come."""
        try:
            data = os.read(self.fd, 16 * _INFO)
        except BlockingIOError:
            return
        for at in range(0, len(data), _INFO):
            self.note(int.from_bytes(data[at:at + 4], "little"))

    def note(self, number: int) -> None:
        """This signal has come."""
        if number != signal.SIGCHLD:
            self._at, self._number = self._clock(), number
            self.news = number

    @property
    def quiet(self) -> bool:
        """Whether nothing came lately, so that what ends with an exit code has ended by itself."""
        return self._clock() - self._at >= WINDOW

    @property
    def due(self) -> float:
        """When it will be quiet again; infinity when it is."""
        return float("inf") if self.quiet else self._at + WINDOW

    def killed(self, returncode: int) -> str:
        """Why a job that ended with this code did not end by itself; empty when it did.

        One that died of such a signal is given a moment: ours may be on its way.
        """
        if not returncode:
            near = self._clock() - self._at < AROUND
            return REASON.format(signal.Signals(self._number).name) if near else ""
        if self.quiet:
            died_of = -returncode if returncode < 0 else returncode - 128
            if died_of not in SIGNALS:
                return ""
            self._wait()
            if self.quiet:
                return ""
        return REASON.format(signal.Signals(self._number).name)

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        end = time.monotonic() + PATIENCE
        before = self._at
        while self._at == before and (left := end - time.monotonic()) > 0:
            if poll.poll(left * 1000):
                self.read()
