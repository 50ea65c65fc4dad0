"""Whether a rank's supervisors answer. One that is stopped, or hangs, would keep its jobs for ever,
whatever their limits.

The rank tells its supervisors several times within the time-out that it lives, and each answers; whatever else a
supervisor says will do as well.
"""

from __future__ import annotations

import math
from typing import Protocol

from mpiflux.overlay.heartbeat import Heartbeat

LEAST = 5.0
"""Seconds for which a supervisor may be silent at least: on a full node it may wait for a core."""


class Answering(Protocol):
    """A rank's executors."""

    heard: set[int]
    """Who has said something, or is new, since this was emptied."""

    def beat(self, src: int, age: float) -> None: ...
    def pids(self) -> dict[int, int]: ...
    def replace(self, number: int) -> None: ...


class Pulse:
    """Asks as ``source``, the endpoint of the rank; ``timeout`` in seconds, ``now`` on the clock that is used later."""

    def __init__(self, executors: Answering, source: int, timeout: float, now: float) -> None:
        self._executors, self._source = executors, source
        self.patience = max(timeout, LEAST)
        self._heartbeat = Heartbeat((), timeout, now, patience=self.patience)

    @property
    def next(self) -> float:
        """When :meth:`look` wants to be called, after all that has arrived was read."""
        return self._heartbeat.next

    def look(self, now: float) -> list[int]:
        """Ask again, and end who has not answered for too long: their numbers."""
        beats, executors = self._heartbeat, self._executors
        for number in executors.heard:
            beats.expect(number, now)
        executors.heard.clear()
        for number in set(beats.peers).difference(executors.pids()):
            beats.forget(number)
        if not beats.beat(now):
            return []
        silent = beats.silent(now)
        for number in silent:
            executors.replace(number)
        # whether rank 0 hears of this rank is for the keeper to say
        executors.beat(self._source, math.inf)
        return silent
