"""What is free of a node over time, and sorted times of many nodes: the data structures below a timetable."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator

Need = tuple[tuple[int, int], ...]
"""(dimension, amount) pairs, amounts above 0."""
Change = tuple[float, int, Need]
"""(time, 1 or -1, amounts): so much is free from then on, or no more."""
Unit = tuple[float, int]
"""(time, position of the node)."""

_BLOCK = 512


class Units:
    """A sorted collection of units in blocks: adding, removing and finding the k-th cost a logarithm, nearly."""

    __slots__ = ("_blocks", "_last", "count")

    def __init__(self, units: list[Unit]) -> None:
        units.sort()
        self._blocks = [units[i:i + _BLOCK] for i in range(0, len(units), _BLOCK)]
        self._last = [block[-1] for block in self._blocks]
        self.count = len(units)

    def add(self, unit: Unit) -> None:
        self.count += 1
        if not self._blocks:
            self._blocks.append([unit])
            self._last.append(unit)
            return
        at = min(bisect_left(self._last, unit), len(self._blocks) - 1)
        block = self._blocks[at]
        insort(block, unit)
        self._last[at] = block[-1]
        if len(block) > 2 * _BLOCK:
            self._blocks[at:at + 1] = [block[:_BLOCK], block[_BLOCK:]]
            self._last[at:at + 1] = [block[_BLOCK - 1], block[-1]]

    def remove(self, unit: Unit) -> None:
        at = bisect_left(self._last, unit)
        block = self._blocks[at]
        del block[bisect_left(block, unit)]
        self.count -= 1
        if block:
            self._last[at] = block[-1]
        else:
            del self._blocks[at], self._last[at]

    def __iter__(self) -> Iterator[Unit]:
        for block in self._blocks:
            yield from block

    def kth(self, k: int) -> Unit | None:
        """The k-th smallest, from 1; None when there are fewer."""
        if k > self.count:
            return None
        for block in self._blocks:
            if k <= len(block):
                return block[k - 1]
            k -= len(block)
        return None

    def after(self, time: float) -> float:
        """The smallest time above ``time``; infinity when there is none."""
        key = (time, 1 << 60)
        at = bisect_right(self._last, key)
        if at == len(self._blocks):
            return math.inf
        block = self._blocks[at]
        return block[bisect_right(block, key)][0]

    def latest_first(self, time: float) -> Iterator[Unit]:
        """All with a time of at most ``time``, the latest first."""
        key = (time, 1 << 60)
        at = min(bisect_right(self._last, key), len(self._blocks) - 1)
        for i in range(at, -1, -1):
            block = self._blocks[i]
            for j in range(bisect_right(block, key) - 1, -1, -1):
                yield block[j]


class Steps:
    """What is free of one node, over time: ``free[i]`` from ``times[i]`` on.

    ``free`` is what is free now, ``changes`` are in order of time.
    """

    __slots__ = ("_slots", "free", "times")

    def __init__(self, now: float, free: list[int], changes: list[Change]) -> None:
        self.times, self.free = [now], [free]
        self._slots: dict[tuple[Need, float], float] = {}
        for time, sign, need in changes:
            if time > self.times[-1]:
                self.times.append(time)
                self.free.append(free := free.copy())
            for dimension, amount in need:
                free[dimension] += sign * amount

    def change(self, start: float, end: float, need: Need, sign: int) -> None:
        """So much is free no more between two times (-1), or again (1)."""
        self._slots.clear()
        if end <= self.times[0]:
            return
        for i in range(self._cut(max(start, self.times[0])), self._cut(end)):
            free = self.free[i]
            for dimension, amount in need:
                free[dimension] += sign * amount

    def _cut(self, time: float) -> int:
        """The position that begins at a time."""
        at = bisect_left(self.times, time)
        if at == len(self.times) or self.times[at] != time:
            self.times.insert(at, time)
            self.free.insert(at, self.free[at - 1].copy())
        return at

    def slot(self, need: Need, limit: float) -> float:
        """The earliest time from which so much is free for so long; infinity when there is none."""
        key = need, limit
        found = self._slots.get(key)
        if found is None:
            found = self._slots[key] = self._find_slot(need, limit)
        return found

    def _find_slot(self, need: Need, limit: float) -> float:
        start = -1.0
        for time, free in zip(self.times, self.free, strict=True):
            if 0 <= start <= time - limit:
                break
            for dimension, amount in need:
                if free[dimension] < amount:
                    start = -1.0
                    break
            else:
                if start < 0:
                    start = time
        return start if start >= 0 else math.inf

    def _between(self, start: float, end: float) -> list[list[int]]:
        return self.free[bisect_right(self.times, start) - 1:bisect_left(self.times, end)]

    def lowest(self, start: float, end: float) -> list[int]:
        """The least of everything between two times."""
        return list(map(min, *between)) if len(between := self._between(start, end)) > 1 else between[0]

    def has(self, need: Need, start: float, end: float) -> bool:
        """Whether so much is free all the time between two times."""
        between = self._between(start, end)
        return all(free[dimension] >= amount for dimension, amount in need for free in between)


def time_of(change: Change) -> float:
    return change[0]
