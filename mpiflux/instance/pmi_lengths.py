"""MPI_Init under Slurm's ``--mpi=pmi2``: values that fit into what the plug-in reads at a time.

MPICH speaks PMI-1 to that plug-in and cuts an address into values as long as the plug-in allows, 1,024 characters.
The plug-in (Slurm 22.05, ``src/plugins/mpi/pmi2``) reads 1,024 bytes at a time and takes what a longer line leaves over
for the next request, so that a full value with the rest of its line is lost. Whether a value is full is chance: MPICH 5
sends 4,096 bytes where the address with several ranks on a node is some 500, with zeros packed, and the rest is
what its heap holds. UCX then says "failed to unpack address". The one answer that tells the length is changed here.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import socket
from collections.abc import Iterator, Mapping

LONGEST = 896
"""Characters of a value, so that its line stays below 1,024 with the longest key and name of a key-value space."""

_LENGTH = re.compile(rb"\bvallen_max=(\d+)")


def shorter(line: bytes) -> bytes:
    """A line of the PMI server, with the length of values that it allows cut down to ``LONGEST``."""
    return _LENGTH.sub(lambda found: b"vallen_max=%d" % min(int(found[1]), LONGEST), line)


def _pass_on(server: int, client: socket.socket) -> None:
    """Lines from and to the server, until the client's end is closed."""
    waiting = b""
    with selectors.DefaultSelector() as ready:
        ready.register(server, selectors.EVENT_READ)
        ready.register(client, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                data = os.read(key.fd, 65536)
                if not data:
                    return
                if key.fd != server:
                    while data:
                        data = data[os.write(server, data):]
                    continue
                lines = (waiting + data).splitlines(keepends=True)
                waiting = b"" if lines[-1].endswith(b"\n") else lines.pop()
                client.sendall(b"".join(map(shorter, lines)))


@contextlib.contextmanager
def short_values(environ: Mapping[str, str]) -> Iterator[None]:
    """Within it MPI_Init under a Slurm step hears of shorter values; elsewhere, and afterwards, nothing is changed.

    A process stands between, as MPI_Init does not let another thread of Python run. When it is done the descriptor
    leads to Slurm again, so that an abort later does not depend on anybody. Raises OSError.
    """
    fd = environ.get("PMI_FD", "")
    if "SLURM_STEP_ID" not in environ or not (fd.isascii() and fd.isdigit()):
        yield
        return
    number = int(fd)
    server = os.dup(number)
    ours, theirs = socket.socketpair()
    os.dup2(ours.fileno(), number)
    ours.close()
    helper = os.fork()
    if helper == 0:
        try:
            os.close(number)
            _pass_on(server, theirs)
        finally:
            os._exit(0)
    theirs.close()
    try:
        yield
    finally:
        os.dup2(server, number)
        os.close(server)
        os.waitpid(helper, 0)
