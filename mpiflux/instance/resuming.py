"""Rank 0 takes over a run that an earlier instance left: what the workflow file changed, what is to run again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
import numpy as np

from mpiflux.instance.options import RunError, RunOptions
from mpiflux.instance.vault import missing, unset
from mpiflux.model.jobspec import JobGroup, Workflow
from mpiflux.model.records import FLAG_REASON
from mpiflux.model.states import Result, State
from mpiflux.store import history
from mpiflux.store import reader as store_reader
from mpiflux.store.jobtable import JobTable
from mpiflux.store.journal import Journal
from mpiflux.store.progressions import progressions
from mpiflux.store.reader import RunReader
from mpiflux.store.resume import Early, Resumed, chosen, early, outdated, resume, with_dependants
from mpiflux.store.revision import Revision, revise

GONE = "not in the workflow file any more"
"""Why jobs of a removed entry are cancelled."""


@dataclass
class TakenUp:
    """What a new instance starts from, journaled. ``workflow`` has every group of the table."""

    resumed: Resumed
    workflow: Workflow
    removed: tuple[int, ...] = ()
    """Groups that are not in the workflow file any more."""
    gone: Mapping[int, Any] = field(default_factory=dict)
    """Ids of the jobs of other groups that are not, by group."""
    notes: list[str] = field(default_factory=list)
    """What a person should hear of."""

    @property
    def table(self) -> JobTable:
        return self.resumed.table


class Found(NamedTuple):
    """What an instance finds that goes on with a run."""

    resumed: Resumed
    revision: Revision
    wanted: Any
    """Ids of the ended jobs that are to run again."""
    notes: list[str]


def take_up(options: RunOptions, workflow: Workflow, journal: Journal, run_dir: str, now: float) -> TakenUp:
    """Go on with the run that ``run_dir`` holds.

    Raises RunError, with nothing changed, when ``workflow`` is another one altogether or has an entry of another
    number of jobs, or when ``--rerun`` names nothing.
    """
    resumed, revision, wanted, notes = _look(options, workflow, run_dir, now)
    with journal.together():
        _carry_out(journal, resumed, revision, wanted, now)
        _end(journal, resumed, revision, now)
    return TakenUp(resumed, msgspec.structs.replace(workflow, groups=tuple(_prefix(revision.groups))),
                   tuple(revision.removed), revision.gone, notes)


def foresee(options: RunOptions, workflow: Workflow, now: float) -> list[str]:
    """What :func:`take_up` would say of ``--run-dir``, which it only reads. Raises RunError as that does."""
    run_dir = os.path.abspath(options.run_dir or "")
    if not options.run_dir or not os.path.exists(os.path.join(run_dir, "run.db")):
        return []
    found = _look(options, workflow, run_dir, now)
    counts = found.resumed.table.counts()
    left = counts.total - counts.inactive + sum(
        group.count - len(found.revision.gone.get(group.number, ())) for group in found.revision.added)
    return [*found.notes, f"{_jobs(counts.inactive - len(found.wanted))} stay as they are, {_jobs(left)} had not ended"]


def _look(options: RunOptions, workflow: Workflow, run_dir: str, now: float) -> Found:
    try:
        with store_reader.open_run(run_dir) as reader:
            wanted = chosen(reader, options.rerun) if options.rerun else np.zeros(0, "i8")
            revision = revise(reader.groups, workflow.groups, replace=options.rerun_changed)
            _check_revision(workflow, reader, revision, run_dir)
            old = outdated(reader, revision.judged)
            ahead = early(reader, revision.groups, revision.gone)
            wanted = np.union1d(wanted, _back(reader, revision))
            if options.rerun_changed:
                wanted = np.union1d(wanted, np.concatenate([old, *(one.ids for one in ahead)]))
            wanted = wanted[~_of(wanted, revision.groups, revision.removed)]
            wanted = np.setdiff1d(wanted, _all(revision.gone))
            if options.rerun or options.rerun_changed:
                wanted = with_dependants(reader, revision.groups, wanted)
            notes = [*_notes(reader, revision, old, wanted), *_ahead(reader.groups, ahead, wanted)]
            if options.rerun and not len(wanted):
                notes.append(f"--rerun {','.join(options.rerun)}: no job of this run has ended so")
            if len(wanted):
                notes += _counted(revision.groups, wanted)
            return Found(resume(reader, now), revision, wanted, notes)
    except store_reader.RunError as error:
        raise RunError(str(error)) from None


def _check_revision(workflow: Workflow, reader: RunReader, revision: Revision, run_dir: str) -> None:
    old = reader.groups
    unfinished = {group.number for group in old if group.secrets and not reader.table.is_over(group.number)}
    of_file = [group for group in old if not group.submitted]
    if of_file and len(revision.removed) - len(revision.replaced) == len(of_file):
        names = ", ".join(group.name for group in of_file[:5])
        raise RunError(f"{workflow.source or 'this'} is not the workflow that {run_dir} holds, which has {names}: "
                       "start a new run in another --run-dir")
    lacking = missing((name for group in old if group.submitted and group.number in unfinished
                       for name in group.secrets), os.environ)
    if lacking:
        raise RunError(f"{run_dir}: {unset(lacking)}; jobs that were submitted with them have not ended")
    if revision.resized:
        raise RunError(f"{workflow.source}: {'; '.join(revision.resized)}. With --rerun-changed all jobs of such an "
                       "entry run, and the old ones stay under another name; or make the additional ones another entry")


def _prefix(groups: Sequence[JobGroup]) -> Sequence[JobGroup]:
    """Without the submitted groups at the end, which the table has."""
    n = len(groups)
    while n and groups[n - 1].submitted:
        n -= 1
    return groups[:n]


def _of(ids: Any, groups: Sequence[JobGroup], numbers: Sequence[int]) -> Any:
    """Mask of the jobs that are of these groups."""
    mask = np.zeros(len(ids), bool)
    for number in numbers:
        mask |= (ids >= groups[number].first_id) & (ids < groups[number].stop_id)
    return mask


def _carry_out(journal: Journal, resumed: Resumed, revision: Revision, wanted: Any, now: float) -> None:
    table, batch = resumed.table, journal.next_batch
    for was, change in revision.changed:
        group = revision.groups[was.number]
        told = {"group": was.number, "what": [*change.judged, *change.others], "batch": batch,
                "judged": bool(change.judged), "was": msgspec.msgpack.encode(was)}
        if (ids := revision.judged.get(was.number)) is not None:
            told["ranges"] = progressions(ids - was.first_id)
        journal.append_event(0, now, history.REDEFINE, told)
        journal.append_group(group, resumed.t_submit[was.number])
        table.redefine(group)
    for number, name in revision.replaced.items():
        # its dependencies stay in the directory: that is what its jobs were
        group = msgspec.structs.replace(resumed.groups[number], name=name)
        journal.append_group(group, resumed.t_submit[number])
        table.redefine(group)
    for group in revision.added:
        table.add_group(group)
        journal.append_group(group, now)
        resumed.t_submit.append(now)
    for group, mine in _by_group(revision.groups, wanted):
        journal.append_event(0, now, history.RERUN, {
            "group": group.number, "batch": batch, "ranges": progressions(mine - group.first_id)})
    table.rerun(wanted)


def _end(journal: Journal, resumed: Resumed, revision: Revision, now: float) -> None:
    """Attempts that died with the last instance, and the jobs of removed entries."""
    table = resumed.table
    if len(resumed.lost):
        table.apply(resumed.lost, *journal.append_results(resumed.lost.tobytes(), b"", resumed.reasons))
    for ids in (*(np.arange(revision.groups[number].first_id, revision.groups[number].stop_id)
                  for number in revision.removed), *revision.gone.values()):
        records = table.synthesize(ids, Result.CANCELED, now)
        if len(records):
            records["flags"] |= FLAG_REASON
            place = journal.append_results(records.tobytes(), b"", dict.fromkeys(records["id"].tolist(), GONE))
            table.apply(records, *place)


def _notes(reader: RunReader, revision: Revision, old: Any, wanted: Any) -> list[str]:
    """What the workflow file changed, a line for each entry and kind of change."""
    entries: dict[str, list[JobGroup]] = {}
    for group in reader.groups:
        # of what was replaced at an earlier resumption nothing can change
        if not group.submitted and "~" not in group.name:
            entries.setdefault(group.name, []).append(group)
    outdated_of = {group.number: len(mine) for group, mine in _by_group(reader.groups, np.setdiff1d(old, wanted))}
    notes = []
    for name, parts in entries.items():
        gone = [revision.gone[part.number] for part in parts if part.number in revision.gone]
        if gone:
            notes.append(_gone(reader, name, np.concatenate(gone)))
        if parts[0].number in revision.removed:
            notes.append(_removed(reader, name, parts, revision.replaced))
        else:
            notes += _changed(name, parts, revision, sum(outdated_of.get(part.number, 0) for part in parts))
    renewed = {reader.groups[number].name for number in revision.replaced}
    for name in dict.fromkeys(group.name for group in revision.added if group.name not in renewed):
        added = [group for group in revision.added if group.name == name]
        count = sum(group.count - len(revision.gone.get(group.number, ())) for group in added)
        notes.append(f"{name}: {_jobs(count)} more in the workflow file, from {name}[{added[0].base}] on"
                     if name in entries else f"{name}: new in the workflow file, {_jobs(count)}")
    return notes


def _changed(name: str, parts: Sequence[JobGroup], revision: Revision, kept: int) -> list[str]:
    numbers = {part.number for part in parts}
    what = ", ".join(dict.fromkeys(word for was, change in revision.changed if was.number in numbers
                                   for word in (*change.judged, *change.others)))
    if kept:
        total = sum(part.count for part in parts)
        return [f"{name}: {what or 'it'} changed since {kept:,} of its {_jobs(total)} ended, "
                "which keep their results; --rerun-changed runs them again"]
    return [f"{name}: {what} changed; that holds for what runs from now on"] if what else []


def _ahead(groups: Sequence[JobGroup], found: Sequence[Early], wanted: Any) -> list[str]:
    """Who ended before further jobs that it waits for, and does not run again."""
    notes = []
    for one in found:
        group, kept = groups[one.group], len(np.setdiff1d(one.ids, wanted))
        if kept:
            who = group.name if group.count == 1 else f"{kept:,} of the {_jobs(group.count)} of {group.name}"
            notes.append(f"{who} ended before {one.further:,} more job{'s' * (one.further != 1)} of {one.entry}, which "
                         f"{'it waits' if kept == 1 else 'they wait'} for: --rerun {group.name}, or --rerun-changed, "
                         f"runs {'it' if kept == 1 else 'them'} again")
    return notes


def _removed(reader: RunReader, name: str, parts: Sequence[JobGroup], replaced: Mapping[int, str]) -> str:
    counts = [reader.table.group_counts(part.number) for part in parts]
    total, over = sum(one.total for one in counts), sum(one.inactive for one in counts)
    if parts[0].number in replaced:
        return f"{name}: all its jobs run, and what was is kept as {', '.join(replaced[part.number] for part in parts)}"
    left = total - over
    ended = f"what ended ({over:,} of {_jobs(total)}) is kept" if over else ""
    canceled = f"{_jobs(left)} not run" if left else ""
    return f"{name}: {GONE}; {', '.join(filter(None, (ended, canceled)))}"


def _gone(reader: RunReader, name: str, ids: Any) -> str:
    left = int(np.count_nonzero(reader.table.state[ids - 1] != State.INACTIVE))
    ended = len(ids) - left
    what = [f"{_jobs(ended)} that ended stay{'s' * (ended == 1)}"] if ended else []
    what += [f"{_jobs(left)} not run"] if left else []
    return f"{name}: {_jobs(len(ids))} {'are' if len(ids) > 1 else 'is'} {GONE}; {', '.join(what)}"


def _back(reader: RunReader, revision: Revision) -> Any:
    """Ids of jobs that were cancelled because the workflow file did not have them, and that it has again."""
    ids = _all(revision.back)
    ids = ids[reader.table.result[ids - 1] == Result.CANCELED]
    return np.array([job["id"] for job in reader.jobs(ids=ids.tolist()) if job["reason"] == GONE], "i8")


def _all(by_group: Mapping[int, Any]) -> Any:
    return np.concatenate([np.zeros(0, "i8"), *by_group.values()])


def _by_group(groups: Sequence[JobGroup], ids: Any) -> Iterator[tuple[JobGroup, Any]]:
    """Ascending ids, parted by the groups that they are of."""
    firsts = np.fromiter((group.first_id for group in groups), "i8", len(groups))
    numbers = np.searchsorted(firsts, ids, "right") - 1
    bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(ids)] if len(ids) else []
    for low, high in pairwise(bounds):
        yield groups[int(numbers[low])], ids[low:high]


def _counted(groups: Sequence[JobGroup], ids: Any) -> list[str]:
    counts: dict[str, int] = {}
    for group, mine in _by_group(groups, ids):
        counts[group.name] = counts.get(group.name, 0) + len(mine)
    parts = [f"{count:,} of {name}" for name, count in counts.items()]
    more = f" and {len(parts) - 8} more entries" if len(parts) > 8 else ""
    return [f"{_jobs(len(ids))} to be run again: {', '.join(parts[:8])}{more}"]


def _jobs(n: int) -> str:
    return f"{n:,} job{'s' * (n != 1)}"
