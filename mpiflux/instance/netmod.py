"""Which network code MPICH uses where ranks on other hosts are to be survived.

MPICH built with both UCX and libfabric takes UCX. When the connection to a dead rank is reset, as it is by TCP, UCX
marks its end of it as failed and crashes on the next message there: the first rank that dies takes down all that talk
to it. With libfabric that message is an error, which also says at once who is gone. Seen with MPICH 5.0.2 and its
UCX, each time; where ranks share a node's memory there is no connection, and no such crash.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, MutableMapping

from mpiflux.instance.launcher import Launcher

_PUSHES = 30
_CHOICE = "MPIR_CVAR_CH4_NETMOD"
_TUNED = ("UCX_NET_DEVICES", _CHOICE)
"""Whoever sets one of these has chosen."""


@contextlib.contextmanager
def surviving_network(launcher: Launcher, mpi_library: str, environ: MutableMapping[str, str]) -> Iterator[None]:
    """Within it MPI_Init takes libfabric where that matters: under our own launcher, on several hosts, with an MPICH
    that has both. ``mpi_library`` is ``MPI.Get_library_version()``. Afterwards ``environ`` is as before, for the jobs.
    """
    if not _matters(launcher) or not has_both(mpi_library) or any(name in environ for name in _TUNED):
        yield
        return
    environ[_CHOICE] = "ofi"
    try:
        yield
    finally:
        del environ[_CHOICE]


def has_both(mpi_library: str) -> bool:
    """Whether an MPICH of the ch4 device was built with UCX and with libfabric."""
    found = re.search(r"MPICH Device:\s*ch4:(.*)", mpi_library)
    return found is not None and {"ucx", "ofi"} <= set(re.findall(r"[a-z]+", found[1]))


def push(launcher: Launcher, rank: int, look: Callable[[], object]) -> None:
    """Before rank 0 leaves without finalising MPI: have what was sent last leave this host. libfabric takes a short
    message for sent once it has a copy, and sends that when MPI is called again, as ``look`` does; the others would
    wait for it."""
    if rank == 0 and _matters(launcher):
        for _ in range(_PUSHES):
            look()
            time.sleep(0.005)


def _matters(launcher: Launcher) -> bool:
    return launcher.kind == "mpiflux" and (launcher.local_size or 0) < (launcher.size or 0)
