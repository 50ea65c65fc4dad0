"""Which groups may start, and which never can: dependencies on whole groups and on single jobs, ended ones too.

Told how many jobs of each group have ended and how, it answers with the groups to release and the groups whose
dependency can no longer be met. Of a group it keeps counts only, whatever its size; of single jobs, those that
somebody still waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from mpiflux.model.jobspec import Dependency, JobGroup
from mpiflux.model.states import Result

EACH = "each"
"""Kind of a dependency that is decided for each element, and not here."""
BEGIN = "begin"
"""Kind of a dependency on the time: see :meth:`Dependencies.begun`."""
HOLD = "hold"
"""Kind of a dependency on nothing but somebody's word: see :meth:`Dependencies.hold`."""

Outcome = Callable[[int], int]
"""The result of a job by id; Result.NONE while it has not ended."""
Past = Callable[[str], tuple[JobGroup, int, int]]
"""A group that is over and was dropped, by a dependency's name for it; how many of its jobs completed and did not."""


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


class _Single:
    """A dependency on jobs given by ids: what is still to come, and what went wrong so far."""

    __slots__ = ("failed", "failing", "follower", "left", "total")

    def __init__(self, follower: int, total: int) -> None:
        self.follower, self.total, self.left = follower, total, 0
        self.failed = 0
        self.failing = 0
        """The first job that did not complete."""

    def count(self, job: int, result: int) -> None:
        if result != Result.COMPLETED:
            self.failed += 1
            self.failing = self.failing or job


