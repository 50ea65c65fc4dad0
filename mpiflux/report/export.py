"""Job records as CSV, JSON and Parquet tables.

JSON keeps the record as it is. In CSV and Parquet each parameter is a column ``params.NAME``, host names stand as
a hostlist, and the core and GPU sets of several nodes are joined by ``;``.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, TextIO

from mpiflux.model import hostlist
from mpiflux.model.jobspec import JobGroup
from mpiflux.model.params import Column, FloatColumn, IntColumn, LinspaceColumn, LogspaceColumn, RangeColumn

BEFORE = ("id", "name", "index")
AFTER = ("state", "result", "returncode", "attempts", "tasks", "nodes", "cores", "gpus", "t_submit", "t_start",
         "t_finish", "utime", "stime", "maxrss", "reason")
OUTPUT = ("stdout", "stderr", "truncated")
PREFIX = "params."

_ROWS = 16384
"""Rows of a Parquet row group."""
_INTEGERS = {"id", "index", "returncode", "attempts", "tasks", "maxrss"}
_REALS = {"t_submit", "t_start", "t_finish", "utime", "stime"}


class NoParquet(Exception):
    """The package that writes Parquet is not there."""


def parameter_names(groups: Iterable[JobGroup]) -> list[str]:
    """The parameters of all groups, each once, in the order of the file."""
    return list(dict.fromkeys(name for group in groups for name in group.params.names))


def column_names(groups: Iterable[JobGroup], with_output: bool = False) -> list[str]:
    """The columns of a table of these groups' jobs."""
    names = [*BEFORE, *(PREFIX + name for name in parameter_names(groups)), *AFTER]
    return names + list(OUTPUT) if with_output else names


def flat(record: dict[str, Any]) -> dict[str, Any]:
    """A record with plain values only."""
    out = {PREFIX + name: value for name, value in record["params"].items()}
    out.update((key, value) for key, value in record.items() if key != "params")
    try:
        out["nodes"] = hostlist.encode(record["nodes"])
    except ValueError:
        out["nodes"] = ",".join(record["nodes"])
    out["truncated"] = ",".join(record["truncated"])
    for key in ("cores", "gpus"):
        if not isinstance(record[key], str):
            out[key] = ";".join(record[key])
    return out


def write_csv(file: TextIO, records: Iterable[dict[str, Any]], columns: Sequence[str]) -> None:
    """A header and a line a job (RFC 4180, but lines end in LF). What has no value is empty, truth values are
    ``true`` and ``false``."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for record in records:
        values = flat(record)
        writer.writerow([_cell(values.get(name)) for name in columns])


def _cell(value: Any) -> Any:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else value


def write_json(file: TextIO, records: Iterable[dict[str, Any]]) -> None:
    """A list of records, one a line."""
    separator = "["
    for record in records:
        file.write(separator + json.dumps(record))
        separator = ",\n "
    file.write("[]\n" if separator == "[" else "]\n")


def write_parquet(path: str, records: Iterable[dict[str, Any]], groups: Sequence[JobGroup],
                  with_output: bool = False) -> None:
    """A Parquet file. Bytes of output that are not UTF-8 become U+FFFD: Parquet's texts cannot hold them.

    Raises NoParquet.
    """
    try:
        import pyarrow as pa  # type: ignore[import-not-found, unused-ignore]
        import pyarrow.parquet as pq  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise NoParquet("Parquet needs the package pyarrow: pip install pyarrow, or use --format csv") from None
    kinds = {PREFIX + name: _kind(name, groups) for name in parameter_names(groups)}
    types = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(), "str": pa.string()}
    names = column_names(groups, with_output)
    for name in names:
        kinds.setdefault(name, "int" if name in _INTEGERS else "float" if name in _REALS else "str")
    schema = pa.schema([(name, types[kinds[name]]) for name in names])
    rows = iter(records)
    with pq.ParquetWriter(path, schema) as writer:
        while block := [flat(record) for record in islice(rows, _ROWS)]:
            data = {name: [_typed(values.get(name), kinds[name]) for values in block] for name in names}
            writer.write_table(pa.table(data, schema))


def _kind(name: str, groups: Iterable[JobGroup]) -> str:
    """The narrowest of int, float, bool, str that holds a parameter in all groups that have it."""
    found = {kind for group in groups for n, column in zip(group.params.names, group.params.columns, strict=True)
             if n == name for kind in _kinds(column)}
    if found <= {"int", "float"}:
        return "float" if "float" in found else "int"
    return "bool" if found == {"bool"} else "str"


def _kinds(column: Column) -> set[str]:
    if isinstance(column, (RangeColumn, IntColumn)):
        return {"int"}
    if isinstance(column, (LinspaceColumn, LogspaceColumn, FloatColumn)):
        return {"float"}
    return {type(value).__name__ for value in column.values}


def _typed(value: Any, kind: str) -> Any:
    if value is None or kind in ("int", "bool"):
        return value
    if kind == "float":
        return float(value)
    text = str(_cell(value))
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
