"""Which elements of an entry of the workflow file are jobs that a run directory has already: by their parameters.

Two elements are the same if all parameters have the same names and values, of the same type; of several that are the
same the first is the first one, and so on. Entries that follow each other element by element are matched together, so
that job i of one stays beside job i of the other. Values are numbered once for each column, and rows are compared as
numbers. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpiflux.model.jobspec import JobGroup
from mpiflux.model.params import Column, FloatColumn, IntColumn, ListColumn, ParamTable, Value

Array = npt.NDArray[Any]


class Match(NamedTuple):
    """Which of the new elements each of the old ones is."""

    places: Array
    """For each old element its place among the new ones; -1 where it is none of them."""
    known: Array
    """Mask over the new elements: which are there already."""

    @property
    def kept(self) -> Array:
        """Mask over the old elements: which are still wanted."""
        kept: Array = self.places >= 0
        return kept

    def paired(self) -> Match:
        """The old elements that are not wanted any more are, in order, the new ones that there were not; for as many
        old elements as new ones."""
        places = self.places.copy()
        places[places < 0] = np.flatnonzero(~self.known)
        return same(len(places))._replace(places=places)


def same(n: int) -> Match:
    """All ``n`` elements are those at their places."""
    return Match(np.arange(n), np.ones(n, bool))


def match(old: Sequence[Sequence[ParamTable]], new: Sequence[ParamTable]) -> Match | None:
    """``new`` are the tables of entries that belong together, ``old`` for each of them the tables of the groups that it
    has, one after the other. None where they cannot be compared: other names, or numbers of elements that differ."""
    n = len(new[0])
    total = sum(map(len, old[0]))
    if any(len(table) != n for table in new) or any(sum(map(len, parts)) != total for parts in old):
        return None
    codes = np.zeros(total + n, "i8")
    for parts, table in zip(old, new, strict=True):
        for name in table.names:
            if any(sorted(part.names) != sorted(table.names) for part in parts):
                return None
            numbers: dict[tuple[type, Value], int] = {}
            column = np.concatenate([_numbered(part, name, numbers) for part in (*parts, table)])
            # dense after each column: no product of a few of them can overflow
            codes = np.unique(codes * len(numbers) + column, return_inverse=True)[1].astype("i8")
    before, after = _told_apart(codes[:total]), _told_apart(codes[total:])
    most = total + n + 1
    first, second = codes[:total] * most + before, codes[total:] * most + after
    places = np.full(total, -1)
    _, at_first, at_second = np.intersect1d(first, second, assume_unique=True, return_indices=True)
    places[at_first] = at_second
    mask = np.zeros(n, bool)
    mask[at_second] = True
    return Match(places, mask)


def _numbered(table: ParamTable, name: str, numbers: dict[tuple[type, Value], int]) -> Array:
    """A column as the numbers of its values, for each element of a table."""
    at = table.names.index(name)
    column = table.columns[at]
    values = (column.value(i) for i in range(len(column)))
    own = np.fromiter((numbers.setdefault((type(value), value), len(numbers)) for value in values), "i8", len(column))
    if table.sampling == "zip":
        return own
    inner = 1
    for other in table.columns[at + 1:]:
        inner *= len(other)
    return np.tile(np.repeat(own, inner), len(table) // (inner * len(column))) if len(table) else own[:0]


def _told_apart(codes: Array) -> Array:
    """For each element, how many before it are the same."""
    order = np.argsort(codes, kind="stable")
    sorted_codes = codes[order]
    starts = np.flatnonzero(np.concatenate([np.ones(min(len(codes), 1), bool), sorted_codes[1:] != sorted_codes[:-1]]))
    lengths = np.diff(np.append(starts, len(codes)))
    out = np.empty(len(codes), "i8")
    out[order] = np.arange(len(codes)) - np.repeat(starts, lengths)
    return out


def chosen(table: ParamTable, indices: Array) -> ParamTable:
    """These elements, as a table of their own."""
    columns = []
    for at, column in enumerate(table.columns):
        if table.sampling != "zip":
            inner = 1
            for other in table.columns[at + 1:]:
                inner *= len(other)
            mine = indices // inner % len(column)
        else:
            mine = indices
        columns.append(_column([column.value(i) for i in mine.tolist()]))
    return ParamTable(table.names, tuple(columns), "zip")


def beside(table: ParamTable, places: Array, other: ParamTable) -> ParamTable:
    """The elements at ``places``; where that is -1 what ``other`` has at that index, and of parameters that it does not
    have the first value. So an element that ``other`` gets back later is known here too."""
    if not table.names:
        return table
    out = chosen(table, np.maximum(places, 0))
    columns = list(out.columns)
    for at, name in enumerate(table.names):
        if name in other.names and (places < 0).any():
            values = [columns[at].value(i) for i in range(len(places))]
            for i in np.flatnonzero(places < 0).tolist():
                values[i] = other.row(i)[name]
            columns[at] = _column(values)
    return ParamTable(out.names, tuple(columns), out.sampling)


def _column(values: list[Value]) -> Column:
    if all(type(value) is float for value in values):
        return FloatColumn(np.asarray(values, "<f8").tobytes())
    if all(type(value) is int and -1 << 63 <= value < 1 << 63 for value in values):
        return IntColumn(np.asarray(values, "<i8").tobytes())
    return ListColumn(tuple(values))


def comparable(group: JobGroup) -> bool:
    """Whether its jobs are told apart by their parameters."""
    return bool(group.params.names) and len(group.params) == group.count and not group.request.per_node


def differing(old: ParamTable, new: ParamTable) -> Array | None:
    """Mask of the elements that are not the same at their places; None where all may be: other names or numbers."""
    if len(old) != len(new) or sorted(old.names) != sorted(new.names):
        return None
    mask = np.zeros(len(new), bool)
    for name in new.names:
        numbers: dict[tuple[type, Value], int] = {}
        mask |= _numbered(old, name, numbers) != _numbered(new, name, numbers)
    return mask
