"""Which tasks of an Open MPI job have come to MPI, as the kernel's table of TCP connections shows it.

A task connects to the PMIx server of its node's daemon in MPI_Init, and stays so until MPI_Finalize; the server tells
nobody. A connection that was closed is listed for another minute (TIME_WAIT).

Pure, and light: a process on each node of each such job imports it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

SERVER = "server"
"""With this the first task of a node tells in the FIFO where its PMIx server is."""

TELL_SERVER = (b"echo " + SERVER.encode() + b' "${PMIX_SERVER_URI41:-${PMIX_SERVER_URI4:-${PMIX_SERVER_URI3:-'
               b'${PMIX_SERVER_URI21:-$PMIX_SERVER_URI2}}}}"')
"""Shell, with the variables of PMIx 2 to 5."""

TABLES = ("/proc/net/tcp", "/proc/net/tcp6")

ALONE = "alone"
"""Key in PMI's key-value space by which a supervisor hears that no task has come to MPI."""

_URI = re.compile(rf"^{SERVER} \S*;tcp[46]?://(?:\[[^]\s]*\]|[^:\s]*):(\d+)", re.MULTILINE)
_ESTABLISHED, _LISTEN = "01", "0A"


def server_port(lines: str) -> int:
    """From what tasks said in the FIFO; 0: they did not, or it is not by TCP."""
    found = _URI.search(lines)
    return int(found[1]) if found else 0


def clients(table: str, port: int) -> tuple[set[int], set[int]]:
    """Ports of those that are connected to ``port`` of this host, and of those that were not long ago, from what is
    in one of :data:`TABLES`."""
    open_: set[int] = set()
    closed: set[int] = set()
    for line in table.splitlines()[1:]:
        words = line.split()
        if len(words) < 4 or words[3] == _LISTEN:
            continue
        local, remote = (int(words[n].rpartition(":")[2], 16) for n in (1, 2))
        if port in (local, remote):
            (open_ if words[3] == _ESTABLISHED else closed).add(remote if local == port else local)
    # the two ends of one need not say the same
    return open_ - closed, closed


class Looks:
    """What was seen of the tasks of one node at one time after the other."""

    PATIENCE = 5.0
    """Seconds after which tasks that wait for one that has ended will wait for ever."""

    def __init__(self) -> None:
        self.port = 0
        self.ended: list[int] = []
        """Tasks that have ended with 0, the first one first."""
        self._seen: set[int] = set()
        self._since = 0.0

    @property
    def anybody(self) -> bool:
        """Whether any task has come to MPI."""
        return bool(self._seen)

    def look(self, tables: Iterable[str], now: float) -> bool:
        """Whether tasks wait for some that will not come: those have ended with 0 and never came to MPI, and others
        are there, for :data:`PATIENCE` seconds by now."""
        connected: set[int] = set()
        for table in tables:
            open_, closed = clients(table, self.port)
            connected |= open_
            self._seen |= open_ | closed
        if not connected or len(self._seen - connected) >= len(self.ended):
            self._since = 0.0
            return False
        self._since = self._since or now
        return now - self._since >= self.PATIENCE


def deserted(name: str) -> str:
    """Why a job fails whose tasks wait; ``name`` is the task that has ended."""
    return f"{name} ended while others waited for it in MPI_Init"


def hint(said: str) -> str:
    """What is to be added to the reason of a job that failed after it had said this."""
    return "; its MPI is MPICH, not Open MPI: give it mpi: pmi1" if "unsupported PMI version PMIx" in said else ""


def nobody_came(tasks: int) -> str:
    """What is to be said of a job that has completed, and of whose tasks none has come to MPI."""
    return (f"none of its {tasks} tasks asked for PMIx, so each ran by itself: the program is of another MPI library "
            "(MPICH, Intel MPI: give it mpi: pmi1), or no MPI program (then leave mpi: pmix out)")
