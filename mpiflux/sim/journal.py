"""What a virtual journal holds, what is left of it when rank 0 dies, and what the next instance starts from.

A group commit takes whole entries, in order: so a crash leaves a beginning of them, with all that is older than the
window of the commit. What is made of it is :mod:`mpiflux.store.resume`, the real one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mpiflux.model.jobspec import JobGroup
from mpiflux.model.states import State
from mpiflux.store.jobtable import RECORD, JobTable
from mpiflux.store.kvs import Kvs
from mpiflux.store.resume import Resumed, resume


class Entry(NamedTuple):
    """What rank 0 appended at once. ``t`` in virtual seconds."""

    t: float
    ended: bool
    """Records of attempts that ended, or of such as began."""
    data: bytes


class Began(NamedTuple):
    """Of an attempt that runs."""

    attempt: int
    t_start: float
    tasks: int
    pid: int


@dataclass(frozen=True)
class Saved:
    """All that is left of a run. ``t_submit`` in virtual seconds."""

    groups: tuple[JobGroup, ...]
    t_submit: float
    entries: tuple[Entry, ...]

    @property
    def records(self) -> list[bytes]:
        """By batch: what ended."""
        return [entry.data for entry in self.entries if entry.ended]

    def resume(self, now: float) -> Resumed:
        """What the next instance starts from. What died with the last one is applied to its table already."""
        found = resume(Left(self), now)
        if len(found.lost):
            found.table.apply(found.lost, len(self.records))
        return found


class Left:
    """What :func:`mpiflux.store.resume.resume` reads; see :class:`mpiflux.store.resume.Source`."""

    def __init__(self, saved: Saved) -> None:
        self.groups = saved.groups
        self.t_submit = [saved.t_submit] * len(saved.groups)
        batches = [np.frombuffer(data, RECORD) for data in saved.records]
        self.records = np.concatenate([np.zeros(0, RECORD), *batches])
        self.table = JobTable()
        for group in saved.groups:
            self.table.add_group(group)
        counts = np.array([len(batch) for batch in batches], "i8")
        self._first = np.concatenate([np.zeros(1, "i8"), np.cumsum(counts)])
        batch = np.repeat(np.arange(len(counts)), counts)
        self.table.replay(self.records, batch, np.arange(len(self.records)) - self._first[batch])
        self.running = _running(saved.entries)
        began = np.zeros(len(self.running), RECORD)
        for at, (job, one) in enumerate(self.running.items()):
            began[at]["id"], began[at]["attempt"], began[at]["t_start"] = job, one.attempt, one.t_start
        if len(began):
            self.table.started(began, replay=True)

    def latest(self, ids: Any) -> Any:
        return self.records[self._first[self.table.batch[ids - 1]] + self.table.pos[ids - 1]]

    def kvs(self) -> Kvs:
        return Kvs()

    def events(self, name: str = "") -> Iterator[Any]:
        """None: nothing that was asked for is kept here."""
        return iter(())


def _running(entries: Sequence[Entry]) -> dict[int, Began]:
    """Attempts that had begun and not ended."""
    running: dict[int, Began] = {}
    for entry in entries:
        for record in np.frombuffer(entry.data, RECORD):
            job = int(record["id"])
            if not entry.ended:
                running[job] = Began(int(record["attempt"]), float(record["t_start"]), int(record["tasks"]),
                                     int(record["pid"]))
            elif job in running and running[job].attempt <= int(record["attempt"]):
                del running[job]
    return running


def ended(groups: Iterable[JobGroup], records: Iterable[bytes]) -> list[dict[int, int]]:
    """By batch: the jobs that it ended, with their results, as a new table that reads the journal sees it."""
    table, found = JobTable(), []
    for group in groups:
        table.add_group(group)
    for number, data in enumerate(records):
        batch: dict[int, int] = {}
        left = np.frombuffer(data, RECORD)
        while len(left):
            applied = table.apply(left, number, replay=True)
            batch.update(zip(applied.ended.tolist(), applied.results.tolist(), strict=True))
            left = left[applied.repeated]
        found.append(batch)
    return found


def left_to_do(saved: Saved, now: float) -> bool:
    """Whether any job has not ended."""
    table = saved.resume(now).table
    return bool((table.state[:len(table)] != State.INACTIVE).any())
