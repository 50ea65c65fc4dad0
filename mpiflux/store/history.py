"""What ``--resume`` changed: jobs that were to run again, and groups that the workflow file described anew.

Both are steps between two instances. Records say how attempts ended and not what came between, so each step knows the
first batch of records that came after it. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from mpiflux.model.jobspec import JobGroup

RERUN, REDEFINE = "rerun", "redefine"
"""Names of the instance's events that are steps."""

_JUDGED = {"command": "command", "script": "script", "shell": "shell", "params": "parameters", "env": "env",
           "secrets": "secrets", "cwd": "cwd", "input": "input", "output": "output", "error": "error",
           "request": "resources", "mpi": "mpi"}
"""Fields of a group on which the results of its jobs depend, and the workflow file's words for them."""
_OTHERS = {"time_limit": "time_limit", "retries": "retries", "retry": "retry_on", "priority": "priority",
           "after": "after", "begin_time": "begin_time", "begin_after": "begin_time", "duration": "duration"}
"""Those that only say when a job runs, and for how long."""


class Step(NamedTuple):
    number: int
    """Of the event, in the order of all events."""
    t: float
    kind: str
    group: int
    batch: int
    """The first batch of records after it."""
    ranges: list[tuple[int, int, int]]
    """Of :data:`RERUN`: the indices, as (start, stop, step)."""
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

    def judged_at(self, group: int) -> int:
        """The batch from which on a group's results are of what it is now; 0: all are."""
        return max((step.batch for step in self._of_group.get(group, ()) if step.judged), default=0)


class Difference(NamedTuple):
    """How an entry of the workflow file differs from the group of the same name in the run directory."""

    judged: tuple[str, ...]
    """Keys on which results depend."""
    others: tuple[str, ...]
    resized: bool
    """It has another number of jobs."""


def difference(old: JobGroup, new: JobGroup) -> Difference:
    """Keys that differ, in the words of the workflow file."""
    def differing(fields: dict[str, str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(word for field, word in fields.items()
                                   if getattr(old, field) != getattr(new, field)))

    return Difference(differing(_JUDGED), differing(_OTHERS), old.count != new.count)


class Revision(NamedTuple):
    """A workflow file and the groups of a run directory, brought together."""

    groups: list[JobGroup]
    """All groups by number: those of the directory, as the file has them now, and then the file's new ones."""
    changed: list[tuple[JobGroup, Difference]]
    """Groups of the directory that the file describes differently, as they were."""
    added: list[JobGroup]
    removed: list[int]
    """Numbers of groups that the file does not have any more."""
    replaced: dict[int, str]
    """Of those, the ones whose entry is another group now, and the names that they have from now on."""
    resized: list[str]
    """What is in the way: entries whose number of jobs differs, in words."""


def revise(old: Sequence[JobGroup], new: Sequence[JobGroup], *, replace: bool) -> Revision:
    """Bring the groups ``old`` of a run directory and those of the workflow file together.

    Groups are known by their names; those that were submitted while the instance ran stay as they are. An entry with
    another number of jobs is a new group in place of the old one if ``replace``, or if it is one job a node.
    """
    found = {group.name: group for group in new}
    groups = list(old)
    resized: list[str] = []
    out = Revision(groups, [], [], [], {}, resized)
    names = {group.name for group in (*old, *new)}
    for group in old:
        if group.submitted:
            continue
        entry = found.get(group.name)
        change = difference(group, entry) if entry is not None else None
        if entry is None or (change is not None and change.resized):
            if entry is not None and not (replace or entry.request.per_node):
                resized.append(f"{group.name} had {group.count:,} jobs and has {entry.count:,} now")
            name = group.name if entry is None else _old_name(group.name, names)
            out.removed.append(group.number)
            if entry is not None:
                out.replaced[group.number] = name
            # nobody waits for it any more, and it for nobody
            groups[group.number] = msgspec.structs.replace(group, name=name, after=())
            continue
        del found[group.name]
        if change is not None and (change.judged or change.others):
            out.changed.append((group, change))
        groups[group.number] = msgspec.structs.replace(entry, number=group.number, first_id=group.first_id)
    for entry in found.values():
        first_id = groups[-1].stop_id if groups else 1
        groups.append(msgspec.structs.replace(entry, number=len(groups), first_id=first_id))
        out.added.append(groups[-1])
    return out


def _old_name(name: str, taken: set[str]) -> str:
    """``sim~1``: no entry of a workflow file can have such a name."""
    n = 1
    while f"{name}~{n}" in taken:
        n += 1
    taken.add(f"{name}~{n}")
    return f"{name}~{n}"

