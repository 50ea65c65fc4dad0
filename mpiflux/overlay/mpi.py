"""The transport over MPI: a communicator for every scheduler with what is below it, then only point-to-point.

Collectives are used while starting only, so that one dead rank cannot hang the others later.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from mpiflux.overlay.address import EVERYBODY

_TAG = 7
_SHORTEST, _LONGEST, _PART = 0.001, 0.01, 1 / 16
"""Seconds between two looks at a collective of the start: this part of what the wait has taken so far, within these
bounds. MPI's own waiting spins: on shared cores, who waits for rank 0 would take the core on which it works."""
_GLANCES = 2
"""MPI libraries look first whether a message is there, and only then take in what has come: the next one finds that."""
_LOOKS, _ROOT = 16, 0.0003
"""At a time, and the pause after them, where rank 0 waits for all others: a look takes in what one of them sent."""


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


def _wait(request: Any) -> None:
    """Until a request has ended, asleep in between."""
    begin = time.monotonic()
    while not request.Test():
        time.sleep(min(max((time.monotonic() - begin) * _PART, _SHORTEST), _LONGEST))


def _collect(request: Any) -> None:
    """The same for rank 0, to which all others send."""
    while not any(request.Test() for _ in range(_LOOKS)):
        time.sleep(_ROOT)


def gather_bytes(MPI: Any, comm: Any, data: bytes) -> list[bytes]:
    """Every rank's bytes, on rank 0 (elsewhere an empty list). Collective. Nothing is pickled."""
    import array

    mine, lengths = array.array("q", [len(data)]), array.array("q", [0] * comm.size)
    wait = _wait if comm.rank else _collect
    wait(comm.Igather([mine, MPI.INT64_T], [lengths, MPI.INT64_T] if comm.rank == 0 else None))
    if comm.rank:
        _wait(comm.Igatherv([data, MPI.BYTE], None))
        return []
    everything = bytearray(sum(lengths))
    offsets = [0]
    for length in lengths[:-1]:
        offsets.append(offsets[-1] + length)
    wait(comm.Igatherv([data, MPI.BYTE], [everything, list(lengths), offsets, MPI.BYTE]))
    return [bytes(everything[at:at + length]) for at, length in zip(offsets, lengths, strict=True)]


def broadcast_bytes(MPI: Any, comm: Any, data: bytes) -> bytes:
    """Rank 0's bytes, on every rank. Collective."""
    import array

    length = array.array("q", [len(data)])
    _wait(comm.Ibcast([length, MPI.INT64_T]))
    buffer = bytearray(data) if comm.rank == 0 else bytearray(length[0])
    _wait(comm.Ibcast([buffer, MPI.BYTE]))
    return bytes(buffer)


