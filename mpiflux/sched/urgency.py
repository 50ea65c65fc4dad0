"""Urgencies that were changed after submission: ranges of a group's elements, whatever the group's size."""

from __future__ import annotations

import bisect
from collections.abc import Iterator

from mpiflux.model.messages import Chunk

HELD = 0
"""The urgency of jobs that are not to start (Flux's)."""


class Urgencies:
    """A piecewise constant function of an element's index; None where nothing was changed."""

    def __init__(self) -> None:
        self._starts: list[int] = [0]
        self._values: list[int | None] = [None]

    def set(self, start: int, stop: int, value: int) -> None:
        """Elements ``range(start, stop)`` have this urgency now."""
        if stop <= start:
            return
        self._split(start)
        self._split(stop)
        low, high = bisect.bisect_left(self._starts, start), bisect.bisect_left(self._starts, stop)
        self._starts[low:high] = [start]
        self._values[low:high] = [value]
        for at in (low + 1, low):
            # equal neighbours are one piece
            if 0 < at < len(self._starts) and self._values[at] == self._values[at - 1]:
                del self._starts[at], self._values[at]

    def _split(self, index: int) -> None:
        at = bisect.bisect_left(self._starts, index)
        if at == len(self._starts) or self._starts[at] != index:
            self._starts.insert(at, index)
            self._values.insert(at, self._values[at - 1])

    def at(self, index: int) -> int | None:
        """The urgency of one element."""
        return self._values[bisect.bisect(self._starts, index) - 1]

    def ranges(self) -> Iterator[tuple[int, int | None, int]]:
        """(start, stop, urgency) of what was changed; ``stop`` None: to the end."""
        for at, value in enumerate(self._values):
            if value is not None:
                yield self._starts[at], self._starts[at + 1] if at + 1 < len(self._starts) else None, value

    def pieces(self, chunk: Chunk) -> list[tuple[int | None, Chunk]]:
        """A chunk as parts of one urgency each, in order."""
        out: list[tuple[int | None, Chunk]] = []
        rest: Chunk | None = chunk
        while rest is not None:
            at = bisect.bisect(self._starts, rest.start) - 1
            stop = self._starts[at + 1] if at + 1 < len(self._starts) else rest.stop
            part, rest = rest.split(max(0, -(-(stop - rest.start) // rest.step)))
            out.append((self._values[at], part))
        return out


def cut(chunk: Chunk, start: int, stop: int) -> tuple[Chunk | None, Chunk | None, Chunk | None]:
    """The parts of a chunk below, within and above ``range(start, stop)``; None for one without jobs."""
    def below(bound: int) -> int:
        return min(max(-(-(bound - chunk.start) // chunk.step), 0), len(chunk))

    low, high = below(start), below(max(stop, start))
    first, rest = (None, chunk) if not low else chunk.split(low)
    if rest is None:
        return first, None, None
    middle, last = (None, rest) if high == low else rest.split(high - low)
    return first, middle, last
