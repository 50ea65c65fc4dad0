"""What ``--resume`` changed: jobs that were to run again, and groups that the workflow file described anew.

Both are steps between two instances. Records say how attempts ended and not what came between, so each step knows the
first batch of records that came after it. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from mpiflux.model.jobspec import JobGroup

RERUN, REDEFINE = "rerun", "redefine"
"""Names of the instance's events that are steps."""


class Step(NamedTuple):
    number: int
    """Of the event, in the order of all events."""
    t: float
    kind: str
    group: int
    batch: int
    """The first batch of records after it."""
    ranges: list[tuple[int, int, int]]
    """The indices that it is about, as (start, stop, step); of :data:`REDEFINE` none where it is about all."""
    was: JobGroup | None
    """Of :data:`REDEFINE`: the group before it."""
    judged: bool
    """Of :data:`REDEFINE`: results of before may differ from what the group would give now."""

    def concerns(self, index: int) -> bool:
        return any(index in range(*one) for one in self.ranges)


class History:
    """The steps of a run, in order."""

    def __init__(self, steps: Iterable[Step] = ()) -> None:
        self.steps = sorted(steps)
        self._of_group: dict[int, list[Step]] = {}
        for step in self.steps:
            self._of_group.setdefault(step.group, []).append(step)

    def reruns(self, group: JobGroup, id: int) -> list[Step]:
        """When a job was to run again although it had ended."""
        return [step for step in self._of_group.get(group.number, ())
                if step.kind == RERUN and step.concerns(id - group.first_id)]

    def group_at(self, now: JobGroup, batch: int) -> JobGroup:
        """What a group, which is ``now``, was when the records of a batch came."""
        for step in self._of_group.get(now.number, ()):
            if step.batch > batch and step.was is not None:
                return step.was
        return now

    def first(self, now: JobGroup) -> JobGroup:
        """What a group was when it was submitted."""
        return self.group_at(now, -1)

    def judged(self, group: int) -> list[Step]:
        """The steps since which results of before may differ from what the group would give."""
        return [step for step in self._of_group.get(group, ()) if step.judged]
