"""Which groups may start, and which never can: dependencies between whole groups.

Told how many jobs of each group have ended and how, it answers with the groups to release and the groups whose
dependency can no longer be met. It keeps counts only, whatever the size of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpiflux.model.jobspec import Dependency, JobGroup


@dataclass(frozen=True)
class Release:
    """All dependencies of a group are met."""

    group: int


@dataclass(frozen=True)
class Refuse:
    """A dependency of a group can no longer be met; ``reason`` says which and why."""

    group: int
    reason: str


Verdict = Release | Refuse


class Dependencies:
    """Decides once for each group: :class:`Release` or :class:`Refuse`."""

    def __init__(self, groups: Sequence[JobGroup]) -> None:
        self._groups = {group.number: group for group in groups}
        self._by_name = {group.name: group for group in groups}
        self._waiting = set(self._groups)
        self._completed = dict.fromkeys(self._groups, 0)
        self._failed = dict.fromkeys(self._groups, 0)
        self._followers: dict[int, list[int]] = {number: [] for number in self._groups}
        for group in groups:
            for dependency in group.after:
                self._followers[self._by_name[dependency.group].number].append(group.number)

    def begin(self) -> list[Verdict]:
        """The verdicts that need nothing to have ended."""
        return self._decide(sorted(self._waiting))

    def ended(self, group: int, completed: int, not_completed: int) -> list[Verdict]:
        """Of ``group``, so many more jobs ended COMPLETED, and so many in another way."""
        self._completed[group] += completed
        self._failed[group] += not_completed
        return self._decide(self._followers[group])

    def _decide(self, candidates: list[int]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for number in candidates:
            if number not in self._waiting:
                continue
            answers = [self._met(dependency) for dependency in self._groups[number].after]
            refusals = [answer for answer in answers if isinstance(answer, str)]
            if refusals:
                verdicts.append(Refuse(number, refusals[0]))
            elif all(answers):
                verdicts.append(Release(number))
            else:
                continue
            self._waiting.discard(number)
        return verdicts

    def _met(self, dependency: Dependency) -> bool | str:
        """Whether a dependency is met; a text when it never can be."""
        group = self._by_name[dependency.group]
        completed, failed = self._completed[group.number], self._failed[group.number]
        ended = completed + failed == group.count
        if dependency.kind == "any":
            return ended
        if dependency.kind == "not_ok":
            if ended and not failed:
                return f"dependency {group.name}: all of its {group.count} jobs completed, and one had to fail"
            return ended
        if failed:
            return f"dependency {group.name}: {failed} of its {group.count} jobs did not complete"
        return ended
