"""How often rank 0 looks at what no message tells it of: progress, room on disk, time left. Pure.

Often while something happens; while nothing does, ever less often, so that an idle instance costs next to nothing.
"""

from __future__ import annotations

BEAT, SLOW = 0.1, 0.5
"""Seconds between two beats: while something happens, and at the longest."""


class Rhythm:
    """``next`` is when the next beat is due; the first one is at once."""

    def __init__(self, now: float) -> None:
        self.next = now
        self._rest = BEAT
        """Until the beat after the last one; it doubles while nothing happens."""

    def quicken(self, now: float) -> None:
        """Something has happened: the next beat comes soon."""
        if self._rest > BEAT:
            self._rest, self.next = BEAT, min(self.next, now + BEAT)

    def beats(self, now: float, end: float = 0.0) -> bool:
        """Whether a beat is due, which it is then no longer. An ``end`` that is still to come is not slept through."""
        if now < self.next:
            return False
        self._rest = min(2 * self._rest, SLOW)
        self.next = now + self._rest
        if end > now:
            self.next = min(self.next, end)
        return True
