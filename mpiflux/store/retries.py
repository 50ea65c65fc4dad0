"""Which failures of a batch are tried again, and after how long: the rules of all groups, as NumPy columns.

:meth:`mpiflux.model.retry.Retry.wants` is the rule for one attempt; a test holds the two together. LOST attempts are
not the job's fault and no business of these rules. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mpiflux.model.jobspec import JobGroup
from mpiflux.model.records import FLAG_CRASHED
from mpiflux.model.states import Result

Array = npt.NDArray[Any]


class Retries:
    """``groups`` by number; whoever adds one to them or describes one anew says so by :meth:`note`."""

    def __init__(self, groups: Sequence[JobGroup]) -> None:
        self._groups = groups
        self.limits = np.zeros(16, "i8")
        """How often a job may be tried again, by group, with room for more groups."""
        self._choosy: set[int] = set()
        """Groups that are not tried again after every failure."""
        self._patient: set[int] = set()
        """Groups that wait before they are tried again."""

    def note(self, group: JobGroup) -> None:
        """The retries of a group from now on."""
        index = group.number
        while index >= len(self.limits):
            self.limits = np.concatenate([self.limits, np.zeros_like(self.limits)])
        self.limits[index] = group.retries
        for numbers, apt in ((self._choosy, not group.retry.every), (self._patient, group.retry.backoff > 0)):
            if group.retries and apt:
                numbers.add(index)
            else:
                numbers.discard(index)

    def wanted(self, groups: Array | int, limits: Array, used: Array, records: Array) -> Array:
        """Mask of the records of failures after which the job is tried again, by using up one retry.

        ``groups``: the records' group numbers, or the one that all have; ``limits``: those of these groups; ``used``:
        how many retries their jobs have used up. A job that never was handed out (attempt 0) has none, nor one that
        failed because it took down what ran it.
        """
        results = records["result"]
        wanted: Array = (results == Result.FAILED) | (results == Result.TIMEOUT)
        wanted &= (used < limits) & (records["attempt"] > 0)
        wanted &= (records["flags"] & FLAG_CRASHED) == 0
        if self._choosy:
            wanted &= self._apt(groups, wanted, records)
        return wanted

    def _apt(self, groups: Array | int, failed: Array, records: Array) -> Array:
        """Which of the failed attempts are of a kind that their groups want repeated."""
        apt = np.ones(len(records), bool)
        numbers = groups if isinstance(groups, np.ndarray) else np.full(len(records), groups)
        for number in self._choosy.intersection(np.unique(numbers[failed]).tolist()):
            rule = self._groups[number].retry
            mine = numbers == number
            codes, timed_out = records["returncode"], records["result"] == Result.TIMEOUT
            matches = np.zeros(len(records), bool)
            for low, high in rule.codes:
                matches |= (codes >= low) & (codes <= high)
            apt &= ~mine | np.where(timed_out, rule.timeout, matches)
        return apt

    @property
    def patient(self) -> bool:
        """Whether any group waits before it is tried again."""
        return bool(self._patient)

    def delays(self, groups: Array, used: Array) -> list[tuple[float, Array]]:
        """Jobs to be tried again after a failure, by the seconds that they are to wait: (seconds, their places).

        Parallel arrays: the jobs' group numbers, and how many retries they have used up, the coming one included.
        """
        by_delay: dict[float, list[Array]] = {}
        keys, inverse = np.unique(groups << 16 | used, return_inverse=True)
        for at, key in enumerate(keys.tolist()):
            seconds = self._groups[key >> 16].retry.delay(key & 0xFFFF)
            by_delay.setdefault(seconds, []).append(np.flatnonzero(inverse == at))
        return [(seconds, np.concatenate(parts)) for seconds, parts in by_delay.items()]
