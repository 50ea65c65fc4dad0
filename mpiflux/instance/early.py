"""Signals that come before a run can act upon them: kept while it starts, and then taken as if they came then.

A batch system may warn a run, or end it, in its first second: ranks that import modules or are in ``MPI_Init`` would
die of that, and the launcher say so in its own words. From :func:`hold`, in the first lines of the program, signals
are bytes in a pipe. A start that does not come to its end is not to outlive them: a thread, whom a main thread deep in
a C library does not hold up, ends the process soon after TERM, and at once at the second.
"""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False  # as little as can be is loaded before signals are held
if TYPE_CHECKING:
    import threading
    from typing import Any

HELD = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
PATIENCE = 2.0
"""Seconds that a start may still take when the first of :data:`ENDING` has come. Nothing is lost by its end; a longer
time would hold up launchers that end the ranks because one of them has failed."""
_STOP = b"\0"
_READ = 4096
_STDERR = 2


class Held:
    """Signals that are kept. What this process was started to ignore (nohup) stays ignored."""

    def __init__(self) -> None:
        self._pipe: tuple[int, int] | None = None
        self._old: dict[int, Any] = {}
        self._came: list[int] = []
        self._thread: threading.Thread | None = None

    def hold(self) -> None:
        """Keep :data:`HELD` from now on. In the main thread."""
        self._pipe = _pipe()
        signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self.add(*HELD)

    def add(self, *numbers: int) -> None:
        """Keep these as well, if any are kept."""
        for number in numbers if self._pipe is not None else ():
            old = signal.getsignal(number)
            if old != signal.SIG_IGN and number not in self._old:
                self._old[number] = old
                signal.signal(number, lambda _number, _frame: None)

    def guard(self) -> None:
        """Begin to end a start that does not come to its end. After the last fork."""
        import threading

        if self._pipe is not None:
            self._thread = threading.Thread(target=self._watch, args=(self._pipe[0],), daemon=True)
            self._thread.start()

    def _watch(self, fd: int) -> None:
        import select
        import time

        deadline = None
        while True:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            if not select.select([fd], [], [], left)[0]:
                self._die()
            data = os.read(fd, _READ)
            self._came += [number for number in data if number]
            ending = sum(number in ENDING for number in self._came)
            if ending > 1:
                self._die()
            if ending and deadline is None:
                deadline = time.monotonic() + PATIENCE
            if _STOP[0] in data:
                return

    def _die(self) -> None:
        os._exit(128 + next(number for number in self._came if number in ENDING))

    def elsewhere(self) -> Elsewhere:
        """In this ``with`` block signals come to another thread: no call of a C library is interrupted by them."""
        return Elsewhere(list(self._old) if self._thread is not None else [])

    def take(self) -> list[int]:
        """Those that have come, each once. No more are kept: whoever takes them has installed handlers and a
        descriptor for what comes next."""
        if self._pipe is None:
            return []
        if self._thread is not None:
            os.write(self._pipe[1], _STOP)
            self._thread.join()
            self._thread = None
        try:
            self._came += os.read(self._pipe[0], _READ)
        except BlockingIOError:
            pass
        for fd in self._pipe:
            os.close(fd)
        came = [number for number in dict.fromkeys(self._came) if number in self._old]
        self._pipe, self._came = None, []
        self._old.clear()
        return came

    def release(self) -> None:
        """This process does not run a tree: signals do what they did before, those that have come as well."""
        if self._pipe is None:
            return
        signal.set_wakeup_fd(-1)
        for number, old in self._old.items():
            signal.signal(number, old)
        for number in self.take():
            os.kill(os.getpid(), number)


class Elsewhere:
    """While in the ``with`` block these signals do not come to this thread, nor to those that it starts."""

    def __init__(self, numbers: list[int]) -> None:
        self._numbers = numbers

    def __enter__(self) -> None:
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)

    def __exit__(self, *exc: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)


def _pipe() -> tuple[int, int]:
    """A pipe that takes no number of a standard stream, which may be closed and not opened again yet."""
    pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    if min(pipe) > _STDERR:
        return pipe
    from fcntl import F_DUPFD_CLOEXEC, fcntl

    moved = tuple(fcntl(fd, F_DUPFD_CLOEXEC, _STDERR + 1) for fd in pipe)
    for fd in pipe:
        os.close(fd)
    return moved[0], moved[1]


held = Held()
"""Those of this process."""