class Dependencies:
    """Decides once for each group: :class:`Release` or :class:`Refuse`. ``outcome`` is asked for single jobs."""

    def __init__(self, groups: Sequence[JobGroup], outcome: Outcome = lambda job: Result.NONE,
                 past: Past | None = None) -> None:
        self._outcome, self._past = outcome, past
        self._groups: dict[int, JobGroup] = {}
        self._by_name: dict[str, JobGroup] = {}
        self._waiting: set[int] = set()
        self._held: set[int] = set()
        self._early: set[int] = set()
        """Groups whose time has not come."""
        self._completed: dict[int, int] = {}
        self._failed: dict[int, int] = {}
        self._followers: dict[int, list[int]] = {}
        self._singles: dict[int, list[_Single]] = {}
        """By group: one for each of its dependencies that has ids."""
        self._by_job: dict[int, list[_Single]] = {}
        for group in groups:
            self._enter(group)
        for group in groups:
            self._connect(group)

    def _enter(self, group: JobGroup) -> None:
        self._groups[group.number] = group
        if not group.submitted:
            self._by_name.setdefault(group.name, group)
        self._waiting.add(group.number)
        self._completed[group.number] = self._failed[group.number] = 0

    def _connect(self, group: JobGroup) -> None:
        for dependency in group.after:
            if dependency.kind in (HOLD, EACH, BEGIN):
                if dependency.kind == BEGIN:
                    self._early.add(group.number)
                continue
            if dependency.ids:
                self._singles.setdefault(group.number, []).append(self._single(group.number, dependency))
            else:
                self._followers.setdefault(self.group(dependency.group).number, []).append(group.number)

    def _single(self, follower: int, dependency: Dependency) -> _Single:
        single = _Single(follower, len(dependency.ids))
        for job in dependency.ids:
            result = self._outcome(job)
            if result == Result.NONE:
                single.left += 1
                self._by_job.setdefault(job, []).append(single)
            else:
                single.count(job, result)
        return single

    def begin(self) -> list[Verdict]:
        """The verdicts that need nothing to have ended."""
        return self._decide(sorted(self._waiting))

    def add(self, group: JobGroup, *, held: bool = False) -> list[Verdict]:
        """A group that comes later; ``held``: not to be released before :meth:`hold` says so."""
        self._enter(group)
        self._connect(group)
        if held:
            self._held.add(group.number)
        return self._decide([group.number])

    def hold(self, group: int, held: bool) -> list[Verdict]:
        """Keep a group back that waits, or let it go."""
        if held:
            if group in self._waiting:
                self._held.add(group)
            return []
        self._held.discard(group)
        return self._decide([group])

    def begun(self, group: int) -> list[Verdict]:
        """The time has come before which a group may not start."""
        self._early.discard(group)
        return self._decide([group])

    def is_early(self, group: int) -> bool:
        return group in self._early

    def is_waiting(self, group: int) -> bool:
        """Whether nothing has been decided about a group."""
        return group in self._waiting

    def group(self, name: str) -> JobGroup:
        """The group that a dependency names: by its name in the workflow file, or by ``#number``."""
        return self._counted(name)[0]

    def _counted(self, name: str) -> tuple[JobGroup, int, int]:
        """The group, and how many of its jobs completed and did not."""
        group = self._by_name.get(name)
        if group is None and name.startswith("#"):
            group = self._groups.get(int(name[1:]))
        if group is None:
            assert self._past is not None, name
            return self._past(name)
        return group, self._completed[group.number], self._failed[group.number]

    def drop(self, number: int) -> None:
        """Keep nothing of a submitted group all of whose jobs have ended; ``past`` tells of it from now on."""
        if number not in self._waiting and self._groups.pop(number, None) is not None:
            del self._completed[number], self._failed[number]
            self._followers.pop(number, None)
            self._early.discard(number)

    def is_held(self, group: int) -> bool:
        return group in self._held

    def forget(self, group: int) -> None:
        """All jobs of a waiting group have ended otherwise."""
        self._waiting.discard(group)
        self._held.discard(group)

    def ended(self, group: int, completed: int, not_completed: int) -> list[Verdict]:
        """Of ``group``, so many more jobs ended COMPLETED, and so many in another way."""
        self._completed[group] += completed
        self._failed[group] += not_completed
        return self._decide(self._followers.get(group, ()))

    @property
    def wants_jobs(self) -> bool:
        """Whether anybody waits for single jobs: only then :meth:`jobs_ended` has to be called."""
        return bool(self._by_job)

    def jobs_ended(self, jobs: Iterable[tuple[int, int]]) -> list[Verdict]:
        """These jobs ended: (id, result)."""
        touched: dict[int, None] = {}
        for job, result in jobs:
            for single in self._by_job.pop(job, ()):
                single.left -= 1
                single.count(job, result)
                touched[single.follower] = None
        return self._decide(touched)

    def _decide(self, candidates: Iterable[int]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for number in candidates:
            if number not in self._waiting:
                continue
            singles = iter(self._singles.get(number, ()))
            answers = [_met_by(dependency, next(singles)) if dependency.ids else self._met(dependency)
                       for dependency in self._groups[number].after]
            refusals = [answer for answer in answers if isinstance(answer, str)]
            if refusals:
                verdicts.append(Refuse(number, refusals[0]))
            elif all(answers) and number not in self._held and number not in self._early:
                verdicts.append(Release(number))
            else:
                continue
            self.forget(number)
            self._singles.pop(number, None)
        return verdicts

    def _met(self, dependency: Dependency) -> bool | str:
        """Whether a dependency on a group is met; a text when it never can be."""
        if dependency.kind in (HOLD, EACH, BEGIN):
            return True
        group, completed, failed = self._counted(dependency.group)
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


def _met_by(dependency: Dependency, single: _Single) -> bool | str:
    """The same for a dependency on single jobs."""
    ended = not single.left
    if dependency.kind == "any":
        return ended
    if dependency.kind == "not_ok":
        if ended and not single.failed:
            return f"dependency on job {dependency.ids[0]}: it completed, and had to fail" if single.total == 1 else (
                f"dependency on {single.total} jobs: all completed, and one had to fail")
        return ended
    if single.failed:
        return f"dependency: job {single.failing} did not complete"
    return ended
