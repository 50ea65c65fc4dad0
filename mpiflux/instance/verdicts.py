"""Verdicts about jobs that wait for others, until they may be carried out: nobody depends on what could still be lost.

Those that refuse may wait longer: a batch system's signal may be behind the failure that they rest upon. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

from mpiflux.sched.dependencies import Refuse, Verdict
from mpiflux.store.elementwise import Elements


class Verdicts:
    """``waiting`` has (journal sequence number that has to be on disk, earliest time, verdict), in order."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, float, Verdict | Elements]] = []

    def add(self, verdicts: Iterable[Verdict | Elements], seq: int, refuse_at: float) -> None:
        """They rest upon what the journal has up to ``seq``; whoever is refused is so at ``refuse_at`` or later."""
        self.waiting += [(seq, refuse_at if _refuses(one) else 0.0, one) for one in verdicts]

    def next(self, committed: int) -> float:
        """When one is due, with no more on disk than up to ``committed``; infinity: only once there is more."""
        return min((when for seq, when, _ in self.waiting if seq <= committed), default=float("inf"))

    def due(self, committed: int, now: float) -> list[Verdict | Elements]:
        """Take those that may be carried out."""
        waiting = self.waiting
        self.waiting = [one for one in waiting if one[0] > committed or one[1] > now]
        return [verdict for seq, when, verdict in waiting if seq <= committed and when <= now]

    def clear(self) -> None:
        self.waiting = []


def _refuses(verdict: Verdict | Elements) -> bool:
    return bool(verdict.refused) if isinstance(verdict, Elements) else isinstance(verdict, Refuse)
