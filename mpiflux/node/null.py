"""Executors that start nothing: every job completes at once. For trials of a hierarchy, and to measure the tree."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection

from mpiflux.model import messages as m
from mpiflux.model.records import PACK, SIZE
from mpiflux.model.states import Result


def _records(first_id: int, chunk: m.Chunk, src: int, r_id: int, now: float) -> bytes:
    """One record for each job of a chunk."""
    one = PACK.pack(0, chunk.attempt, Result.COMPLETED, 0, 0, 1, src, r_id, now, now, now, 0, 0, 0, 0, 0, 0)
    words = array("Q", one * len(chunk))
    # the id is the first of the eight-byte words of a record
    words[::SIZE // 8] = array("Q", range(first_id + chunk.start, first_id + chunk.stop, chunk.step))
    return words.tobytes()


class NullExecutors:
    """Stands in for :class:`mpiflux.node.executors.Executors`."""

    def __init__(self, numbers: list[int], deliver: Callable[[int, int, m.Message], None],
                 clock: Callable[[], float]) -> None:
        self._deliver, self._clock = deliver, clock
        self._firsts: dict[int, int] = {}
        self._leases: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self._fed: dict[tuple[int, int], tuple[int, list[m.Chunk]]] = {}
        self._parts: list[tuple[int, int, m.Part]] = []
        self._numbers = numbers

    changed = False

    def filenos(self) -> dict[int, int]:
        return {}

    def post(self, number: int, src: int, message: m.Message) -> None:
        if isinstance(message, m.Declare):
            self._firsts[message.group.number] = message.group.first_id
        elif isinstance(message, m.Forget):
            for group in message.groups:
                self._firsts.pop(group, None)
        elif isinstance(message, m.Grant):
            self._leases.setdefault((number, message.shape), []).append((message.lease, message.r_id))
        elif isinstance(message, m.Feed):
            self._fed.setdefault((number, message.shape), (src, []))[1].extend(message.chunks)
        elif isinstance(message, m.Part):
            self._parts.append((number, src, message))
        elif isinstance(message, m.Stop):
            self._deliver(src, number, m.Stopped())

    def flush(self) -> None:
        """Complete everything that was fed since the last call."""
        fed, self._fed = self._fed, {}
        now = self._clock()
        parts, self._parts = self._parts, []
        for number, src, part in parts:
            record = PACK.pack(part.id, part.attempt, Result.COMPLETED, 0, 0, part.share.tasks, src, 0, now, now, now,
                               0, 0, 0, 0, 0, 0)
            self._deliver(src, number, m.PartStarted(part.id, part.attempt, part.part, now, 0))
            self._deliver(src, number, m.PartEnded(part.id, part.attempt, part.part, record))
        for (number, shape), (src, chunks) in fed.items():
            leases = self._leases.pop((number, shape), [])
            r_id = leases[0][1] if leases else 0
            records = b"".join(_records(self._firsts[chunk.group], chunk, src, r_id, now) for chunk in chunks)
            done: dict[int, int] = {}
            for chunk in chunks:
                done[chunk.group] = done.get(chunk.group, 0) + len(chunk)
            self._deliver(src, number, m.Report(records, idle=tuple(lease for lease, _ in leases),
                                                done=tuple((shape, group, n, 0.0) for group, n in done.items())))

    def pending(self) -> bool:
        return False

    def retry(self) -> None:
        return

    def receive(self, number: int) -> bool:
        return True

    def beat(self, src: int, age: float) -> None:
        """There is nobody to be told that the rank lives."""

    def renew(self, number: int, retired: Collection[int]) -> None:
        """What it has of leases and jobs is no more."""
        for held in (self._leases, self._fed):
            for key in [key for key in held if key[0] == number]:
                del held[key]  # type: ignore[attr-defined]  # either

    def close(self) -> None:
        return
