"""That one look at MPI is enough, with a library that says "nothing" while it takes in what has come."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from mpiflux.overlay.mpi import MpiTransport


class Ended:
    def Test(self) -> bool:
        return True


class Status:
    length = 0

    def Get_source(self) -> int:
        return 1

    def Get_count(self, kind: object) -> int:
        return self.length


class Comm:
    """A communicator of two ranks. What has arrived is seen by the question after the one that takes it in."""

    rank, size = 0, 2

    def __init__(self) -> None:
        self.arrived: list[bytes] = []
        self.seen: list[bytes] = []

    def Idup(self) -> tuple[Comm, Ended]:
        return self, Ended()

    def Set_errhandler(self, handler: object) -> None:
        pass

    def Get_group(self) -> Any:
        return SimpleNamespace(Free=lambda: None)

    def Iprobe(self, source: int, tag: int, status: Status) -> bool:
        if self.seen:
            status.length = len(self.seen[0])
            return True
        self.seen, self.arrived = self.arrived, []
        return False

    def Irecv(self, buffer: list[Any], source: int, tag: int) -> Ended:
        buffer[0][:] = self.seen.pop(0)
        return Ended()


def test_a_look_finds_what_had_come_before_it() -> None:
    comm = Comm()
    mpi = SimpleNamespace(ERRORS_RETURN=0, ANY_SOURCE=-1, BYTE=0, Status=Status, Exception=OSError)
    transport = MpiTransport(mpi, comm, {})
    assert transport.poll() == []
    comm.arrived += [b"one", b"another"]
    assert transport.poll() == [b"one", b"another"]
    assert transport.poll() == []
