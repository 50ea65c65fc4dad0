"""Sorted numbers as few arithmetic progressions: what is left of a range of jobs is mostly a few ranges. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def progressions(index: npt.NDArray[Any]) -> list[tuple[int, int, int]]:
    """Sorted distinct integers as few (start, stop, step) ranges, taken greedily from the left."""
    values = index.tolist()
    n = len(values)
    deltas = np.diff(index)
    turns = [*(np.flatnonzero(deltas[1:] != deltas[:-1]) + 1).tolist(), n - 1]
    steps = deltas.tolist()
    out: list[tuple[int, int, int]] = []
    at = 0
    for turn in turns:
        if turn < at or (turn == at and turn < n - 1):
            continue
        # A gap between two runs looks like a progression of two; taking it would cut the second's head off.
        if turn - at == 1 and steps[at] != 1 and turn < n - 1:
            turn = at
        out.append((values[at], values[turn] + 1, steps[at] if turn > at else 1))
        at = turn + 1
    return out
