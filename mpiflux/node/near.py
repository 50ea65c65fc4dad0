"""The near end of a rank on another host: ``python -m mpiflux.node.near TASK COMMAND…``.

Stands in for the rank where the launcher is: it has the rank's PMI connection, takes its signals, prints what it
prints and ends as it ends. TASK is JSON: ``host``, ``rsh`` (the words of the remote shell) and ``segments`` (shared
memory to remove there). The far end is :mod:`mpiflux.node.far`.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import shlex
import signal
import socket
import subprocess
import sys
import time
from typing import NoReturn

from mpiflux.model import rankframes as frames

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

LOST = 255
"""Exit status when the connection is lost, ssh's own."""

CANNOT_START = 3

SLOW = 10.0
"""Seconds without an answer of a host after which that is said, once."""
SILENT = 300.0
"""Seconds without an answer after which there will be none: a remote shell that asks somebody for something, a login
script or a home directory that hangs."""

OF_THIS_HOST = frozenset({
    "PMI_FD", "HOSTNAME", "HOST", "PWD", "OLDPWD", "SHLVL", "_", "DISPLAY", "DBUS_SESSION_BUS_ADDRESS",
    "SLURMD_NODENAME", "SLURM_CPUS_ON_NODE", "SLURM_GPUS_ON_NODE", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "MPIFLUX_NODE",
    "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK",
})
"""Variables that say something of this machine, and would say something wrong of another."""

OF_THIS_HOST_PREFIXES = ("SSH_", "XDG_")


def environment() -> dict[str, str]:
    """What goes along to the other host."""
    return {name: value for name, value in os.environ.items()
            if name not in OF_THIS_HOST and not name.startswith(OF_THIS_HOST_PREFIXES)}


def remote_command(rsh: list[str], host: str) -> list[str]:
    """The remote shell that starts the far end, by the same interpreter at the same path."""
    path = os.environ.get("PYTHONPATH")
    words = [*(["env", f"PYTHONPATH={path}"] if path else []), sys.executable, "-m", "mpiflux.node.far"]
    return [*rsh, host, *map(shlex.quote, words)]


