"""Parameter columns against Python's and NumPy's own answers."""

from __future__ import annotations

import itertools
from array import array

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpiflux.model.params import (
    Column,
    FloatColumn,
    IntColumn,
    LinspaceColumn,
    ListColumn,
    LogspaceColumn,
    ParamTable,
    RangeColumn,
)

reals = st.floats(-1e150, 1e150)


def values(column: Column) -> list[object]:
    return [column.value(i) for i in range(len(column))]


@given(reals, reals, st.integers(1, 50))
def test_linspace_is_numpys(start: float, stop: float, count: int) -> None:
    assert np.array(values(LinspaceColumn(start, stop, count))).tobytes() == np.linspace(start, stop, count).tobytes()


@given(st.floats(-300, 300), st.floats(-300, 300), st.integers(1, 20))
def test_logspace_is_numpys_to_the_last_bits(start: float, stop: float, count: int) -> None:
    np.testing.assert_allclose(values(LogspaceColumn(start, stop, count)), np.logspace(start, stop, count), rtol=1e-12)


@given(st.lists(st.floats(allow_nan=False), max_size=5), st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=5))
def test_stored_columns(floats: list[float], ints: list[int]) -> None:
    assert values(FloatColumn(array("d", floats).tobytes())) == floats
    assert values(IntColumn(array("q", ints).tobytes())) == ints


def test_product_varies_the_last_fastest() -> None:
    table = ParamTable(("a", "b", "c"), (RangeColumn(0, 1, 2), ListColumn(("x", "y", "z")), RangeColumn(9, -1, 2)))
    expected = [dict(zip("abc", row, strict=True)) for row in itertools.product((0, 1), "xyz", (9, 8))]
    assert [table.row(i) for i in range(len(table))] == expected
    assert list(table.row(3)) == ["a", "b", "c"]


def test_zip_pairs() -> None:
    table = ParamTable(("a", "b"), (RangeColumn(0, 2, 3), ListColumn((True, 1.5, "t"))), "zip")
    assert [table.row(i) for i in range(len(table))] == [{"a": 0, "b": True}, {"a": 2, "b": 1.5}, {"a": 4, "b": "t"}]


def test_no_column_is_one_element() -> None:
    assert len(ParamTable()) == 1
    assert ParamTable().row(0) == {}


@pytest.mark.parametrize("column", [
    RangeColumn(1, 2, 3), LinspaceColumn(0.0, 1.0, 3), LogspaceColumn(0.0, 1.0, 3), FloatColumn(b"\0" * 8),
    IntColumn(b"\1" + b"\0" * 7), ListColumn((1, 2.5, "x", True, 2.0)),
])
def test_columns_travel(column: Column) -> None:
    table = ParamTable(("p",), (column,))
    back = msgspec.msgpack.decode(msgspec.msgpack.encode(table), type=ParamTable)
    assert back == table
    assert [type(v) for v in values(back.columns[0])] == [type(v) for v in values(column)]


def test_a_billion_elements_cost_nothing() -> None:
    table = ParamTable(("a", "b"), (RangeColumn(0, 1, 10**9), LinspaceColumn(0.0, 1.0, 1000)))
    assert len(table) == 10**12
    assert table.row(10**12 - 1) == {"a": 10**9 - 1, "b": 1.0}
    assert len(msgspec.msgpack.encode(table)) < 200
