"""Links that are cut for a while: what is sent over one, or is on its way, arrives once it is up again, in order.

That is what TCP makes of it, below every MPI library; a link that never comes up again loses all.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from mpiflux.sim.engine import Delay, Engine, Network


@dataclass(frozen=True)
class Cut:
    """No batch of these pairs (source rank, destination rank) arrives from ``start`` until ``end``, in seconds of
    virtual time; infinity: never again. A pair has one direction."""

    start: float
    end: float
    pairs: frozenset[tuple[int, int]]


class CutNetwork(Network):
    """A network some of whose links are cut at times that are known beforehand."""

    def __init__(self, engine: Engine, delay: Delay, cuts: Iterable[Cut]) -> None:
        super().__init__(engine, delay)
        self.cuts = tuple(cuts)
        self.held = self.dropped = 0
        """Batches that came late, and those that never came."""
        self._by_pair: dict[tuple[int, int], list[Cut]] = defaultdict(list)
        for cut in sorted(self.cuts, key=lambda cut: cut.start):
            for pair in cut.pairs:
                self._by_pair[pair].append(cut)

    def send(self, stream: Hashable, src: int, dst: int, when: float, arrive: Callable[..., None], *args: Any) -> bool:
        self.batches += 1
        due = max(when + self._delay(src, dst, when), self._last.get(stream, 0.0))
        late = False
        for cut in self._by_pair.get((src, dst), ()):
            if when < cut.end and cut.start <= due:
                late, due = True, max(due, cut.end + self._delay(src, dst, cut.end))
        self._last[stream] = due
        if due == math.inf:
            self.dropped += 1
            return False
        self.held += late
        self._engine.at(due, arrive, *args)
        return True

    def never(self, src: int, dst: int, now: float) -> bool:
        """Whether nothing will ever get through from ``src`` to ``dst`` any more."""
        return any(cut.start <= now and cut.end == math.inf for cut in self._by_pair.get((src, dst), ()))
