"""Jobs that are to be tried again, but not at once: what they wait for is the time alone. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from mpiflux.sched.agenda import Agenda


class Postponed(Agenda[Any]):
    """Arrays of ids by when they are due (Unix seconds). ``earlier``: what an earlier instance has left."""

    def __init__(self, earlier: Iterable[tuple[float, Any]], now: float) -> None:
        super().__init__()
        self.resting: set[int] = set()
        """Those that an earlier instance tried, until they are due: their groups are handed out without them."""
        for when, ids in earlier:
            if when > now:
                self.add(when, ids)
                self.resting.update(ids.tolist())

    def due(self, now: float) -> list[Any]:
        """Take what is due by now."""
        found = super().due(now)
        for ids in found:
            self.resting.difference_update(ids.tolist())
        return found

    def awake(self, ids: Any) -> Any:
        """Those of these jobs that do not rest."""
        return ids[~np.isin(ids, np.fromiter(self.resting, "i8", len(self.resting)))] if self.resting else ids

    def when(self, job: int) -> float:
        """When a job is due; 0: it waits for no time."""
        return next((when for when, ids in self.items() if job in ids), 0.0)
