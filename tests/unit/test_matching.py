"""Elements of an entry that are jobs of a run directory already, as a slow comparison finds them."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mpiflux.model.params import FloatColumn, LinspaceColumn, ListColumn, ParamTable, RangeColumn
from mpiflux.store.matching import chosen, match

VALUES = st.lists(st.sampled_from([1, 2, 3, 1.0, "1", "a", True, -0.5]), min_size=1, max_size=4)


def listed(table: ParamTable) -> list[tuple[object, ...]]:
    return [tuple((name, type(row[name]), row[name]) for name in sorted(row))
            for row in map(table.row, range(len(table)))]


@st.composite
def tables(draw: st.DrawFn, names: tuple[str, ...] = ("x", "y")) -> ParamTable:
    columns = tuple(ListColumn(tuple(draw(VALUES))) for _ in names)
    if draw(st.booleans()):
        n = min(map(len, columns))
        return ParamTable(names, tuple(ListColumn(column.values[:n]) for column in columns), "zip")
    return ParamTable(names, columns)


@given(st.lists(tables(), min_size=1, max_size=3), tables())
def test_it_finds_what_a_comparison_one_by_one_finds(old: list[ParamTable], new: ParamTable) -> None:
    found = match([old], [new])
    assert found is not None
    before, after = [row for table in old for row in listed(table)], listed(new)
    for rows, others, mask in ((before, after, found.kept), (after, before, found.known)):
        left, expected = Counter(others), []
        for row in rows:
            expected.append(left[row] > 0)
            left[row] -= 1
        assert mask.tolist() == expected
    added = [row for row, known in zip(after, found.known, strict=True) if not known]
    assert listed(chosen(new, np.flatnonzero(~found.known))) == added


@given(tables(("a",)), tables(("b",)))
def test_entries_that_belong_together_are_matched_together(one: ParamTable, other: ParamTable) -> None:
    n = min(len(one), len(other))
    ones, others = (chosen(table, np.arange(n)) for table in (one, other))
    longer = [ParamTable(table.names, tuple(ListColumn((*map(column.value, range(n)), "new"))
                                            for column in table.columns), "zip") for table in (ones, others)]
    found = match([[ones], [others]], longer)
    assert found is not None and found.kept.all() and found.known.tolist() == [True] * n + [False]


def test_what_cannot_be_compared() -> None:
    x, y = (ParamTable((name,), (RangeColumn(0, 1, 3),)) for name in "xy")
    assert match([[x]], [y]) is None
    assert match([[x], [y, y]], [x, y]) is None


def test_a_million_elements_are_matched_without_a_million_dictionaries() -> None:
    """More seeds for each point: none of them is where it was."""
    def table(seeds: int) -> ParamTable:
        return ParamTable(("rho", "seed"), (LinspaceColumn(0.0, 1.0, 1000), RangeColumn(0, 1, seeds)))

    found = match([[table(500)]], [table(1000)])
    assert found is not None and found.kept.all() and int(found.known.sum()) == 500_000
    more = chosen(table(1000), np.flatnonzero(~found.known))
    assert len(more) == 500_000 and isinstance(more.columns[0], FloatColumn)
    assert more.row(0) == {"rho": 0.0, "seed": 500}