class MpiTransport:
    """Implements :class:`mpiflux.overlay.transport.Transport`.

    ``members`` lists for every scheduler the ranks that it or its children and executors are on, its own first.
    Collective over ``world``: every rank calls with the same ``members``. Nothing here waits for another rank, not even
    for the rest of a long message: that rank may have died in the middle of it.
    """

    def __init__(self, MPI: Any, world: Any, members: Mapping[int, Sequence[int]]) -> None:
        self._MPI = MPI
        self.rank, self.size = world.rank, world.size
        self._comms: dict[int, _Comm] = {}
        self._sending: list[tuple[Any, bytes, int]] = []
        self._arriving: dict[tuple[int, int], deque[tuple[Any, bytearray]]] = {}
        """What is still on its way here, by communicator and rank, in order."""
        self._lost: set[int] = set()
        self._failed: set[int] = set()
        self._abandoned: list[Any] = []
        """Requests that never end; MPI must not lose their buffers."""
        everyone, request = world.Idup()
        _wait(request)
        everyone.Set_errhandler(MPI.ERRORS_RETURN)
        self._comms[EVERYBODY] = _Comm(everyone, list(range(self.size)))
        everybody = world.Get_group()
        for scheduler, ranks in sorted(members.items()):
            if len(ranks) < 2 or self.rank not in ranks or len(ranks) == self.size:
                # that of everybody serves as well: another would be one more to ask whether anything has come
                continue
            group = everybody.Incl(list(ranks))
            # only the members take part, all in the same order: no deadlock, and no cost to others
            comm = world.Create_group(group, scheduler % 32000)
            group.Free()
            comm.Set_errhandler(MPI.ERRORS_RETURN)
            self._comms[scheduler] = _Comm(comm, list(ranks))
        everybody.Free()
        self._status = MPI.Status()
        self._gone = {getattr(MPI, name, None) for name in ("ERR_PROC_FAILED", "ERR_PROC_FAILED_PENDING")}

    def send(self, scheduler: int, rank: int, batch: bytes) -> None:
        if rank in self._lost:
            return
        comm = self._comms.get(scheduler, self._comms[EVERYBODY])
        if rank not in comm.places:
            # an executor below a child, for a job on borrowed resources; or a scheduler that came when a rank was lost
            comm = self._comms[EVERYBODY]
        try:
            request = comm.comm.Isend([batch, self._MPI.BYTE], comm.places[rank], _TAG)
        except self._MPI.Exception:
            self._failed.add(rank)
        else:
            # most are on their way at once: the rank need not come back to look
            if not self._ended(request, rank):
                self._sending.append((request, batch, rank))

    def poll(self) -> list[bytes]:
        batches: list[bytes] = []
        if self._arriving:
            self._go_on(batches)
        for _ in range(_GLANCES):
            if self._glance(batches):
                break
        if self._sending:
            self._sending = [one for one in self._sending if not self._ended(one[0], one[2])]
        return batches

    def _glance(self, batches: list[bytes]) -> bool:
        """Ask once whether anything has come, and take it; whether there was something."""
        found, status = False, self._status
        for number, comm in self._comms.items():
            try:
                while comm.comm.Iprobe(self._MPI.ANY_SOURCE, _TAG, status):
                    found = True
                    self._receive(number, comm, batches)
            except self._MPI.Exception as error:
                self._look(comm, error)
        return found

    def _receive(self, number: int, comm: _Comm, batches: list[bytes]) -> None:
        """Take what was just found."""
        place = self._status.Get_source()
        rank = comm.ranks[place]
        buffer = bytearray(self._status.Get_count(self._MPI.BYTE))
        request = comm.comm.Irecv([buffer, self._MPI.BYTE], place, _TAG)
        key = (number, rank)
        if rank in self._lost:
            self._abandoned.append((request, buffer))
        elif key not in self._arriving and self._ended(request, rank):
            batches.append(bytes(buffer))
        else:
            self._arriving.setdefault(key, deque()).append((request, buffer))

    def _go_on(self, batches: list[bytes]) -> None:
        for key, waiting in list(self._arriving.items()):
            while waiting and self._ended(waiting[0][0], key[1]):
                batches.append(bytes(waiting.popleft()[1]))
            if not waiting:
                del self._arriving[key]

    def _ended(self, request: Any, rank: int) -> bool:
        try:
            return bool(request.Test())
        except self._MPI.Exception:
            self._failed.add(rank)
            return False

    def _look(self, comm: _Comm, error: Any) -> None:
        """Somebody of a communicator is gone: who, and go on without."""
        if error.Get_error_class() not in self._gone:
            raise error
        failed = comm.comm.Get_failed()
        places = self._MPI.Group.Translate_ranks(failed, None, comm.comm.Get_group())
        self._failed.update(comm.ranks[place] for place in places)
        comm.comm.Ack_failed()

    def failed(self) -> set[int]:
        found, self._failed = self._failed - self._lost, set()
        return found

    def forget(self, rank: int) -> None:
        self._lost.add(rank)
        self._abandoned += [one for one in self._sending if one[2] == rank]
        self._sending = [one for one in self._sending if one[2] != rank]
        for key in [key for key in self._arriving if key[1] == rank]:
            self._abandoned.append(self._arriving.pop(key))

    def idle(self) -> bool:
        return not self._sending

    def moving(self) -> bool:
        return bool(self._sending or self._arriving)

    def close(self) -> None:
        self._comms.clear()


class _Comm:
    """A communicator, and the ranks in it by their place there."""

    __slots__ = ("comm", "places", "ranks")

    def __init__(self, comm: Any, ranks: list[int]) -> None:
        self.comm, self.ranks = comm, ranks
        self.places = {rank: place for place, rank in enumerate(ranks)}
