"""How jobs are named in calls: by id, by what has ids, or by a list of either."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


class HasIds:
    """A job, or several: what can stand where jobs are to be named."""

    def _ranges(self) -> list[tuple[int, int]]:
        raise NotImplementedError


Ids = int | str | HasIds | Iterable[Any]


def id_ranges(jobs: Ids) -> list[tuple[int, int]]:
    """Ranges (first, stop) of ids, of jobs, or of a list of either."""
    if isinstance(jobs, int):
        return [(jobs, jobs + 1)]
    if isinstance(jobs, HasIds):
        return jobs._ranges()
    if isinstance(jobs, range) and jobs.step == 1:
        return [(jobs.start, jobs.stop)] if jobs else []
    if isinstance(jobs, str):
        raise TypeError(f"{jobs!r} is a text; name single jobs by id, and groups by name=")
    ranges: list[tuple[int, int]] = []
    for one in jobs:
        for first, stop in id_ranges(one):
            if ranges and ranges[-1][1] == first:
                ranges[-1] = (ranges[-1][0], stop)
            else:
                ranges.append((first, stop))
    return ranges


def ranges_of(ids: Sequence[int]) -> list[tuple[int, int]]:
    """Ranges of ids in any order."""
    return id_ranges(ids if isinstance(ids, range) else sorted(ids))
