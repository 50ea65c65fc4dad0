"""How long a supervisor waits for a sign of life of its rank. Pure.

A rank that was stopped, or hangs, is taken for lost, and its jobs run again elsewhere: before that happens its
supervisors end them, as nobody else on the node would.
"""

from __future__ import annotations

AGAIN = 1 / 8
"""The part of its patience that a supervisor adds once: if it was itself stopped, with its rank, it has heard nothing
meanwhile."""


class Patience:
    """``seconds`` of silence from ``now`` on; 0: for ever."""

    def __init__(self, seconds: float, now: float) -> None:
        self.seconds = seconds or float("inf")
        self.next = now + self.seconds
        self._doubts = False

    def heard(self, when: float) -> None:
        """The rank lived at this time, and was taken for alive; what was known already changes nothing."""
        if when + self.seconds > self.next:
            self.next = when + self.seconds
            self._doubts = False

    def over(self, now: float) -> bool:
        """Whether it has been silent for too long. Call it when :attr:`next` has come, after all that came was read."""
        if now < self.next:
            return False
        if self._doubts:
            return True
        self._doubts, self.next = True, now + self.seconds * AGAIN
        return False
