"""Virtual time: an event heap, and links between processes that keep order within a pair."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from typing import Any


class Engine:
    """Calls what was scheduled, in order of time, and of scheduling at equal times. Times are virtual seconds."""

    def __init__(self, start: float = 0.0) -> None:
        self.now = start
        self.events = 0
        """Events handled so far."""
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._pushed = 0

    def at(self, when: float, action: Callable[..., None], *args: Any) -> None:
        """Call ``action(*args)`` at ``when``, or now if that is past."""
        self._pushed += 1
        heapq.heappush(self._heap, (max(when, self.now), self._pushed, action, args))

    def step(self) -> bool:
        """Handle one event; False when there is none."""
        if not self._heap:
            return False
        self.now, _, action, args = heapq.heappop(self._heap)
        self.events += 1
        action(*args)
        return True

    @property
    def next_time(self) -> float:
        """When something happens next; infinity when nothing ever will."""
        return self._heap[0][0] if self._heap else float("inf")

    @property
    def pending(self) -> int:
        return len(self._heap)


Delay = Callable[[int, int, float], float]
"""(source rank, destination rank, now) to seconds under way."""


class Network:
    """Delivers batches after a delay. Two batches of one ``stream`` never overtake each other, as in MPI."""

    def __init__(self, engine: Engine, delay: Delay) -> None:
        self._engine, self._delay = engine, delay
        self._last: dict[Hashable, float] = {}
        self.batches = 0

    def send(self, stream: Hashable, src: int, dst: int, when: float, arrive: Callable[..., None], *args: Any) -> bool:
        """Have ``arrive(*args)`` called after what this takes from ``src`` to ``dst``; sent at ``when``. False: it
        never will be."""
        self.batches += 1
        due = max(when + self._delay(src, dst, when), self._last.get(stream, 0.0))
        self._last[stream] = due
        self._engine.at(due, arrive, *args)
        return True
