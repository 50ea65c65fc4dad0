"""What is to happen later: pure, the time comes in."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Agenda(Generic[Item]):
    """Items by the time (seconds) when they are due, equal ones in the order in which they came."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Item]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, when: float, item: Item) -> None:
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, item))

    @property
    def next(self) -> float:
        """When the first one is due; infinity: there is none."""
        return self._heap[0][0] if self._heap else float("inf")

    def due(self, now: float) -> list[Item]:
        """Take what is due by now."""
        out = []
        while self._heap and self._heap[0][0] <= now:
            out.append(heapq.heappop(self._heap)[2])
        return out

    def items(self) -> list[tuple[float, Item]]:
        """All, in no order."""
        return [(when, item) for when, _, item in self._heap]

    def clear(self) -> None:
        self._heap.clear()
