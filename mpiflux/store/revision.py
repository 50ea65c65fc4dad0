"""A workflow file and the groups of a run directory, brought together: what is new, changed, longer, or gone. Pure.

Groups are known by their names. The jobs of an entry keep their numbers for good, so an entry with more elements than
before has its further ones in a group of their own, of the same name, whose indices go on where the others end
(``JobGroup.base``); which elements those are, and which are not wanted any more, the parameters say
(:mod:`mpiflux.store.matching`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import numpy as np

from mpiflux.model.jobspec import Dependency, JobGroup
from mpiflux.model.params import ParamTable
from mpiflux.store.matching import Match, beside, chosen, comparable, differing, match, same

_JUDGED = {"command": "command", "script": "script", "shell": "shell", "params": "parameters", "env": "env",
           "secrets": "secrets", "cwd": "cwd", "input": "input", "output": "output", "error": "error",
           "request": "resources", "mpi": "mpi"}
"""Fields of a group on which the results of its jobs depend, and the workflow file's words for them."""
_OTHERS = {"time_limit": "time_limit", "retries": "retries", "retry": "retry_on", "priority": "priority",
           "after": "after", "begin_time": "begin_time", "begin_after": "begin_time", "duration": "duration"}
"""Those that only say when a job runs, and for how long."""


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
        return tuple(dict.fromkeys(word for field, word in fields.items() if _field(old, field) != _field(new, field)))

    return Difference(differing(_JUDGED), differing(_OTHERS), old.count != new.count)


def _field(group: JobGroup, name: str) -> object:
    """As the workflow file has it, which knows nothing of further groups."""
    if name == "after":
        return tuple(one for one in group.after if not one.group.startswith("#"))
    return getattr(group, name)


@dataclass
class Revision:
    """See the module's text."""

    groups: list[JobGroup]
    """All groups by number: those of the directory, as the file has them now, and then the new ones."""
    changed: list[tuple[JobGroup, Difference]] = field(default_factory=list)
    """Groups of the directory that are described differently, as they were. No key differs where only groups were
    added to an entry that they wait for."""
    added: list[JobGroup] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)
    """Numbers of groups that the file does not have any more."""
    replaced: dict[int, str] = field(default_factory=dict)
    """Of those, the ones whose entry is another group now, and the names that they have from now on."""
    resized: list[str] = field(default_factory=list)
    """What is in the way: entries whose jobs cannot be told to be the same, and why, in words."""
    gone: dict[int, Any] = field(default_factory=dict)
    """Ids of the jobs that are not among the elements of their entry any more, by group."""
    back: dict[int, Any] = field(default_factory=dict)
    """Ids of those that are, by group."""
    judged: dict[int, Any] = field(default_factory=dict)
    """Groups whose results may differ from what they would give now, and the ids of the jobs; None: all."""


def revise(old: Sequence[JobGroup], new: Sequence[JobGroup], *, replace: bool) -> Revision:
    """Bring the groups ``old`` of a run directory and those of the workflow file together.

    Those that were submitted while the instance ran stay as they are. An entry with another number of jobs, none of
    which can be told to be one of the old ones, is a new group in place of the old one if ``replace``, or if it is one
    job a node.
    """
    return _Revising(old, new, replace).revise()


