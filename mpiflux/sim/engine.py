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
        self._cancelled: set[int] = set()

    def at(self, when: float, action: Callable[..., None], *args: Any) -> int:
        """Call ``action(*args)`` at ``when``, or now if that is past. Gives what :meth:`cancel` takes."""
        self._pushed += 1
        heapq.heappush(self._heap, (max(when, self.now), self._pushed, action, args))
        return self._pushed

    def cancel(self, event: int) -> None:
        """Forget an event that is still to come, and never reach its time for its sake."""
        self._cancelled.add(event)
        while self._heap and self._heap[0][1] in self._cancelled:
            self._cancelled.remove(heapq.heappop(self._heap)[1])

    def step(self) -> bool:
        """Handle one event; False when there is none."""
        if not self._heap:
            return False
        self.now, _, action, args = heapq.heappop(self._heap)
        while self._heap and self._heap[0][1] in self._cancelled:
            self._cancelled.remove(heapq.heappop(self._heap)[1])
        self.events += 1
        action(*args)
        return True

    @property
    def next_time(self) -> float:
        """When something happens next; infinity when nothing ever will."""
        return self._heap[0][0] if self._heap else float("inf")

    @property
    def pending(self) -> int:
        return len(self._heap) - len(self._cancelled)


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
