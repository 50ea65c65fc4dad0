"""The transport over MPI: a communicator for every scheduler with what is below it, then only point-to-point.

Collectives are used while starting only, so that one dead rank cannot hang the others later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mpiflux.overlay.address import EVERYBODY

_TAG = 7


def load() -> Any:
    """``mpi4py.MPI``, not initialised yet: its library can be asked what it is. Raises ImportError or RuntimeError."""
    import mpi4py

    mpi4py.rc.initialize = False
    mpi4py.rc.finalize = False
    from mpi4py import MPI

    return MPI


def start(MPI: Any) -> Any:
    """Initialise MPI, for one thread that calls it; the world."""
    MPI.Init_thread(MPI.THREAD_FUNNELED)
    MPI.COMM_WORLD.Set_errhandler(MPI.ERRORS_RETURN)
    return MPI.COMM_WORLD


def gather_bytes(MPI: Any, comm: Any, data: bytes) -> list[bytes]:
    """Every rank's bytes, on rank 0 (elsewhere an empty list). Collective. Nothing is pickled."""
    import array

    lengths = array.array("q", [0] * comm.size)
    comm.Gather([array.array("q", [len(data)]), MPI.INT64_T], [lengths, MPI.INT64_T] if comm.rank == 0 else None)
    if comm.rank:
        comm.Gatherv([data, MPI.BYTE], None)
        return []
    everything = bytearray(sum(lengths))
    offsets = [0]
    for length in lengths[:-1]:
        offsets.append(offsets[-1] + length)
    comm.Gatherv([data, MPI.BYTE], [everything, list(lengths), offsets, MPI.BYTE])
    return [bytes(everything[at:at + length]) for at, length in zip(offsets, lengths, strict=True)]


def broadcast_bytes(MPI: Any, comm: Any, data: bytes) -> bytes:
    """Rank 0's bytes, on every rank. Collective."""
    import array

    length = array.array("q", [len(data)])
    comm.Bcast([length, MPI.INT64_T])
    buffer = bytearray(data) if comm.rank == 0 else bytearray(length[0])
    comm.Bcast([buffer, MPI.BYTE])
    return bytes(buffer)


class MpiTransport:
    """Implements :class:`mpiflux.overlay.transport.Transport`.

    ``members`` lists for every scheduler the ranks that it or its children and executors are on, its own first.
    Collective over ``world``: every rank calls with the same ``members``.
    """

    def __init__(self, MPI: Any, world: Any, members: Mapping[int, Sequence[int]]) -> None:
        self._MPI = MPI
        self.rank, self.size = world.rank, world.size
        self._comms: dict[int, tuple[Any, dict[int, int]]] = {}
        self._sending: list[tuple[Any, bytes]] = []
        everyone = world.Dup()
        everyone.Set_errhandler(MPI.ERRORS_RETURN)
        self._comms[EVERYBODY] = (everyone, {rank: rank for rank in range(self.size)})
        everybody = world.Get_group()
        for scheduler, ranks in sorted(members.items()):
            if len(ranks) < 2 or self.rank not in ranks:
                continue
            group = everybody.Incl(list(ranks))
            # only the members take part, all in the same order: no deadlock, and no cost to others
            comm = world.Create_group(group, scheduler % 32000)
            group.Free()
            comm.Set_errhandler(MPI.ERRORS_RETURN)
            self._comms[scheduler] = (comm, {rank: place for place, rank in enumerate(ranks)})
        everybody.Free()
        self._status = MPI.Status()

    def send(self, scheduler: int, rank: int, batch: bytes) -> None:
        comm, places = self._comms.get(scheduler, self._comms[EVERYBODY])
        if rank not in places:
            # an executor below a child, for a job on borrowed resources
            comm, places = self._comms[EVERYBODY]
        self._sending.append((comm.Isend([batch, self._MPI.BYTE], places[rank], _TAG), batch))

    def poll(self) -> list[bytes]:
        MPI, status = self._MPI, self._status
        batches: list[bytes] = []
        for comm, _ in self._comms.values():
            while comm.Iprobe(MPI.ANY_SOURCE, _TAG, status):
                buffer = bytearray(status.Get_count(MPI.BYTE))
                comm.Recv([buffer, MPI.BYTE], status.Get_source(), _TAG)
                batches.append(bytes(buffer))
        if self._sending:
            self._sending = [pair for pair in self._sending if not pair[0].Test()]
        return batches

    def idle(self) -> bool:
        return not self._sending

    def close(self) -> None:
        self._comms.clear()
