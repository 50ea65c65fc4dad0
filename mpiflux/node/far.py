"""The far end of a rank on another host: ``python -m mpiflux.node.far``, started there by a remote shell.

Starts the rank, carries its PMI connection, output and end to :mod:`mpiflux.node.near` over stdin and stdout, and ends
it when the connection is gone.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time

from mpiflux.model import rankframes as frames
from mpiflux.model.environment import clean_environment
from mpiflux.node.pmi import remove_named
from mpiflux.node.spawn import PR_SET_PDEATHSIG, prctl

GRACE = 2.0
"""Seconds between TERM and KILL for a rank whose launcher is gone."""

RESET = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTSTP,
         signal.SIGPIPE, signal.SIGXFSZ)
"""What remote shells and Python ignore, and a rank must not."""

CANNOT_START = 3
NOT_FOUND = 127
NOT_EXECUTABLE = 126


class _CannotStartError(Exception):
    def __init__(self, text: str, status: int = CANNOT_START) -> None:
        super().__init__(text)
        self.status = status


class _Far:
    def __init__(self) -> None:
        # the rank, and any stray print of ours, must not get at the frames
        self.inward, self.outward = os.dup(0), os.dup(1)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(2, 1)
        os.close(null)
        self.host = socket.gethostname()
        self.unpacker = frames.Unpacker()
        self.segments: list[str] = []
        self.pid = 0
        self.pmi: socket.socket | None = None
        self.outputs: dict[int, bytes] = {}  # descriptor -> kind of frame
        self.connected = True
        self.deadline: float | None = None

    def run(self) -> None:
        self.wakeup, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        self._write(frames.GREETING)
        with selectors.DefaultSelector() as self.selector:
            self.selector.register(self.wakeup, selectors.EVENT_READ)
            self.selector.register(self.inward, selectors.EVENT_READ)
            while True:
                for key, _ in self.selector.select(self._timeout()):
                    if not self._ready(key.fd):
                        return
                if self.deadline is not None and time.monotonic() >= self.deadline:
                    self._signal(signal.SIGKILL)
                    self.deadline = None

    def _timeout(self) -> float | None:
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def _ready(self, fd: int) -> bool:
        """Deal with it; False when all is over."""
        if fd == self.wakeup:
            return self._signalled(os.read(fd, 4096))
        if fd == self.inward:
            data = os.read(fd, 1 << 16)
            return all(self._obey(kind, payload) for kind, payload in self._arrived(data)) if data else self._gone()
        if fd in self.outputs:
            self._carry_output(fd)
        elif self.pmi is not None and fd == self.pmi.fileno():
            self._carry_pmi(self.pmi)
        return True

    def _arrived(self, data: bytes) -> list[tuple[bytes, bytes]]:
        try:
            return self.unpacker.feed(data)
        except frames.NotAFrameError:
            return []

    def _gone(self) -> bool:
        """The launcher, or the way to it, is gone."""
        self.selector.unregister(self.inward)
        self.connected = False
        if not self.pid:
            return False
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)
        self.deadline = time.monotonic() + GRACE
        return True

    def _obey(self, kind: bytes, payload: bytes) -> bool:
        if kind == frames.START:
            try:
                self._start(json.loads(payload))
            except _CannotStartError as error:
                self._send(frames.STDERR, f"mpiflux: cannot start a rank on host {self.host}: {error}\n".encode())
                self._send(frames.ENDED, b"%d" % error.status)
                return False
        elif kind == frames.SIGNAL and self.pid:
            self._signal(int(payload))
        elif kind == frames.PMI and self.pmi is not None:
            if payload:
                try:
                    self.pmi.sendall(payload)
                except OSError:
                    pass  # the rank has closed it: its end of file is on the way
            else:
                self._close_pmi()
        return True

    def _start(self, task: dict[str, object]) -> None:
        argv, env, cwd, segments = task["argv"], task["env"], task["cwd"], task["segments"]
        assert isinstance(argv, list) and isinstance(env, dict) and isinstance(cwd, str) and isinstance(segments, list)
        self.segments = segments
        try:
            os.chdir(cwd)
        except OSError as error:
            raise _CannotStartError(f"{cwd}: {error.strerror}; start in a directory that all hosts have") from error
        ours, theirs = socket.socketpair()
        theirs.set_inheritable(True)
        pipes = [(frames.STDOUT, os.pipe()), (frames.STDERR, os.pipe())]
        environ = {**clean_environment(os.environ), **env, "PMI_FD": str(theirs.fileno())}
        try:
            self.child = subprocess.Popen(argv, env=environ, stdin=subprocess.DEVNULL, stdout=pipes[0][1][1],
                                          stderr=pipes[1][1][1], pass_fds=[theirs.fileno()], preexec_fn=_rank_begins)
        except FileNotFoundError as error:
            raise _CannotStartError(f"there is no {argv[0]} there", NOT_FOUND) from error
        except OSError as error:
            raise _CannotStartError(f"{argv[0]}: {error.strerror}", NOT_EXECUTABLE) from error
        self.pid = self.child.pid
        theirs.close()
        self.pmi = ours
        self.selector.register(ours.fileno(), selectors.EVENT_READ)
        for kind, (read, write) in pipes:
            os.close(write)
            os.set_blocking(read, False)
            self.outputs[read] = kind
            self.selector.register(read, selectors.EVENT_READ)

    def _signalled(self, numbers: bytes) -> bool:
        """Deaths, and signals that are meant for this host's processes, such as a shutdown's TERM."""
        for number in numbers:
            if number != signal.SIGCHLD and self.pid:
                self._signal(number)
        if not self.pid:
            return not {*numbers} - {signal.SIGCHLD}
        returncode = self.child.poll()
        if returncode is not None:
            self._ended(returncode)
        return returncode is None

    def _ended(self, returncode: int) -> None:
        if not self.connected:
            self._signal(signal.SIGKILL)
        for fd in list(self.outputs):
            while fd in self.outputs and self._carry_output(fd):
                pass
        if self.pmi is not None:
            self.pmi.setblocking(False)
            while self.pmi is not None and self._carry_pmi(self.pmi):
                pass
        remove_named(self.segments)
        self._send(frames.ENDED, b"%d" % returncode)

    def _signal(self, number: int) -> None:
        try:
            if number == signal.SIGKILL:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)
        except (ProcessLookupError, PermissionError):
            pass  # it has just ended

    def _carry_output(self, fd: int) -> bool:
        """Send on what a pipe has; False when there was nothing."""
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            return False
        if data:
            self._send(self.outputs[fd], data)
            return True
        self.selector.unregister(fd)
        del self.outputs[fd]
        os.close(fd)
        return False

    def _carry_pmi(self, pmi: socket.socket) -> bool:
        try:
            data = pmi.recv(1 << 16)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        self._send(frames.PMI, data)
        if not data:
            self._close_pmi()
        return bool(data)

    def _close_pmi(self) -> None:
        if self.pmi is not None:
            self.selector.unregister(self.pmi.fileno())
            self.pmi.close()
            self.pmi = None

    def _send(self, kind: bytes, payload: bytes) -> None:
        self._write(frames.pack(kind, payload))

    def _write(self, data: bytes) -> None:
        try:
            while data and self.connected:
                data = data[os.write(self.outward, data):]
        except OSError:
            self.connected = False  # end of file on the other descriptor ends the rank


def _rank_begins() -> None:
    """Between fork and exec."""
    os.setpgid(0, 0)
    for number in RESET:
        signal.signal(number, signal.SIG_DFL)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # when this end is killed, nobody else would end the rank


def main() -> int:
    try:
        os.setpgid(0, 0)  # what ends the launcher's group must leave time to end the rank
    except PermissionError:
        pass  # leads a session already
    _Far().run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
