"""What executors were handed: groups that they know, attempts that they have, and how many they are given ahead."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence

from mpiflux.model import messages as m
from mpiflux.model.records import SIZE
from mpiflux.sched.catalog import Catalog

AHEAD = 0.1
"""Seconds of work that an executor is given beyond what runs."""
MOST_AHEAD = 256
"""Jobs for each lease, however short they are."""
SLOW = 0.1
"""Jobs that take longer than this many seconds are never given ahead."""

Action = tuple[int, m.Message]


class Handed:
    """The messages to executors wait in ``out``, what they are fed until :meth:`collect`."""

    def __init__(self, executors: tuple[int, ...], catalog: Catalog) -> None:
        self._catalog = catalog
        self._seconds: dict[int, float] = {}
        """How long jobs of a group take, a moving average."""
        self._ahead: dict[int, int] = {}
        """How many of a group are given ahead."""
        self._held: dict[int, dict[int, int]] = {executor: {} for executor in executors}
        """Attempts that each executor has, by job id."""
        self._declared: set[tuple[int, int]] = set()
        self._feeds: dict[tuple[int, int], list[m.Chunk]] = {}
        self.out: list[Action] = []

    def ahead(self, group: int) -> int:
        """Jobs of a group that each lease may have beyond the one that runs."""
        return self._ahead.get(group, 0)

    def declare(self, executor: int, group: int) -> None:
        """Have an executor know a group."""
        if (executor, group) not in self._declared:
            self._declared.add((executor, group))
            self.out.append((executor, self._catalog.declared[group]))

    def feed(self, executor: int, shape: int, chunk: m.Chunk) -> None:
        """Give an executor jobs for its leases of a shape."""
        self.declare(executor, chunk.group)
        self._held.setdefault(executor, {}).update(dict.fromkeys(self._catalog.ids(chunk), chunk.attempt))
        self._feeds.setdefault((executor, shape), []).append(chunk)

    def told(self) -> list[Action]:
        """What is to be sent since the last time, but for what executors are fed."""
        out, self.out = self.out, []
        return out

    def collect(self) -> list[Action]:
        """What is to be sent since the last time."""
        out = self.told()
        for (executor, shape), chunks in self._feeds.items():
            out.append((executor, m.Feed(shape, tuple(chunks))))
        self._feeds.clear()
        return out

    def ended(self, executor: int, records: bytes) -> None:
        """These attempts have ended there."""
        held = self._held[executor]
        # the id is the first of the eight-byte words of a record
        for job in memoryview(records).cast("Q")[::SIZE // 8].tolist():
            held.pop(job, None)

    def took(self, group: int, seconds: float) -> None:
        """Jobs of a group took so long, on average."""
        self._know(group, 0.5 * (self._seconds.get(group, seconds) + seconds))

    def _know(self, group: int, seconds: float) -> None:
        self._seconds[group] = seconds
        wanted = 0
        if seconds <= SLOW:
            wanted = min(MOST_AHEAD, math.ceil(AHEAD / max(seconds, 1e-6)))
        # with every small change of it, executors that want nothing yet would be given a few more
        if abs(wanted - self._ahead.get(group, 0)) > wanted // 4:
            self._ahead[group] = wanted

    def returned(self, executor: int, chunk: m.Chunk) -> None:
        """Jobs come back not started: they waited behind a long one, so that none are given ahead again soon."""
        held = self._held[executor]
        for job in self._catalog.ids(chunk):
            held.pop(job, None)
        self._know(chunk.group, max(self._seconds.get(chunk.group, 0.0), 2 * SLOW))

    def by(self, executor: int) -> Container[int]:
        """The jobs that an executor has."""
        return self._held[executor]

    def holding(self, wanted: frozenset[int]) -> list[int]:
        """Which of these jobs any executor has; without any named, all that they have."""
        return [job for held in self._held.values() for job in (held.keys() & wanted if wanted else held)]

    def holders(self, wanted: frozenset[int]) -> list[int]:
        """The executors that have one of these jobs; without any named, those that have some."""
        return [executor for executor, held in self._held.items()
                if held and (not wanted or not wanted.isdisjoint(held))]

    def lost(self, executor: int) -> list[tuple[int, int]]:
        """An executor is no more; what it had, as (job, attempt)."""
        for key in [key for key in self._feeds if key[0] == executor]:
            # not sent yet: its leases are over all the same
            del self._feeds[key]
        held = self._held.get(executor, {})
        jobs = list(held.items())
        held.clear()
        return jobs

    def put_away(self, executor: int) -> None:
        """It has nothing any more, and whoever is there next knows nothing."""
        del self._held[executor]
        self._declared = {pair for pair in self._declared if pair[0] != executor}

    def knows(self, executor: int) -> bool:
        return executor in self._held

    def forget(self, executors: Sequence[int], groups: Sequence[int]) -> None:
        """These groups are over: nobody need know them any longer."""
        for executor in executors:
            known = tuple(group for group in groups if (executor, group) in self._declared)
            if known:
                self._declared.difference_update([(executor, group) for group in known])
                self.out.append((executor, m.Forget(known)))
        for group in groups:
            self._seconds.pop(group, None)
            self._ahead.pop(group, None)
