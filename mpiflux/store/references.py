"""What people call jobs, and which ids that means. Pure.

Everything here takes the groups of a run in order of their numbers; ``named`` are the same by name
(:func:`mpiflux.store.groups.by_name`).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from operator import attrgetter

from mpiflux.model import idset
from mpiflux.model.jobspec import JobGroup
from mpiflux.store.schema import RunError

_stop_id = attrgetter("stop_id")


def group_of(groups: Sequence[JobGroup], id: int) -> JobGroup:
    """The group that a job is of. Raises RunError when there is no such job."""
    at = bisect_right(groups, id, key=_stop_id)
    if id < 1 or at == len(groups):
        total = groups[-1].stop_id - 1 if groups else 0
        raise RunError(f"no job {id}: this run has jobs 1 to {total}" if total
                       else f"no job {id}: this run has no jobs")
    return groups[at]


def ids_of(groups: Sequence[JobGroup]) -> Sequence[int]:
    """The jobs of all groups of one name, ascending."""
    if groups[-1].stop_id - groups[0].first_id == sum(group.count for group in groups):
        return range(groups[0].first_id, groups[-1].stop_id)
    return [id for group in groups for id in range(group.first_id, group.stop_id)]


def resolve(ref: str | int, groups: Sequence[JobGroup], named: Mapping[str, Sequence[JobGroup]]) -> Sequence[int]:
    """The ids that a reference means: ``12``, ``sim.3``, ``sim[3]``, ``sim[3-5,9]``, or ``sim`` for all of a name.

    Where a name was submitted several times the index counts through all its jobs in order. Raises RunError when it
    means none.
    """
    text = str(ref)
    if text in named:
        return ids_of(named[text])
    if text.isdigit():
        group_of(groups, int(text))
        return (int(text),)
    match = re.fullmatch(r"(.+)\.(\d+)|(.+)\[([\d,-]+)\]", text)
    name = (match[1] or match[3]) if match else ""
    if match is None or name not in named:
        names = ", ".join(list(named)[:8]) or "none"
        raise RunError(f"no job {text!r}: give an id, a group's name ({names}), or NAME.INDEX as in sim.3")
    try:
        indices = idset.decode(match[2] or match[4])
    except ValueError as error:
        raise RunError(f"no job {text!r}: {error}") from None
    ids = ids_of(named[name])
    if indices[-1] >= len(ids):
        raise RunError(f"no job {text!r}: {name!r} has {len(ids)} jobs, from index 0")
    return tuple(ids[i] for i in indices)
