"""Parameter columns from what a workflow file says about them.

Formulas stay formulas, so a range of a billion values costs a few bytes. Random designs depend on nothing but
their seed and the parameter's name: a resumed run meets the same values, and two columns with the same seed are
independent of each other.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from mpiflux.model.params import (
    Column,
    FloatColumn,
    LinspaceColumn,
    ListColumn,
    LogspaceColumn,
    RangeColumn,
    Value,
)
from mpiflux.spec import scalars
from mpiflux.spec.nodes import Node
from mpiflux.spec.problems import shorten
from mpiflux.spec.reader import Reader
from mpiflux.spec.tables import Table, TableError, column_of, read_table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_ELEMENTS = 1 << 40
MAX_STORED = 100_000_000
"""Values that all columns without a formula may hold together."""

GENERATORS: dict[str, tuple[str, ...]] = {
    "linspace": (), "logspace": (), "range": (), "lhs": ("seed",), "uniform": ("seed",), "normal": ("seed",),
    "csv": ("column",),
}


class ColumnReader:
    """Builds the parameter columns of one workflow."""

    def __init__(self, reader: Reader, read_file: Callable[[str], bytes]) -> None:
        self.reader = reader
        self.read_file = read_file
        self.stored = 0
        self.tables: dict[str, Table | TableError] = {}

    def column(self, node: Node, path: str, name: str) -> Column | None:
        """The column of one parameter; None when it is wrong."""
        if node.kind == "scalar":
            value = self.value(node, path)
            return None if value is None else ListColumn((value,))
        if node.kind == "list":
            return self._list(node, path, name)
        return self._generator(node, path, name)

    def value(self, node: Node, path: str) -> Value | None:
        """One value, of the type that it looks like; a quoted one is a text."""
        scalar = self.reader.scalar(node, path, "a single value")
        if scalar is None:
            return None
        if scalar.is_empty:
            self.reader.problem(node, path, f"{path.rpartition('.')[2]}: a value is missing here; write \"\" for an "
                                "empty text")
            return None
        if not scalar.plain:
            return scalar.text
        try:
            return scalars.resolve(scalar.text)
        except ValueError as error:
            self.reader.problem(node, path, f"{scalar.describe()} is {error}; quote it to pass it as a text")
            return None

    def _list(self, node: Node, path: str, name: str) -> Column | None:
        if not node.items:
            self.reader.problem(node, path, f"parameter {name} is empty: there would be no job to run")
            return None
        if not self._store(node, path, len(node.items)):
            return None
        values = [self.value(item, f"{path}[{i}]") for i, item in enumerate(node.items)]
        return ListColumn(tuple(value for value in values if value is not None)) if None not in values else None

    def _store(self, node: Node, path: str, count: int) -> bool:
        """Whether ``count`` more values may be held in memory."""
        if self.stored + count > MAX_STORED:
            self.reader.problem(node, path, f"more than {MAX_STORED:,} values that have no formula; use range, "
                                "linspace or logspace, or split the workflow")
            return False
        self.stored += count
        return True

    def _generator(self, node: Node, path: str, name: str) -> Column | None:
        found = [key for key in node.entries if key in GENERATORS]
        if len(found) != 1:
            options = ", ".join(GENERATORS)
            for key, (key_node, _) in node.entries.items():
                if not found and (hint := self.reader.problems.suggest(key, GENERATORS)):
                    self.reader.problem(key_node, path, f"parameter {name}: there is no generator {shorten(key)}{hint}")
                    return None
            self.reader.problem(node, path, f"parameter {name}: expected a list, a value, or one of {options}"
                                + (f"; {' and '.join(found)} cannot be used together" if found else ""))
            return None
        kind = found[0]
        fields = self.reader.fields(node, path, (kind, *GENERATORS[kind]), f"parameter {name}")
        if fields is None:
            return None
        argument, where = fields.get(kind)
        assert argument is not None
        if kind == "range":
            return self._range(argument, where, name)
        if kind == "csv":
            return self._csv(argument, where, *fields.get("column"))
        numbers = self._numbers(argument, where, kind)
        seed = self.reader.integer(*fields.get("seed"), 0, 0, (1 << 63) - 1)
        if numbers is None:
            return None
        low, high, count = numbers
        if kind == "linspace":
            return LinspaceColumn(low, high, count)
        if kind == "logspace":
            return LogspaceColumn(low, high, count)
        if not self._store(argument, where, count):
            return None
        return FloatColumn(_random(kind, low, high, count, seed, name))

    def _numbers(self, node: Node, path: str, kind: str) -> tuple[float, float, int] | None:
        """The three arguments of most generators, checked."""
        shape = "[mean, standard deviation, number]" if kind == "normal" else "[from, to, number]"
        if node.kind != "list" or len(node.items) != 3:
            got = f"a list of {len(node.items)}" if node.kind == "list" else node.describe()
            self.reader.problem(node, path, f"{kind}: expected {shape}, not {got}")
            return None
        low = self.reader.real(node.items[0], f"{path}[0]")
        high = self.reader.real(node.items[1], f"{path}[1]")
        count = self.reader.integer(node.items[2], f"{path}[2]", 0, 1, MAX_ELEMENTS)
        if low is None or high is None or count == 0:
            return None
        if kind == "logspace" and max(abs(low), abs(high)) > 300:
            self.reader.problem(node, path, "logspace: the ends are exponents of 10 and must lie from -300 to 300")
        elif kind in ("lhs", "uniform") and not low < high:
            self.reader.problem(node, path, f"{kind}: the first number must be less than the second")
        elif kind == "normal" and high < 0:
            self.reader.problem(node, path, "normal: the standard deviation must not be negative")
        elif not math.isfinite(high - low) or (kind == "normal" and max(abs(low), high) > 1e300):
            self.reader.problem(node, path, f"{kind}: the numbers are too large")
        else:
            return low, high, count
        return None

    def _range(self, node: Node, path: str, name: str) -> Column | None:
        """Python's ``range``: the end is not included."""
        items = node.items if node.kind == "list" else [node]
        if node.kind == "mapping" or not 1 <= len(items) <= 3:
            self.reader.problem(node, path, f"range: expected a number, [start, stop] or [start, stop, step], not "
                                f"{node.describe() if node.kind != 'list' else f'a list of {len(items)}'}")
            return None
        before = len(self.reader.problems.found)
        bound = 1 << 62
        numbers = [self.reader.integer(item, f"{path}[{i}]" if node.kind == "list" else path, 0, -bound, bound)
                   for i, item in enumerate(items)]
        if len(self.reader.problems.found) > before:
            return None
        start, stop, step = (0, numbers[0], 1) if len(numbers) == 1 else (*numbers, 1)[:3]
        if step == 0:
            self.reader.problem(items[2], path, "range: the step must not be 0")
            return None
        count = max(0, -((start - stop) // step))
        if count == 0:
            self.reader.problem(node, path, f"parameter {name} is empty: there would be no job to run")
        elif count > MAX_ELEMENTS:
            self.reader.problem(node, path, f"range: more than {MAX_ELEMENTS:,} values")
        else:
            return RangeColumn(start, step, count)
        return None

    def _csv(self, node: Node, path: str, column: Node | None, column_path: str) -> Column | None:
        file = self.reader.text(node, path, "", "a file name")
        if column is None:
            self.reader.problem(node, path, "csv: say which column with 'column: NAME'")
            return None
        name = self.reader.text(column, column_path, "", "a column name")
        if not file or not name:
            return None
        if file not in self.tables:
            try:
                self.tables[file] = read_table(file, self.read_file)
            except TableError as error:
                self.tables[file] = error
        table = self.tables[file]
        try:
            if isinstance(table, TableError):
                self.reader.problem(node, path, str(table))
                return None
            result = column_of(table, name)
        except TableError as error:
            self.reader.problem(column, column_path, str(error))
            return None
        return result if self._store(node, path, len(result)) else None


def _random(kind: str, low: float, high: float, count: int, seed: int, name: str) -> bytes:
    """The values of a random column, little-endian float64.

    ``lhs`` is a Latin hypercube: one value in each of ``count`` equal intervals, in an order of its own for each
    column (McKay, Beckman and Conover, 1979).
    """
    import numpy as np

    generator = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    values: NDArray[np.float64]
    if kind == "normal":
        values = low + high * generator.standard_normal(count)
    elif kind == "uniform":
        values = low + (high - low) * generator.random(count)
    else:
        order = np.argsort(generator.random(count), kind="stable")
        values = low + (high - low) * ((order + generator.random(count)) / count)
    return values.astype("<f8").tobytes()
