"""Jobs that end with whoever submitted them: those of an executor whose program was killed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mpiflux.instance.broker import Handler, RequestError, Session
from mpiflux.instance.broker_messages import GRACE, check_name
from mpiflux.model import requests as r
from mpiflux.model.states import State
from mpiflux.store.jobtable import JobTable

WHY = "the program that submitted it has gone"
_PRUNE = 1024


class _Tie:
    """What one name has."""

    __slots__ = ("holders", "prune_at", "ranges", "until")

    def __init__(self) -> None:
        self.holders = 0
        self.ranges: list[tuple[int, int]] = []
        """Jobs (first, stop), in order; some of those that have ended are dropped."""
        self.prune_at = _PRUNE
        self.until = 0.0
        """When its jobs are cancelled, where nobody holds it; 0 until that is known."""


class Ties:
    """Implements :class:`mpiflux.instance.broker.DeskPart`. ``cancel`` ends jobs by their ids, for a reason."""

    def __init__(self, table: JobTable, cancel: Callable[[Any, str], int]) -> None:
        self._table, self._cancel = table, cancel
        self._ties: dict[str, _Tie] = {}

    def handlers(self) -> Mapping[type, Handler]:
        return {r.Tie: self._tie}

    def _tie(self, session: Session, number: int, op: r.Tie) -> None:
        check_name(op.name, "tie")
        tie = self._ties.get(op.name) or _Tie()

        def end() -> None:
            tie.holders -= 1
            tie.until = 0.0

        session.subscribe(op.sub, end)
        tie.holders += 1
        self._ties[op.name] = tie

    def check(self, name: str) -> None:
        """Raises RequestError unless somebody has this tie, or had it a moment ago."""
        if name and name not in self._ties:
            raise RequestError("request", f"nobody has the tie {name[:60]!r}: subscribe to it before you submit")

    def add(self, name: str, first: int, stop: int) -> None:
        """These jobs are newer than all others."""
        tie = self._ties[name]
        if tie.ranges and tie.ranges[-1][1] == first:
            tie.ranges[-1] = tie.ranges[-1][0], stop
            return
        tie.ranges.append((first, stop))
        if len(tie.ranges) > tie.prune_at:
            tie.ranges = [one for one in tie.ranges if len(self._alive([one]))]
            tie.prune_at = 2 * len(tie.ranges) + _PRUNE

    def _alive(self, ranges: list[tuple[int, int]]) -> Any:
        """Ids of those that have not ended."""
        parts = [first + np.flatnonzero(self._table.state[first - 1:stop - 1] != State.INACTIVE)
                 for first, stop in ranges]
        return np.concatenate(parts) if parts else np.zeros(0, "i8")

    def turn(self, now: float) -> None:
        for name, tie in list(self._ties.items()):
            if tie.holders:
                continue
            if not tie.until:
                tie.until = now + GRACE
            elif now >= tie.until:
                del self._ties[name]
                left = self._alive(tie.ranges)
                if len(left):
                    self._cancel(left, WHY)
