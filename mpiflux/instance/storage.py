"""What is to be done when the run directory cannot be written, or not as fast as results come in. Pure.

Nothing that has happened is dropped: it waits in memory. So that this stays little, no more jobs are started
meanwhile; and when nothing runs any more and it is no better, the run ends, to be resumed when there is room.
"""

from __future__ import annotations

PATIENCE = 5.0
"""Seconds that an instance in which nothing runs waits for room."""
SLOW, MOST = 64 << 20, 256 << 20
"""Bytes that wait to be written from which on no more jobs are started, and the run ends if writing fails."""


class Storage:
    """Asked at every beat. ``paused``: no more jobs are to be started. ``given_up``: the run is to end."""

    def __init__(self) -> None:
        self.paused = self.given_up = False
        self._failing = False
        self._idle_since: float | None = None

    def look(self, error: str | None, waiting: int, running: int, now: float) -> str:
        """``error`` of the journal, bytes that wait, jobs that run. What a person should hear, or nothing."""
        if self.given_up:
            return ""
        said = ""
        failing = error is not None
        if failing and not self._failing:
            said = f"{error}. No more jobs are started until then"
        elif self._failing and not failing:
            said = "the run directory can be written again, and jobs are started again"
        self._failing = failing
        self.paused = failing or waiting > (SLOW // 4 if self.paused else SLOW)
        if not failing or running:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        if failing and (waiting > MOST or (self._idle_since is not None and now > self._idle_since + PATIENCE)):
            self.given_up = True
        return said