class _Near:
    def __init__(self, host: str, rsh: list[str], segments: list[str], command: list[str]) -> None:
        self.host, self.rsh = host, rsh
        self.pmi: socket.socket | None = socket.socket(fileno=int(os.environ["PMI_FD"]))
        self.pmi.set_inheritable(False)
        self.start = {"argv": command, "env": environment(), "cwd": os.getcwd(), "segments": segments}
        self.unpacker = frames.Greeted()
        self.returncode: int | None = None

    def run(self) -> int:
        """The rank's returncode; or :data:`LOST`, or :data:`CANNOT_START`."""
        wakeup, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        kept = [number for number in FORWARDED if signal.getsignal(number) != signal.SIG_IGN]
        for number in (*FORWARDED, signal.SIGQUIT, signal.SIGTSTP):
            # the remote shell must outlive what is meant for the rank
            signal.signal(number, signal.SIG_IGN)
        try:
            self.shell = subprocess.Popen(remote_command(self.rsh, self.host), stdin=subprocess.PIPE,
                                          stdout=subprocess.PIPE)
        except OSError as error:
            return self._cannot(f"{self.rsh[0]}: {error.strerror}; give another command with --rsh")
        for number in kept:
            signal.signal(number, lambda *_: None)
        assert self.shell.stdin is not None and self.shell.stdout is not None and self.pmi is not None
        self.up, self.down = self.shell.stdout.fileno(), self.shell.stdin.fileno()
        self._send(frames.START, json.dumps(self.start).encode())
        with selectors.DefaultSelector() as self.selector:
            for fd in (wakeup, self.up, self.pmi.fileno()):
                self.selector.register(fd, selectors.EVENT_READ)
            self.begun, self.told = time.monotonic(), False
            while self.returncode is None:
                for key, _ in self.selector.select(self._patience()):
                    if key.fd == wakeup:
                        self._signals(os.read(wakeup, 4096))
                    elif key.fd == self.up:
                        self._from_far(os.read(self.up, 1 << 16))
                    elif self.pmi is not None:
                        self._from_pmi(self.pmi)
                    if self.returncode is not None:
                        break
        self._end_shell()
        return self.returncode

    def _patience(self) -> float | None:
        """Seconds to wait for the far end's first word, if need be with a word about that."""
        if self.unpacker.greeted:
            return None
        waited = time.monotonic() - self.begun
        if waited >= SILENT:
            self.returncode = self._cannot(f"{self._shell_in_words()} has not answered for {SILENT:g} s; does it wait "
                                           "for a password, or does a login script or a file system hang there?")
            return 0.0
        if waited < SLOW:
            return SLOW - waited
        if not self.told:
            self.told = True
            _write(2, f"mpiflux: still waiting for host {self.host}: {self._shell_in_words()} has not answered for "
                      f"{SLOW:g} s; Ctrl-C gives up, as does this after {SILENT:g} s\n".encode())
        return SILENT - waited

    def _shell_in_words(self) -> str:
        return f"{' '.join(self.rsh)} {self.host} …"

    def _send(self, kind: bytes, payload: bytes = b"") -> None:
        data = frames.pack(kind, payload)
        try:
            while data:
                data = data[os.write(self.down, data):]
        except OSError:
            pass  # the remote shell has ended; its end of file is on the way

    def _signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number not in FORWARDED:
                continue
            if self.unpacker.greeted or number not in STOPPING:
                self._send(frames.SIGNAL, b"%d" % number)
            else:
                self.returncode = -number

    def _from_pmi(self, pmi: socket.socket) -> None:
        try:
            data = pmi.recv(1 << 16)
        except OSError:
            data = b""
        self._send(frames.PMI, data)
        if not data:
            self._close_pmi()

    def _close_pmi(self) -> None:
        if self.pmi is not None:
            self.selector.unregister(self.pmi.fileno())
            self.pmi.close()
            self.pmi = None

    def _from_far(self, data: bytes) -> None:
        if not data:
            self.returncode = self._lost()
            return
        greeted = self.unpacker.greeted
        try:
            arrived = self.unpacker.feed(data)
        except frames.NotAFrameError:
            self.returncode = self._cannot("what came over the remote shell is not from mpiflux" + (
                "" if self.unpacker.greeted else f": it begins with {bytes(self.unpacker.before[:60])!r}"))
            return
        if self.unpacker.greeted and not greeted:
            _write(2, self.unpacker.before)
        for kind, payload in arrived:
            if kind == frames.STDOUT:
                _write(1, payload)
            elif kind == frames.STDERR:
                _write(2, payload)
            elif kind == frames.ENDED:
                self.returncode = int(payload)
            elif kind == frames.PMI:
                self._to_pmi(payload)

    def _to_pmi(self, payload: bytes) -> None:
        if not payload:
            self._close_pmi()
        elif self.pmi is not None:
            try:
                self.pmi.sendall(payload)
            except OSError:
                self._close_pmi()

    def _lost(self) -> int:
        status = self.shell.wait()
        if self.unpacker.greeted:
            _write(2, f"mpiflux: the connection to host {self.host} is lost\n".encode())
            return LOST
        _write(2, self.unpacker.before)
        return self._cannot(f"{self._shell_in_words()} ended with status {status}; can you run "
                            f"{sys.executable} and mpiflux there in this way, without a password?")

    def _cannot(self, why: str) -> int:
        _write(2, f"mpiflux: cannot start a rank on host {self.host}: {why}\n".encode())
        return CANNOT_START

    def _end_shell(self) -> None:
        assert self.shell.stdin is not None and self.shell.stdout is not None
        self.shell.stdin.close()
        try:
            self.shell.wait(2.0)
        except subprocess.TimeoutExpired:
            self.shell.kill()
            self.shell.wait()
        self.shell.stdout.close()


def _write(fd: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(fd, data):]
    except OSError:
        pass  # nobody reads it any more


def _die_of(number: int) -> NoReturn:
    """End as the rank has ended, so that the launcher sees its signal."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        signal.signal(number, signal.SIG_DFL)
    except (OSError, ValueError):
        pass  # KILL cannot be set, nor need be
    os.kill(os.getpid(), number)
    os._exit(128 + number)


def main() -> int:
    task = json.loads(sys.argv[1])
    returncode = _Near(task["host"], task["rsh"], task["segments"], sys.argv[2:]).run()
    if returncode < 0:
        _die_of(-returncode)
    return returncode


if __name__ == "__main__":
    sys.exit(main())
