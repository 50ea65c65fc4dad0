"""Parameter columns: the values that tell the elements of a job group apart.

A column knows its value at any position without holding a list where a formula will do, so the columns of a
million-job product travel as a few numbers. Needs no NumPy: it runs where jobs start.
"""

from __future__ import annotations

import struct

import msgspec

Value = int | float | str | bool

_FLOAT = struct.Struct("<d")
_INT = struct.Struct("<q")


class RangeColumn(msgspec.Struct, frozen=True, tag="range"):
    """``start, start + step, …``, ``count`` integers."""

    start: int
    step: int
    count: int

    def __len__(self) -> int:
        return self.count

    def value(self, i: int) -> Value:
        return self.start + self.step * i


def _evenly(start: float, stop: float, count: int, i: int) -> float:
    """Element ``i`` of ``count`` evenly spaced floats, rounded as ``numpy.linspace`` rounds."""
    if count == 1:
        return start
    if i == count - 1:
        return stop
    step = (stop - start) / (count - 1)
    if step == 0.0:  # equal ends, or a distance too small to divide: NumPy multiplies last
        return i / (count - 1) * (stop - start) + start
    return i * step + start


class LinspaceColumn(msgspec.Struct, frozen=True, tag="linspace"):
    """``count`` evenly spaced floats, ``start`` to ``stop`` inclusive, bit for bit as NumPy's linspace."""

    start: float
    stop: float
    count: int

    def __len__(self) -> int:
        return self.count

    def value(self, i: int) -> Value:
        return _evenly(self.start, self.stop, self.count, i)


class LogspaceColumn(msgspec.Struct, frozen=True, tag="logspace"):
    """10 to the power of each of ``count`` evenly spaced exponents from ``start`` to ``stop`` inclusive."""

    start: float
    stop: float
    count: int

    def __len__(self) -> int:
        return self.count

    def value(self, i: int) -> Value:
        return float(10.0 ** _evenly(self.start, self.stop, self.count, i))


class FloatColumn(msgspec.Struct, frozen=True, tag="floats"):
    """Little-endian float64 values, as bytes: random designs of any length."""

    data: bytes

    def __len__(self) -> int:
        return len(self.data) // 8

    def value(self, i: int) -> Value:
        return float(_FLOAT.unpack_from(self.data, i * 8)[0])


class IntColumn(msgspec.Struct, frozen=True, tag="ints"):
    """Little-endian signed 64-bit integers, as bytes: whole-number columns of a table."""

    data: bytes

    def __len__(self) -> int:
        return len(self.data) // 8

    def value(self, i: int) -> Value:
        return int(_INT.unpack_from(self.data, i * 8)[0])


class ListColumn(msgspec.Struct, frozen=True, tag="list"):
    """Values as they stand in the file."""

    values: tuple[Value, ...]

    def __len__(self) -> int:
        return len(self.values)

    def value(self, i: int) -> Value:
        return self.values[i]


Column = RangeColumn | LinspaceColumn | LogspaceColumn | FloatColumn | IntColumn | ListColumn


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
        """The parameter values of element ``index``, in the order of the file."""
        if self.sampling == "zip":
            return {name: column.value(index) for name, column in zip(self.names, self.columns, strict=True)}
        values: list[Value] = []
        for column in reversed(self.columns):
            index, i = divmod(index, len(column))
            values.append(column.value(i))
        return dict(zip(self.names, reversed(values), strict=True))
