"""``submit --label-io``: runs a command, and puts the number of its task before each line that it writes.

A script of its own, started by its path and without site packages, so that it costs a task some 10 ms.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys

_READ = 1 << 16
_AFTER = 0.2
"""Seconds without a word after the command's end after which its pipes are given up, whoever has them."""
_LONGEST = 1 << 20
"""Bytes without an end of line after which what there is counts as a line."""


def main(argv: list[str]) -> int:
    """Returns the command's exit status; a signal that ended it ends this process too."""
    label = os.environ.get("MPIFLUX_TASK_RANK", "0").encode() + b": "
    try:
        # an MPI program talks to its server by a descriptor that it inherits
        child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, close_fds=False)
    except OSError as error:
        write(2, os.fsencode(f"{argv[0]}: {error.strerror}\n"))
        return 127 if isinstance(error, FileNotFoundError) else 126
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        # all processes of a job are signalled: the command decides what comes of it
        signal.signal(number, lambda *_: None)
    assert child.stdout is not None and child.stderr is not None
    begun = {child.stdout.fileno(): b"", child.stderr.fileno(): b""}
    with selectors.DefaultSelector() as waiting:
        for source, to in zip(begun, (1, 2), strict=True):
            waiting.register(source, selectors.EVENT_READ, to)
        ended = os.pidfd_open(child.pid)
        waiting.register(ended, selectors.EVENT_READ)
        # whoever else has the pipes keeps nobody waiting for longer
        while (ready := waiting.select(None if ended in waiting.get_map() else _AFTER)):
            for key, _ in ready:
                if key.fd == ended or not relay(key.fd, key.data, label, begun):
                    waiting.unregister(key.fd)
            if not waiting.get_map():
                break
        os.close(ended)
    status = child.wait()
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


def relay(source: int, to: int, label: bytes, begun: dict[int, bytes]) -> bool:
    """Write the lines that have come; False at the end of the stream."""
    data = os.read(source, _READ)
    lines, newline, rest = (begun[source] + data).rpartition(b"\n")
    if (not data and rest) or len(rest) > _LONGEST:
        lines, newline, rest = lines + newline + rest, b"\n", b""
    begun[source] = rest
    if newline:
        write(to, b"".join(label + line + b"\n" for line in lines.split(b"\n")))
    return bool(data)


def write(fd: int, data: bytes) -> None:
    """All of it, whoever reads."""
    while data:
        data = data[os.write(fd, data):]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
