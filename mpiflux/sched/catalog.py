"""The job groups a scheduler has been told of, and which jobs belong to which."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from mpiflux.model.jobspec import JobGroup
from mpiflux.model.messages import Chunk, Declare, Urgency
from mpiflux.sched.urgency import Urgencies


class Catalog:
    """Groups by number, and by the ids of their jobs."""

    def __init__(self) -> None:
        self.declared: dict[int, Declare] = {}
        self._firsts: list[int] = []
        self._numbers: list[int] = []
        self._urgencies: dict[int, Urgencies] = {}

    def add(self, declare: Declare) -> None:
        group = declare.group
        if group.number in self.declared:
            return
        self.declared[group.number] = declare
        at = bisect.bisect(self._firsts, group.first_id)
        self._firsts.insert(at, group.first_id)
        self._numbers.insert(at, group.number)

    def forget(self, numbers: Sequence[int]) -> None:
        """All jobs of these groups have ended."""
        for number in numbers:
            declare = self.declared.pop(number, None)
            self._urgencies.pop(number, None)
            if declare is not None:
                at = bisect.bisect_left(self._firsts, declare.group.first_id)
                while self._numbers[at] != number:
                    # groups without jobs share the first id of the one after them
                    at += 1
                del self._firsts[at], self._numbers[at]

    def group(self, number: int) -> JobGroup:
        return self.declared[number].group

    def urge(self, message: Urgency) -> None:
        """Remember a change of urgency, unless nothing is left that it could be of."""
        if message.group in self.declared:
            self._urgencies.setdefault(message.group, Urgencies()).set(message.start, message.stop, message.urgency)

    def urged(self, number: int) -> list[Urgency]:
        """All changes of a group's urgencies, for somebody who has not heard of them."""
        changed = self._urgencies.get(number)
        count = self.group(number).count
        return [] if changed is None else [Urgency(number, start, count if stop is None else stop, value)
                                           for start, stop, value in changed.ranges()]

    def by_urgency(self, chunk: Chunk) -> list[tuple[int, Chunk]]:
        """A chunk as parts of one urgency each."""
        changed = self._urgencies.get(chunk.group)
        own = self.priority(chunk.group)
        if changed is None:
            return [(own, chunk)]
        return [(own if value is None else value, part) for value, part in changed.pieces(chunk)]

    def priority(self, number: int) -> int:
        return self.declared[number].group.priority

    def locate(self, job: int) -> tuple[JobGroup, int]:
        """The group and the index of a job id. Raises KeyError."""
        at = bisect.bisect(self._firsts, job) - 1
        if at >= 0:
            group = self.group(self._numbers[at])
            if job < group.stop_id:
                return group, job - group.first_id
        raise KeyError(job)

    def ids(self, chunk: Chunk) -> range:
        """The job ids of a chunk."""
        first = self.group(chunk.group).first_id
        return range(first + chunk.start, first + chunk.stop, chunk.step)
