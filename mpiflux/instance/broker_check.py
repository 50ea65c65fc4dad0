"""What a client wants to submit, checked before anything is changed. Pure.

A client may be any program that can open a socket, so nothing that the types of the request allow is taken for granted:
counts below zero, products that no integer holds, numbers that are none.
"""

from __future__ import annotations

import math

from mpiflux.instance.broker import RequestError
from mpiflux.model import requests as r
from mpiflux.model.jobspec import Request
from mpiflux.model.params import (
    Column,
    LinspaceColumn,
    ListColumn,
    LogspaceColumn,
    ParamTable,
    RangeColumn,
)
from mpiflux.model.retry import Retry

MAX_NAME = 1024
MAX_SECONDS = 1e10
MAX_TASKS = 65_535
MAX_RESOURCES = 1_000_000
"""Cores of a task, GPUs, nodes."""
MAX_MEMORY = 1 << 60
MAX_RETRIES = (1 << 16) - 1
_INT64 = 1 << 63
_LAYOUTS = ("pack", "spread")
_PMI = ("none", "pmi1", "pmix")


def check_group(new: r.NewGroup) -> int:
    """The number of jobs of a group. Raises RequestError that names what is wrong; templates are not looked at."""
    if bool(new.command) == (new.script is not None):
        raise RequestError("value", "a job has either a command or a script")
    count = _count(new.params)
    if len(new.name) > MAX_NAME:
        raise RequestError("value", f"a name of {len(new.name)} characters: at most {MAX_NAME} are allowed")
    if new.name.removeprefix("#").isdecimal():
        raise RequestError("value", f"a job called {new.name!r} would be taken for the job of that number: choose "
                                    "a name that has a letter")
    if not 0 <= new.urgency <= 31:
        raise RequestError("value", f"urgency {new.urgency}: it is from 0 to 31")
    if not 0 <= new.time_limit < MAX_SECONDS:
        raise RequestError("value", f"time limit {new.time_limit}: it is in seconds, from 0, which is none")
    if not 0 <= new.retries <= MAX_RETRIES:
        raise RequestError("value", f"retries {new.retries}: they are from 0 to {MAX_RETRIES}")
    _check_retry(new.retry)
    if not 0 <= new.begin_time < 1e11:
        raise RequestError("value", f"begin time {new.begin_time}: it is in Unix seconds")
    if new.mpi not in _PMI:
        raise RequestError("value", f"mpi {new.mpi[:40]!r}: there are {', '.join(_PMI)}")
    wrong = next((name for name in (*new.env, *new.secrets) if not name or "=" in name), None)
    if wrong is not None:
        raise RequestError("value", f"environment variable {wrong[:40]!r}: a name has a character, and no '='")
    bad = next((name for name, value in new.secrets.items() if b"\0" in value or name in new.env
                or name.startswith("MPIFLUX_")), None)
    if bad is not None:
        raise RequestError("value", f"secret {bad[:40]!r}: it is in env too, has a null byte, or is mpiflux's own")
    _check_resources(new.resources)
    return count


def _check_retry(retry: Retry) -> None:
    if not (0 <= retry.backoff < MAX_SECONDS and 1 <= retry.factor < MAX_SECONDS and 0 <= retry.max < MAX_SECONDS):
        raise RequestError("value", "a back-off and its bound cannot be negative, nor its factor below 1")


def _check_resources(request: Request) -> None:
    for name, value, least, most in (
            ("tasks", request.tasks, 1, MAX_TASKS), ("cores", request.cores, 1, MAX_RESOURCES),
            ("gpus", request.gpus, 0, MAX_RESOURCES), ("nodes", request.nodes, 0, MAX_RESOURCES),
            ("memory", request.memory, 0, MAX_MEMORY)):
        if not least <= value <= most:
            raise RequestError("value", f"{name} {value}: it is from {least} to {most}")
    if request.layout not in _LAYOUTS:
        raise RequestError("value", f"layout {request.layout[:40]!r}: there are {', '.join(_LAYOUTS)}")
    if request.per_node:
        raise RequestError("value", "one job on every node ('per: node') is for the workflow file")
    wrong = next((name for name, n in request.consumables.items() if not 0 <= n < _INT64), None)
    if wrong is not None:
        raise RequestError("value", f"{wrong[:40]} {request.consumables[wrong]}: an amount is not negative")


def _count(params: ParamTable) -> int:
    if len(params.names) != len(params.columns) or len(set(params.names)) != len(params.names):
        raise RequestError("value", "every parameter column has one name of its own")
    lengths = [_length(name, column) for name, column in zip(params.names, params.columns, strict=True)]
    if params.sampling not in ("zip", "product") or (params.sampling == "zip" and len(set(lengths)) > 1):
        raise RequestError("value", f"parameter columns of lengths {sorted(set(lengths))[:20]} cannot be zipped")
    # a product of many is only built as far as it is not too long
    count = 1
    if params.sampling == "zip" and lengths:
        count = lengths[0]
    else:
        for length in lengths:
            count *= length
            if not 0 < count <= r.MAX_JOBS:
                break
    if not 0 < count <= r.MAX_JOBS:
        shown = f"{count}" if count < 10 ** 12 else "far too many"
        raise RequestError("value", f"{shown} jobs in one group; from 1 to {r.MAX_JOBS} may be")
    return count


def _length(name: str, column: Column) -> int:
    """How long a column is. Raises RequestError for one whose values cannot be told."""
    wrong = ""
    if isinstance(column, (RangeColumn, LinspaceColumn, LogspaceColumn)):
        # not len(), which is an error below 0 and above what a machine can address
        count = column.count
        if not 0 < count <= r.MAX_JOBS:
            wrong = f"{count} values; from 1 to {r.MAX_JOBS} may be"
        elif isinstance(column, RangeColumn):
            ends = (column.start, column.start + column.step * (count - 1))
            wrong = "" if all(-_INT64 <= end < _INT64 for end in ends) else "an integer of more than 64 bits"
        elif not (math.isfinite(column.start) and math.isfinite(column.stop)):
            wrong = "an end that is no finite number"
        elif isinstance(column, LogspaceColumn) and max(column.start, column.stop) >= 308:
            wrong = "10 to that power is no finite number"
    elif isinstance(column, ListColumn):
        count = len(column.values)
        if any(isinstance(value, str) and "\0" in value for value in column.values):
            wrong = "a zero byte in a value"
    else:
        count = len(column.data) // 8
        if len(column.data) % 8:
            wrong = f"{len(column.data)} bytes of values of 8 bytes each"
    if wrong:
        raise RequestError("value", f"parameter {name[:40]!r}: {wrong}")
    return count
