"""Who has not been heard of for too long. Ranks tell each other that they live several times within the time-out.

A rank that was itself stopped for a while, by a signal or with its machine, has heard nobody meanwhile and blames
nobody for that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

BEATS = 6
"""Signs of life within a time-out."""


class Heartbeat:
    """``peers`` are expected to be heard at least every ``timeout`` seconds from ``now`` on, and for the first time
    within ``first``: whoever dies while it starts has no bell yet that could tell. ``patience``, if it is not the same
    as ``timeout``, is how long a peer may be silent."""

    def __init__(self, peers: Iterable[int], timeout: float, now: float, first: float = math.inf,
                 patience: float = 0.0) -> None:
        self.timeout, self.period = patience or timeout, timeout / BEATS
        self._heard = dict.fromkeys(peers, now - max(timeout - first, 0.0))
        self._looked = self._next = now

    @property
    def next(self) -> float:
        """When :meth:`beat` wants to be called."""
        return self._next

    @property
    def peers(self) -> tuple[int, ...]:
        """Who is still expected to be heard."""
        return tuple(self._heard)

    def heard(self, rank: int, when: float) -> None:
        """Somebody has given a sign of life; of those that are not expected to, that means nothing.

        ``when`` is the time of its arrival, or, where it answers something of ours, the time when we sent that: the
        other side counts from no earlier, so whoever goes by the answers gives up first, whatever is held up on the
        way, and in whichever direction.
        """
        if rank in self._heard:
            self._heard[rank] = max(self._heard[rank], when)

    def expect(self, peer: int, now: float) -> None:
        """There is one more, or another in the place of one."""
        self._heard[peer] = now

    def forget(self, rank: int) -> None:
        """Expect no more signs of it."""
        self._heard.pop(rank, None)

    def beat(self, now: float) -> bool:
        """Whether it is time to tell the peers that we live. Call it whenever :attr:`next` has come."""
        away = now - self._looked - self.period
        self._looked = now
        if away > self.period:
            # who was heard since we are back was not missed while we were away
            self._heard = {rank: min(heard + away, now) for rank, heard in self._heard.items()}
        if now < self._next:
            return False
        self._next = now + self.period
        return True

    def silent(self, now: float) -> list[int]:
        """Who was not heard for longer than the time-out; ask after :meth:`beat`."""
        limit = now - self.timeout
        return [rank for rank, heard in self._heard.items() if heard < limit]
