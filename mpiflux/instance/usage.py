"""How many core-seconds the attempts of a run have used."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpiflux.model import messages as m
from mpiflux.store.plain import words


class Usage:
    """Adds up records by the resource sets that they name."""

    def __init__(self) -> None:
        self._cores_of: dict[tuple[int, int], int] = {}

    def learn(self, message: m.NewR) -> None:
        """A resource set that records will name."""
        self._cores_of[message.sched, message.r_id] = sum(len(share.cores) for share in message.r.shares)

    def of(self, records: Any) -> float:
        """Core-seconds of a batch of records, which are mostly of few resource sets."""
        durations = records["t_finish"] - records["t_start"]
        keys = words(records)[:, 2]
        first = int(keys[0])
        if (keys == first).all():
            return float(durations.sum()) * self._width(first)
        unique, inverse = np.unique(keys, return_inverse=True)
        sums = np.bincount(inverse, durations)
        return sum(total * self._width(int(key)) for key, total in zip(unique, sums.tolist(), strict=True))

    def _width(self, key: int) -> int:
        """Cores of the resource set that a record names by r_sched and, in the upper half, r_id."""
        return self._cores_of.get((key & 0xFFFFFFFF, key >> 32), 0)
