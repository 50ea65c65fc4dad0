"""Carrying batches between ranks. One interface, so that the rank's loop is the same with and without MPI."""

from __future__ import annotations

from typing import Protocol


class Transport(Protocol):
    """Sends never block, and batches between two ranks arrive in the order in which they were sent."""

    rank: int
    size: int

    def send(self, scheduler: int, rank: int, batch: bytes) -> None:
        """Send to ``rank`` over the communicator of ``scheduler``."""

    def poll(self) -> list[bytes]:
        """Batches that have arrived."""

    def failed(self) -> set[int]:
        """Ranks of which it has learnt by itself that they are gone, since this was last asked."""

    def forget(self, rank: int) -> None:
        """A rank is lost: nothing is sent to it, waited for or taken from it any more."""

    def idle(self) -> bool:
        """Whether everything that was sent has left."""

    def moving(self) -> bool:
        """Whether something is on its way that only goes on when :meth:`poll` is called."""

    def close(self) -> None:
        """Leave. Nothing is waited for."""


class LocalTransport:
    """One rank alone: nobody to send to."""

    rank = 0
    size = 1

    def send(self, scheduler: int, rank: int, batch: bytes) -> None:
        raise RuntimeError(f"no rank {rank} in an instance of one")

    def poll(self) -> list[bytes]:
        return []

    def failed(self) -> set[int]:
        return set()

    def forget(self, rank: int) -> None:
        return

    def idle(self) -> bool:
        return True

    def moving(self) -> bool:
        return False

    def close(self) -> None:
        return
