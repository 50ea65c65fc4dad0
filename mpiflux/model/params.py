"""Parameter columns: the values that tell the elements of a job group apart.

A column knows its value at any position without holding a list where a formula will do, so the columns of a
million-job product travel as a few numbers. Needs no NumPy: it runs where jobs start.
"""

from __future__ import annotations

import msgspec

Value = int | float | str | bool


class RangeColumn(msgspec.Struct, frozen=True, tag="range"):
    """``start, start + step, …``, ``count`` integers."""

    start: int
    step: int
    count: int

    def __len__(self) -> int:
        return self.count

    def value(self, i: int) -> Value:
        return self.start + self.step * i


class LinspaceColumn(msgspec.Struct, frozen=True, tag="linspace"):
    """``count`` evenly spaced floats from ``start`` to ``stop`` inclusive, bit for bit as NumPy's linspace."""

    start: float
    stop: float
    count: int

    def __len__(self) -> int:
        return self.count

    def value(self, i: int) -> Value:
        if self.count > 1 and i == self.count - 1:
            return self.stop
        if self.count == 1:
            return self.start
        return i * ((self.stop - self.start) / (self.count - 1)) + self.start


class FloatColumn(msgspec.Struct, frozen=True, tag="floats"):
    """Little-endian float64 values, as bytes: random designs of any length."""

    data: bytes

    def __len__(self) -> int:
        return len(self.data) // 8

    def value(self, i: int) -> Value:
        return float(memoryview(self.data).cast("d")[i])


class ListColumn(msgspec.Struct, frozen=True, tag="list"):
    """Values as they stand in the file."""

    values: tuple[Value, ...]

    def __len__(self) -> int:
        return len(self.values)

    def value(self, i: int) -> Value:
        return self.values[i]


Column = RangeColumn | LinspaceColumn | FloatColumn | ListColumn


class ParamTable(msgspec.Struct, frozen=True):
    """Named columns and how they combine: ``product`` (the last varies fastest) or ``zip``."""

    names: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    sampling: str = "product"

    def __len__(self) -> int:
        """Number of elements: the product of the lengths, or their common length; 1 with no column."""
        if not self.columns:
            return 1
        if self.sampling == "zip":
            return len(self.columns[0])
        total = 1
        for column in self.columns:
            total *= len(column)
        return total

    def row(self, index: int) -> dict[str, Value]:
        """The parameter values of element ``index``."""
        if self.sampling == "zip":
            return {name: column.value(index) for name, column in zip(self.names, self.columns)}
        values: list[Value] = []
        for column in reversed(self.columns):
            index, i = divmod(index, len(column))
            values.append(column.value(i))
        return dict(zip(self.names, reversed(values)))
