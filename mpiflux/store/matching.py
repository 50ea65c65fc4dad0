"""Which elements of an entry of the workflow file are jobs that a run directory has already: by their parameters.

Two elements are the same if all parameters have the same names and values, of the same type; of several that are the
same the first is the first one, and so on. Entries that follow each other element by element are matched together, so
that job i of one stays beside job i of the other. A million elements take about a second: values are numbered once for
each column, and rows are compared as numbers. Pure.
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
    """Masks over the old elements, which are still wanted, and over the new ones, which are there already."""

    kept: Array
    known: Array


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
    return Match(np.isin(first, second), np.isin(second, first))


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


def chosen(table: ParamTable, wanted: Array) -> ParamTable:
    """The elements of a mask, as a table of their own."""
    indices = np.flatnonzero(wanted)
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
