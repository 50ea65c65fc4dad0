"""Signals as bytes on a descriptor, for a process that waits for other things as well."""

from __future__ import annotations

import os
import signal

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""What a launcher passes on to every rank."""


class Signals:
    """Signals as bytes on a descriptor, while in the ``with`` block.

    What this process was started to ignore (nohup) stays ignored, here and in the ranks.
    """

    def __enter__(self) -> Signals:
        self.fd, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._old_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._old = {s: signal.getsignal(s) for s in (*FORWARDED, signal.SIGCHLD, signal.SIGCONT, signal.SIGTTOU)}
        for number, old in self._old.items():
            if number == signal.SIGTTOU:
                signal.signal(number, signal.SIG_IGN)
            elif old != signal.SIG_IGN or number == signal.SIGCHLD:
                signal.signal(number, lambda *_: None)
        return self

    def read(self) -> list[int]:
        """Numbers of the signals since the last call, each once; deaths last, so that they find the others sent."""
        try:
            numbers = set(os.read(self.fd, 4096))
        except BlockingIOError:
            return []
        return sorted(numbers & {int(s) for s in self._old}, key=lambda n: n == signal.SIGCHLD)

    def __exit__(self, *exc: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)
        signal.set_wakeup_fd(self._old_fd)
        os.close(self.fd)
        os.close(self._write)
