"""The endpoints at which a scheduler has jobs tried alone (:mod:`mpiflux.model.apart`): one job each at any time.

Pure.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import count

from mpiflux.model.apart import apart, executor_of


class Aparts:
    """Those of scheduler ``number`` that have a job now."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._taken: dict[int, None] = {}

    def take(self, executor: int) -> int:
        """A free one beside an executor."""
        endpoint = next(one for place in count() if (one := apart(self._number, executor, place)) not in self._taken)
        self._taken[endpoint] = None
        return endpoint

    def give_back(self, endpoint: int) -> bool:
        """It has no job any more; False for an endpoint that is none of these."""
        if endpoint not in self._taken:
            return False
        del self._taken[endpoint]
        return True

    def beside(self, executors: Collection[int]) -> list[int]:
        """Those beside one of these executors."""
        return [one for one in self._taken if executor_of(one) in executors]

    def all(self) -> tuple[int, ...]:
        return tuple(self._taken)

    def __contains__(self, endpoint: int) -> bool:
        return endpoint in self._taken
