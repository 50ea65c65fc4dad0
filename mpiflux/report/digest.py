"""What a run came to, in numbers: how its jobs ended, how long they waited and ran, how busy the machine was.

Everything is computed from columns, so that a run of a million jobs takes a few seconds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mpiflux.model.states import Result, State
from mpiflux.store.reader import RunReader

Array = npt.NDArray[Any]
BINS = 200
FAILURES = 20


@dataclass(frozen=True)
class GroupDigest:
    """The jobs of one name. Times are in seconds, of each job's last attempt; nan where none has run."""

    name: str
    total: int
    ended: dict[str, int]
    """How many by result, in lower case, and ``not done``."""
    retried: int
    """Attempts beyond the first of each job."""
    waited: tuple[float, float]
    """From the submission to the start: median and longest."""
    ran: tuple[float, float, float]
    """Shortest, median, longest."""
    cpu: float
    """User and system seconds of all attempts."""
    maxrss: int
    """Bytes of the largest process."""


@dataclass(frozen=True)
class Digest:
    """A whole run."""

    name: str
    directory: str
    state: str
    nodes: str
    cores: int
    gpus: int
    ranks: int
    begin: float
    """Unix seconds of the first start."""
    seconds: float
    """From the first start to the last end."""
    groups: list[GroupDigest]
    edges: Array
    """Ends of equal stretches of time, in seconds since the first start, one more than stretches."""
    curves: dict[str, Array] = field(default_factory=dict)
    """By name, the mean over each stretch: ``cores busy``, ``GPUs busy``, ``jobs ended a second``."""
    failures: list[dict[str, Any]] = field(default_factory=list)
    """The first jobs that failed, as job records with ``stderr``."""

    @property
    def total(self) -> int:
        return sum(group.total for group in self.groups)

    def ended(self, result: str) -> int:
        return sum(group.ended.get(result, 0) for group in self.groups)

    def used(self, curve: str, of: int) -> float:
        """The mean of a curve as a fraction of ``of``."""
        return float(self.curves[curve].mean()) / of if of and curve in self.curves else 0.0


def digest(reader: RunReader, directory: str) -> Digest:
    """Look a run directory through. Raises RunError as the reader does."""
    meta, records, table = reader.meta, reader.records, reader.table
    ran = records[records["t_start"] > 0]
    begin = float(ran["t_start"].min()) if len(ran) else float(meta.get("t_start", 0.0))
    end = float(ran["t_finish"].max()) if len(ran) else begin
    edges = np.linspace(0.0, max(end - begin, 1e-9), BINS + 1)
    cores, gpus = reader.widths()
    had = records["t_start"] > 0
    curves = {"cores busy": busy(ran, cores[had], begin, edges)}
    if gpus.any():
        curves["GPUs busy"] = busy(ran, gpus[had], begin, edges)
    curves["jobs ended a second"] = np.histogram(ran["t_finish"] - begin, edges)[0] / np.diff(edges)
    bad = np.flatnonzero(np.isin(table.result[:reader.total], (Result.FAILED, Result.TIMEOUT))) + 1
    return Digest(
        str(meta.get("workflow", "")), directory, reader.state, str(meta.get("nodelist", "")),
        int(meta.get("cores", 0)), int(meta.get("gpus", 0)), int(meta.get("ranks", 1)), begin, end - begin,
        [_group(reader, number) for number in range(len(reader.groups))], edges, curves,
        [reader.job(int(id), with_output=True) for id in bad[:FAILURES]])


def busy(records: Array, weight: Array, begin: float, edges: Array) -> Array:
    """How much of a resource was in use on average between each two of ``edges``, by records that had ``weight``."""
    used = _integral(edges, records["t_start"] - begin, weight) - _integral(edges, records["t_finish"] - begin, weight)
    mean: Array = np.diff(used) / np.diff(edges)
    return mean


def _integral(until: Array, since: Array, weight: Array) -> Array:
    """For each time in ``until``, the sum over ``weight`` times how long ago its ``since`` was, if it has been."""
    order = np.argsort(since, kind="stable")
    since, weight = since[order], weight[order].astype("f8")
    before = np.searchsorted(since, until, "right")
    weights = np.concatenate([[0.0], np.cumsum(weight)])[before]
    moments = np.concatenate([[0.0], np.cumsum(weight * since)])[before]
    area: Array = until * weights - moments
    return area


def _group(reader: RunReader, number: int) -> GroupDigest:
    group, table, records = reader.groups[number], reader.table, reader.records
    rows = slice(group.first_id - 1, group.stop_id - 1)
    results = np.bincount(table.result[rows], minlength=len(Result))
    ended = {result.name.lower(): int(results[result]) for result in
             (Result.COMPLETED, Result.FAILED, Result.CANCELED, Result.TIMEOUT)}
    ended["not done"] = group.count - int(np.count_nonzero(table.state[rows] == State.INACTIVE))
    mine = records[(records["id"] >= group.first_id) & (records["id"] < group.stop_id) & (records["t_start"] > 0)]
    last = mine
    if len(mine):
        # of several attempts of a job the one that was recorded last
        _, first = np.unique(mine["id"][::-1], return_index=True)
        last = mine[::-1][first]
    waits = last["t_start"] - reader.t_submit[number]
    runs = last["t_finish"] - last["t_start"]
    none = float("nan")
    return GroupDigest(
        group.name, group.count, ended, len(mine) - len(last),
        (float(np.median(waits)), float(waits.max())) if len(last) else (none, none),
        (float(runs.min()), float(np.median(runs)), float(runs.max())) if len(last) else (none, none, none),
        float(mine["utime"].astype("f8").sum() + mine["stime"].astype("f8").sum()),
        int(mine["maxrss"].max()) * 1024 if len(mine) else 0)


def stamp(seconds: float) -> str:
    """A Unix time as people write it, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