class _Revising:
    def __init__(self, old: Sequence[JobGroup], new: Sequence[JobGroup], replace: bool) -> None:
        self.old, self.new, self.replace = old, new, replace
        self.out = Revision(list(old))
        self.names = {group.name for group in (*old, *new)}
        self.parts: dict[str, list[JobGroup]] = {}
        """The groups of each entry, in order."""
        for group in old:
            if not group.submitted:
                self.parts.setdefault(group.name, []).append(group)
        self.entries = {group.name: group for group in new}
        self.further: dict[str, list[int]] = {}
        """Numbers of an entry's groups but the first."""
        self.apart: dict[str, str] = {}
        """Entries whose jobs are in another order than those of the one that they follow from now on."""

    def revise(self) -> Revision:
        found = self._matched()
        for name, parts in self.parts.items():
            if name in found:
                self._keep(parts, self.entries[name], found[name])
            else:
                self._remove(parts, self.entries.get(name))
        leads = self._leads(found)
        for entry in self.new:
            if entry.name not in found:
                if entry.name in leads:
                    self._add_beside(entry, leads[entry.name], found)
                else:
                    self._add(entry)
        for name, match_ in found.items():
            self._lengthen(name, self.entries[name], match_)
        self._connect()
        return self.out

    # -- single entries --------------------------------------------------------------------------------------------

    def _remove(self, parts: Sequence[JobGroup], entry: JobGroup | None) -> None:
        if entry is not None and not (self.replace or entry.request.per_node):
            self.out.resized.append(self._why(parts, entry))
        for part in parts:
            name = part.name
            if entry is not None:
                name = self.out.replaced[part.number] = _old_name(part.name, self.names)
            self.out.removed.append(part.number)
            # nobody waits for it any more, and it for nobody
            self.out.groups[part.number] = msgspec.structs.replace(part, name=name, after=())

    def _why(self, parts: Sequence[JobGroup], entry: JobGroup) -> str:
        if entry.name in self.apart:
            return (f"{entry.name} goes with {self.apart[entry.name]} element by element now, but their jobs here are "
                    "not in the same order")
        return (f"{entry.name} had {sum(part.count for part in parts):,} jobs and has {entry.count:,} now, and no job "
                "has the parameters of an old one, so that none can be told to be the same")

    def _keep(self, parts: Sequence[JobGroup], entry: JobGroup, found: Match) -> None:
        """The groups that there are, as the file describes their entry now."""
        at = 0
        for part in parts:
            places = found.places[at:at + part.count]
            self.out.groups[part.number] = msgspec.structs.replace(
                entry, number=part.number, first_id=part.first_id, count=part.count, base=part.base,
                params=_params(part, entry, places))
            self._note(self.out.gone, part, places < 0)
            self._note(self.out.back, part, places >= 0)
            at += part.count
        self.further[entry.name] = [part.number for part in parts[1:]]

    @staticmethod
    def _note(where: dict[int, Any], part: JobGroup, mask: Any) -> None:
        if mask.any():
            where[part.number] = np.flatnonzero(mask) + part.first_id

    def _add(self, entry: JobGroup) -> None:
        groups = self.out.groups
        groups.append(msgspec.structs.replace(entry, number=len(groups),
                                              first_id=groups[-1].stop_id if groups else 1))
        self.out.added.append(groups[-1])

    def _add_beside(self, entry: JobGroup, lead: str, found: dict[str, Match]) -> None:
        """A new entry that follows, or is followed by, one that has jobs: its elements stand beside those."""
        at, numbers = 0, []
        for part in self.parts[lead]:
            places = found[lead].places[at:at + part.count]
            self._add(msgspec.structs.replace(entry, count=part.count, base=part.base,
                                              params=beside(entry.params, places, part.params)))
            self._note(self.out.gone, self.out.groups[-1], places < 0)
            numbers.append(self.out.groups[-1].number)
            at += part.count
        self.further[entry.name] = numbers[1:]
        found[entry.name] = found[lead]

    def _lengthen(self, name: str, entry: JobGroup, found: Match) -> None:
        """A group of the elements that are new."""
        wanted = np.flatnonzero(~found.known)
        if len(wanted):
            self._add(msgspec.structs.replace(entry, count=len(wanted), base=len(found.places),
                                              params=chosen(entry.params, wanted)))
            self.further[name].append(self.out.groups[-1].number)

    # -- which elements are the same -------------------------------------------------------------------------------

    def _matched(self) -> dict[str, Match]:
        """The entries that keep their jobs, and which elements those are.

        Those that followed each other already are compared together. Who follows another only from now on has to be in
        the same order.
        """
        out: dict[str, Match] = {}
        followed = {(group.name, one.group) for some in self.parts.values() for group in some[:1]
                    for one in group.after if one.kind == "each"}
        for names in self._together(lambda *edge: edge in followed):
            known = [name for name in names if name in self.parts]
            if known and (found := self._compare(known)) is not None:
                out.update(dict.fromkeys(known, found))
        for names in self._together(lambda *_: True):
            known = [name for name in names if name in out]
            for name in known[1:]:
                if self._order(name, out) != self._order(known[0], out):
                    self.apart[name] = known[0]
                    del out[name]
        return out

    def _order(self, name: str, found: dict[str, Match]) -> tuple[list[int], list[int]]:
        return [part.count for part in self.parts[name]], found[name].places.tolist()

    def _compare(self, names: Sequence[str]) -> Match | None:
        """None: none of their elements is there already. Where there are as many as before, those that are not take the
        places of those that are gone."""
        entries = [self.entries[name] for name in names]
        parts = [self.parts[name] for name in names]
        n, counts = entries[0].count, {tuple(part.count for part in some) for some in parts}
        if len(counts) > 1:
            return None
        if all(len(some) == 1 and some[0].count == n and some[0].params == entry.params
               for some, entry in zip(parts, entries, strict=True)):
            return same(n)
        found = None
        if all(map(comparable, (*entries, *(part for some in parts for part in some)))):
            found = match([[part.params for part in some] for some in parts], [entry.params for entry in entries])
        if sum(part.count for part in parts[0]) == n:
            return same(n) if found is None else found.paired()
        return found if found is not None and found.kept.any() else None

    def _leads(self, found: dict[str, Match]) -> dict[str, str]:
        """For entries that are new, the one beside whose jobs theirs have to stand."""
        out = {}
        for names in self._together(lambda *_: True):
            lead = next((name for name in names if name in found), None)
            if lead is not None and not (len(self.parts[lead]) == 1 and np.array_equal(
                    found[lead].places, np.arange(self.entries[lead].count))):
                out.update(dict.fromkeys((name for name in names if name not in found), lead))
        return out

    def _together(self, holds: Callable[[str, str], bool]) -> list[list[str]]:
        """Names of the entries of the file that follow each other element by element, by the edges that count."""
        sets = {name: {name} for name in self.entries}
        for entry in self.new:
            for one in entry.after:
                if one.kind == "each" and holds(entry.name, one.group) and sets[entry.name] is not sets[one.group]:
                    joined = sets[entry.name] | sets[one.group]
                    sets.update(dict.fromkeys(joined, joined))
        return [[name for name in sets if name in some] for some in {id(some): some for some in sets.values()}.values()]

    # -- who waits for whom ----------------------------------------------------------------------------------------

    def _connect(self) -> None:
        """Who waits for an entry waits for all of its groups, or element by element for the one beside it."""
        groups, out = self.out.groups, self.out
        place = {number: at for some in self.further.values() for at, number in enumerate(some)}
        for number, group in enumerate(groups):
            if group.submitted or number in out.removed:
                continue
            after: list[Dependency] = []
            for one in group.after:
                further = self.further.get(one.group, [])
                if one.kind != "each":
                    after += [one, *(msgspec.structs.replace(one, group=f"#{other}") for other in further)]
                elif number in place:
                    after.append(msgspec.structs.replace(one, group=f"#{further[place[number]]}"))
                else:
                    after.append(one)
            groups[number] = msgspec.structs.replace(group, after=tuple(after))
        added = {group.number for group in out.added}
        out.added = [groups[number] for number in sorted(added)]
        for was in self.old:
            now = groups[was.number]
            if was.submitted or was.number in out.removed:
                continue
            change = difference(was, now) if not was.base else difference(
                was, msgspec.structs.replace(now, after=was.after))
            if change.judged or change.others or now.after != was.after:
                out.changed.append((was, change))
            if change.judged:
                out.judged[was.number] = _judged(was, now, change)


def _params(part: JobGroup, entry: JobGroup, places: Any) -> ParamTable:
    """Of the jobs of a group, from the elements that they are now; as they were where that is the same."""
    if (places < 0).any() or part.params == entry.params:
        return part.params
    plain = len(places) == entry.count and np.array_equal(places, np.arange(entry.count))
    now = entry.params if plain or not comparable(entry) else chosen(entry.params, places)
    mask = differing(part.params, now)
    return now if mask is None or mask.any() else part.params


def _judged(was: JobGroup, now: JobGroup, change: Difference) -> Any:
    mask = differing(was.params, now.params) if change.judged == ("parameters",) and comparable(now) else None
    return None if mask is None else np.flatnonzero(mask) + now.first_id


def _old_name(name: str, taken: set[str]) -> str:
    """``sim~1``: no entry of a workflow file can have such a name."""
    n = 1
    while f"{name}~{n}" in taken:
        n += 1
    taken.add(f"{name}~{n}")
    return f"{name}~{n}"
