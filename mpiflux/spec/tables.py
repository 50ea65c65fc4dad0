"""Columns of CSV files."""

from __future__ import annotations

import csv
import io
import math
import re
import sys
from array import array
from collections.abc import Callable

from mpiflux.model.params import Column, FloatColumn, IntColumn, ListColumn
from mpiflux.spec.files import Unreadable
from mpiflux.spec.problems import shorten, suggest
from mpiflux.spec.scalars import INT_MAX, INT_MIN

_INT = re.compile(r"[-+]?(?:0|[1-9]\d*)", re.ASCII)
_FLOAT = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)
_ZEROS = re.compile(r"[-+]?0\d+", re.ASCII)


class TableError(Exception):
    """A CSV file that cannot be used, in words for the person who wrote the workflow."""


class Table:
    """The rows of a CSV file below its header."""

    def __init__(self, file: str, header: list[str], rows: list[list[str]]) -> None:
        self.file, self.header, self.rows = file, header, rows


def read_table(file: str, read_file: Callable[[str], bytes]) -> Table:
    """Read a file with a header line. Blank lines are skipped; every other must have a value for each column.

    ``read_file`` raises :class:`Unreadable`, this :class:`TableError`.
    """
    try:
        data = read_file(file)
    except Unreadable as error:
        raise TableError(f"cannot read {shorten(file)}: {error} (relative to the workflow file)") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise TableError(f"{shorten(file)} is not a UTF-8 text file") from None
    if "\0" in text:
        raise TableError(f"{shorten(file)} is not a text file: it holds a NUL character")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[list[str]] = []
    header: list[str] | None = None
    try:
        for row in reader:
            if not row:
                continue
            if header is None:
                header = [name.strip() for name in row]
            elif len(row) != len(header):
                raise TableError(f"{shorten(file)}, line {reader.line_num}: {len(row)} values, but the header has "
                                 f"{len(header)}")
            else:
                rows.append(row)
    except csv.Error as error:
        raise TableError(f"{shorten(file)}, line {reader.line_num}: {error}") from None
    if header is None:
        raise TableError(f"{shorten(file)} is empty; its first line must name the columns")
    return Table(file, header, rows)


def column_of(table: Table, name: str) -> Column:
    """One column: integers when every value is one, else floats when every value is a number, else texts."""
    places = [i for i, title in enumerate(table.header) if title == name]
    if not places:
        shown = ", ".join(table.header[:20]) + (", ..." if len(table.header) > 20 else "")
        raise TableError(f"{shorten(table.file)} has no column {name!r}{suggest(name, table.header)}; it has {shown}")
    if len(places) > 1:
        raise TableError(f"{shorten(table.file)} has {len(places)} columns called {name!r}")
    if not table.rows:
        raise TableError(f"{shorten(table.file)} has no rows: there would be no job to run")
    texts = [row[places[0]] for row in table.rows]
    stripped = [text.strip() for text in texts]
    if all(len(text) < 20 and _INT.fullmatch(text) for text in stripped):
        numbers = [int(text) for text in stripped]
        if min(numbers) >= INT_MIN and max(numbers) <= INT_MAX:
            return IntColumn(_little("q", numbers))
    # leading zeros mark codes and names, which must come out as they went in
    if all(len(text) < 400 and _FLOAT.fullmatch(text) and not _ZEROS.fullmatch(text) for text in stripped):
        reals = [float(text) for text in stripped]
        if all(math.isfinite(real) for real in reals):
            return FloatColumn(_little("d", reals))
    return ListColumn(tuple(texts))


def _little(code: str, values: list[int] | list[float]) -> bytes:
    data = array(code, values)
    if sys.byteorder == "big":
        data.byteswap()
    return data.tobytes()
