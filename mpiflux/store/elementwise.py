"""Dependencies element by element: job i of a group waits for job i of another.

What has ended and how is in the job table, so nothing is kept here for a single job: a batch of ended jobs is looked
up in the groups that follow them, as NumPy columns. Dependencies on whole groups are decided elsewhere
(:mod:`mpiflux.sched.dependencies`); :meth:`Elementwise.open` says that those are met. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mpiflux.model.jobspec import Dependency, JobGroup
from mpiflux.model.states import Result, State
from mpiflux.store.jobtable import NOBODY, Array, JobTable

EACH = "each"


@dataclass(frozen=True)
class Elements:
    """Jobs of a group that may start, or (``refused`` names the group waited for) that never can."""

    group: int
    ids: Array
    refused: str = ""
    why: str = ""
    base: int = 0
    """Index of the first job of that group."""

    def reason(self, index: int) -> str:
        """Why element ``index`` is refused."""
        return f"dependency {self.refused}[{self.base + index}]: it {self.why}"


class Elementwise:
    """Decides for single jobs. Verdicts are to be given at most once: what is told twice finds nobody waiting."""

    def __init__(self, table: JobTable, groups: Iterable[JobGroup] = ()) -> None:
        self._table = table
        self._by_name: dict[str, JobGroup] = {}
        self._followers: dict[int, list[int]] = {}
        self._rules: dict[int, list[tuple[JobGroup, Dependency]]] = {}
        """By group: whom its elements follow, and how."""
        self._open: set[int] = set()
        groups = list(groups)
        for group in groups:
            self._enter(group)
        for group in groups:
            self._connect(group)

    def _enter(self, group: JobGroup) -> None:
        if not group.submitted:
            # clients cannot ask for dependencies of elements: nobody will name it
            self._by_name.setdefault(group.name, group)

    def _connect(self, group: JobGroup) -> None:
        for dependency in group.after:
            if dependency.kind == EACH:
                other = self._named(dependency.group)
                self._rules.setdefault(group.number, []).append((other, dependency))
                followers = self._followers.setdefault(other.number, [])
                if group.number not in followers:
                    followers.append(group.number)

    def _named(self, name: str) -> JobGroup:
        return self._table.groups[int(name[1:])] if name.startswith("#") else self._by_name[name]

    def add(self, group: JobGroup) -> None:
        """A group that comes later."""
        self._enter(group)
        self._connect(group)

    def concerns(self, group: int) -> bool:
        """Whether the elements of a group are released one by one."""
        return group in self._rules

    def refuse(self, group: int) -> list[Elements]:
        """What can be refused already."""
        return self._decide(group, None) if group in self._rules else []

    def open(self, group: int) -> list[Elements]:
        """Everything else that a group waits for is met."""
        self._open.add(group)
        return self._decide(group, None)

    def ended(self, ids: Array) -> list[Elements]:
        """These jobs have ended, and the table says how."""
        touched: dict[int, list[Array]] = {}
        for leader, followers in self._followers.items():
            group = self._table.groups[leader]
            indices = ids[(ids >= group.first_id) & (ids < group.stop_id)] - group.first_id
            if len(indices):
                for follower in followers:
                    touched.setdefault(follower, []).append(indices)
        return [verdict for follower, indices in touched.items()
                for verdict in self._decide(follower, np.unique(np.concatenate(indices)))]

    def missing(self, group: JobGroup, index: int) -> list[int]:
        """The jobs that one element still waits for."""
        return [other.first_id + index for other, _ in self._rules.get(group.number, ())
                if self._table.state[other.first_id + index - 1] != State.INACTIVE]

    def waiting(self, ids: Array) -> Array:
        """Those of these jobs that have not ended and that nobody has."""
        found: Array = ids[(self._table.state[ids - 1] != State.INACTIVE) & (self._table.owner[ids - 1] == NOBODY)]
        return found

    def _decide(self, number: int, indices: Array | None) -> list[Elements]:
        """For these elements of a group (None: all) that wait."""
        group = self._table.groups[number]
        if indices is None:
            indices = np.arange(group.count)
        indices = self.waiting(indices + group.first_id) - group.first_id
        met = np.ones(len(indices), bool)
        verdicts: list[Elements] = []
        for other, dependency in self._rules[number]:
            results = self._table.result[other.first_id - 1 + indices]
            good, bad, why = _judge(dependency.on, results)
            if bad.any():
                verdicts.append(Elements(number, indices[bad] + group.first_id, other.name, why, other.base))
                indices, met, good = indices[~bad], met[~bad], good[~bad]
            met &= good
        if number in self._open and met.any():
            verdicts.append(Elements(number, indices[met] + group.first_id))
        return verdicts


def _judge(on: str, results: Array) -> tuple[Array, Array, str]:
    """Masks of what is met and what never can be, and why it cannot. ``results`` are NONE while nothing has ended."""
    over = results != Result.NONE
    completed = results == Result.COMPLETED
    if on == "any":
        return over, np.zeros(len(results), bool), ""
    if on == "not_ok":
        return over & ~completed, completed, "completed, and had to fail"
    return completed, over & ~completed, "did not complete"
