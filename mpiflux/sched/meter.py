"""Named resources of the whole instance, such as licences: counted where jobs enter the tree, so never given twice.

The root keeps them instead of dealing shares to its children: ten licences on a thousand nodes would be ten nodes that
may use one each. A job has its amounts from when it is dealt until its end is reported. It may wait for a core
meanwhile, but only as long as jobs that were dealt before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mpiflux.model.jobspec import Request
from mpiflux.model.records import PACK

Amounts = tuple[tuple[str, int], ...]


class Meter:
    """``totals`` of each name; :meth:`over` ends a round of decisions."""

    def __init__(self, totals: Mapping[str, int]) -> None:
        self.totals = dict(totals)
        self.free = dict(totals)
        self._held: dict[int, tuple[int, Amounts]] = {}
        """(attempt, what it has) of each job below that has some."""
        self._short: set[str] = set()
        """Names that somebody was refused in this round: those behind do not get them first."""

    def asked(self, request: Request) -> Amounts:
        """What a job wants of what is metered here."""
        return tuple((name, amount) for name, amount in request.consumables.items() if amount and name in self.totals)

    def room(self, asked: Amounts, jobs: int) -> int:
        """How many of ``jobs`` equal jobs may have theirs now."""
        if any(name in self._short for name, _ in asked):
            return 0
        found = min(self.free[name] // amount for name, amount in asked)
        if found < jobs:
            self._short.update(name for name, _ in asked)
        return min(found, jobs)

    def take(self, jobs: Iterable[int], attempt: int, asked: Amounts) -> None:
        for job in jobs:
            self._held[job] = attempt, asked
            for name, amount in asked:
                self.free[name] -= amount

    def give(self, jobs: Iterable[int]) -> None:
        """These jobs have theirs no longer; those that had none are passed over."""
        for job in jobs:
            _, had = self._held.pop(job, (0, ()))
            for name, amount in had:
                self.free[name] += amount

    def ended(self, records: bytes) -> None:
        """The same for attempts that ended; late records of earlier attempts take nothing from later ones."""
        if self._held and records:
            self.give([job for job, attempt, *_ in PACK.iter_unpack(records)
                       if job in self._held and self._held[job][0] == attempt])

    def over(self) -> None:
        """The round is over."""
        self._short.clear()
