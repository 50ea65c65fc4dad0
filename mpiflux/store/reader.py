"""Everything about a run from its directory alone: finished, going on, or killed.

Reads whole batches into one NumPy array, so a million jobs take a second or two; what concerns one job reads only
the batches that may hold it. Changes nothing, except that SQLite may have to undo what a killed writer left half
done.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpiflux.model.jobspec import JobGroup
from mpiflux.model.messages import ResourceSet
from mpiflux.model.records import FLAG_REASON, SIZE
from mpiflux.model.states import IllegalTransition, Result, State
from mpiflux.model.template import CompiledGroup
from mpiflux.store import describe, kvsview, runlock, schema
from mpiflux.store.attempts import Attempt, accepted, ended, lately
from mpiflux.store.database import Database
from mpiflux.store.describe import Where
from mpiflux.store.eventlog import ELEMENTS, Event, Record, about, eventlog
from mpiflux.store.groups import by_name
from mpiflux.store.history import REDEFINE, RERUN, History, Step
from mpiflux.store.jobtable import RECORD, Array, JobTable
from mpiflux.store.kvs import Kvs
from mpiflux.store.references import group_of, ids_of, resolve
from mpiflux.store.replay import Release, replayed
from mpiflux.store.schema import RunError
from mpiflux.store.written import STDERR, STDOUT, Written

_WINDOW = 4096
"""Jobs that are made into dictionaries at a time."""

__all__ = ["STDERR", "STDOUT", "Attempt", "RunError", "RunReader", "open_run"]


def open_run(path: str | os.PathLike[str]) -> RunReader:
    """The run in this directory. Raises RunError saying what is wrong with it."""
    return RunReader(path)


class RunReader:
    """See the module. Use it as a context manager, or :meth:`close` it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.directory = Path(path)
        self._db = Database(self.directory)
        self._written = Written(self._db)
        self._table: JobTable | None = None
        self.running: Mapping[int, Record] = {}
        """Attempts that run, or ran when the instance died, by job id; filled when :attr:`table` is."""
        self._compiled: dict[int, CompiledGroup] = {}
        self._rsets: dict[tuple[int, int, int], Where] = {}
        try:
            self._head()
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> RunReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the run as a whole ------------------------------------------------------------------------------------

    def _head(self) -> None:
        self._meta: dict[int, dict[str, Any]] = {}
        for run, key, text in self._db.query("iss", "SELECT run, key, value FROM meta ORDER BY run"):
            try:
                self._meta.setdefault(run, {})[key] = json.loads(text)
            except ValueError as error:
                raise self._db.damaged(error) from error
        self.meta: dict[str, Any] = {}
        """What the instances said of themselves, a later one's word over an earlier one's."""
        for values in self._meta.values():
            self.meta.update(values)
        self.runs = len(self._meta)
        """How many instances have written here: 1 and one for each resumption."""
        rows = self._db.query("bf", "SELECT data, t_submit FROM groups ORDER BY number")
        self.groups: Sequence[JobGroup] = [self._db.unpack(data, JobGroup) for data, _ in rows]
        self.t_submit: Sequence[float] = [t for _, t in rows]
        self.named = by_name(self.groups)
        self.history = History(self._steps())

    def _steps(self) -> Iterator[Step]:
        """What resumptions changed."""
        for number, t, name, data in self._db.query("ifsb", "SELECT number, t, name, context FROM events WHERE id=0 "
                                                    "AND name IN (?,?)", (RERUN, REDEFINE)):
            told = self._db.unpack(data, dict[str, Any])
            try:
                group, batch = int(told["group"]), int(told["batch"])
                ranges = [(int(start), int(stop), int(step)) for start, stop, step in told.get("ranges", ())]
                was = self._db.unpack(told["was"], JobGroup) if name == REDEFINE else None
                fits = was is None or (was.number, was.first_id, was.count) == (
                    group, self.groups[group].first_id, self.groups[group].count)
                if not fits or not 0 <= group < len(self.groups) or any(step < 1 for _, _, step in ranges):
                    raise ValueError(f"event {number} speaks of a group that is not there")
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise self._db.damaged(error) from error
            yield Step(number, t, name, group, batch, ranges, was, bool(told.get("judged")))

    @property
    def state(self) -> str:
        """``running``, ``finished``, or ``interrupted`` (killed, or ended before its jobs did: resumable)."""
        if runlock.held(self.directory):
            return "running"
        latest = self._meta[max(self._meta)] if self._meta else {}
        said = latest.get("state", "running")
        return "interrupted" if said == "running" else str(said)

    @property
    def total(self) -> int:
        return self.groups[-1].stop_id - 1 if self.groups else 0

    def refresh(self) -> None:
        """See what a live run has written since."""
        self._table = None
        self._head()

    @property
    def table(self) -> JobTable:
        """Every job's state; ``table.batch`` and ``pos`` name records of :attr:`records`."""
        self._load()
        assert self._table is not None
        return self._table

    @property
    def records(self) -> Array:
        """Every ended attempt's record, in the order in which they were committed."""
        self._load()
        return self._records

    def latest(self, ids: Array) -> Array:
        """The record of the last ended attempt of each of these jobs, which must have one."""
        batch, pos = self.table.batch[ids - 1], self.table.pos[ids - 1]
        found: Array = self._records[self._first[batch] + pos]
        return found

    def widths(self) -> tuple[Array, Array]:
        """How many cores and how many GPUs each of :attr:`records` had; 0 for what never started."""
        records = self.records
        runs = np.repeat(self._runs, np.diff(self._first))
        keys = np.stack([runs, records["r_sched"].astype("i8"), records["r_id"].astype("i8")], axis=1)
        unique, which = np.unique(keys, axis=0, return_inverse=True)
        amounts = np.zeros((len(unique), 2), "i8")
        stored = {(run, sched, r_id): data for run, sched, r_id, data in self._db.query(
            "iiib", "SELECT run, sched, r_id, data FROM rsets")}
        for row, key in enumerate(map(tuple, unique.tolist())):
            if key in stored:
                shares = self._db.unpack(stored[key], ResourceSet).shares
                amounts[row] = sum(len(one.cores) for one in shares), sum(len(one.gpus) for one in shares)
        cores, gpus = amounts[which.reshape(-1)].T
        started = records["t_alloc"] > 0
        return np.where(started, cores, 0), np.where(started, gpus, 0)

    def _load(self) -> None:
        if self._table is not None:
            return
        with self._db.snapshot():
            self._head()
            rows = self._db.query("iiiib", "SELECT batch, run, n, crc, records FROM jobs ORDER BY batch")
            started = self._db.query("b", "SELECT record FROM running WHERE length(record)=?", (SIZE,))
        for i, (batch, _, n, crc, records) in enumerate(rows):
            if batch != i:
                raise self._db.damaged(f"batch {i} of job records is missing")
            self._db.records(batch, n, crc, records)
        counts = np.array([n for _, _, n, _, _ in rows], "i8")
        self._records = np.frombuffer(b"".join(row[-1] for row in rows), RECORD)
        self._runs = np.array([row[1] for row in rows], "i8")
        rows.clear()
        self._first = np.concatenate([np.zeros(1, "i8"), np.cumsum(counts)])
        lengths = np.cumsum(self._records["out_len"].astype("i8") + self._records["err_len"])
        self._offset = np.concatenate([np.zeros(1, "i8"), lengths])
        self.running = {record.id: record for (blob,) in started for record in _named(np.frombuffer(blob, RECORD))}
        rows = self._db.query("iib", "SELECT number, id, context FROM events WHERE name='depend' ORDER BY number")
        releases = (Release(number, id, self._db.unpack(data, dict[str, Any]).get(ELEMENTS) if id <= 0 else None)
                    for number, id, data in rows)
        try:
            self._table = replayed(self.groups, self.history, self._records, self._first, releases,
                                   np.array(list(self.running.values()), RECORD))
        except (IllegalTransition, ValueError, TypeError, OverflowError, IndexError, RunError) as error:
            raise self._db.damaged(error) from error

    # -- finding jobs ------------------------------------------------------------------------------------------

    def resolve(self, ref: str | int) -> Sequence[int]:
        """The ids that a reference means: ``12``, ``sim.3``, ``sim[3]``, ``sim[3-5,9]``, or ``sim`` for all of a name.

        Raises RunError when it means none.
        """
        return resolve(ref, self.groups, self.named)

    def one(self, ref: str | int) -> int:
        """The one id that a reference means; RunError when it means several."""
        ids = self.resolve(ref)
        if len(ids) != 1:
            raise RunError(f"{ref!r} means {len(ids)} jobs; say which one, as in {ref}.0")
        return ids[0]

    # -- job records -------------------------------------------------------------------------------------------

    def attempts(self, id: int) -> list[Attempt]:
        """The ended attempts of a job, in order; reads only batches that may hold it."""
        group = group_of(self.groups, id)
        out: list[Attempt] = []
        rows = self._db.query("iiiiBb", "SELECT batch, run, n, crc, reasons, records FROM jobs "
                           "WHERE lo<=? AND hi>=? ORDER BY batch", (id, id))
        for batch, run, n, crc, reasons, blob in rows:
            records = self._db.records(batch, n, crc, blob)
            for pos in np.flatnonzero(records["id"] == id).tolist():
                before = records[:pos]
                offset = int(before["out_len"].sum(dtype="i8") + before["err_len"].sum(dtype="i8"))
                record = _named(records[pos:pos + 1])[0]
                told = self._db.unpack(reasons, dict[int, str]) if reasons and record.flags & FLAG_REASON else {}
                out.append(Attempt(record, run, batch, offset, told.get(id, "")))
        return accepted(self.history, group, out)

    def _running_record(self, id: int) -> tuple[Record, int] | None:
        rows = self._db.query("bi", "SELECT record, run FROM running WHERE id=? AND length(record)=?", (id, SIZE))
        return (_named(np.frombuffer(rows[0][0], RECORD))[0], rows[0][1]) if rows else None

    def job(self, id: int, *, with_output: bool = False) -> dict[str, Any]:
        """One job's record, by the names of DESIGN.md 1.1."""
        group, attempts = group_of(self.groups, id), self.attempts(id)
        t_submit = self.t_submit[group.number]
        if ended(self.history, group, attempts):
            last = attempts[-1]
            out = describe.job(self.history.group_at(group, last.batch), id, t_submit, State.INACTIVE, last.record,
                               self._where(last.record, last.run), last.reason)
        else:
            waiting = group.after and not lately(self.history, group, attempts) and not self._depended(group, id)
            state = State.DEPEND if waiting else State.SCHED
            out = self._unended(group, id, self._running_record(id), state, len(attempts), self.state == "running")
        if with_output:
            self._add_output(out)
        return out

    def _unended(
        self, group: JobGroup, id: int, live: tuple[Record, int] | None, state: State, tried: int, alive: bool,
    ) -> dict[str, Any]:
        t_submit = self.t_submit[group.number]
        if live is not None:
            reason = "" if alive else "its instance has ended; --resume runs it again"
            return describe.job(group, id, t_submit, State.RUN, live[0], self._where(*live), reason)
        return describe.job(group, id, t_submit, state, None, None, "", tried)

    def _depended(self, group: JobGroup, id: int) -> bool:
        reruns = self.history.reruns(group, id)
        rows = self._db.query("b", "SELECT context FROM events WHERE id IN (?,?) AND name='depend' AND number>?",
                              (id, schema.group_event_id(group.number), reruns[-1].number if reruns else -1))
        return any(about(self._db.unpack(data, dict[str, Any]), id - group.first_id) for (data,) in rows)

    def jobs(
        self, name: str | None = None, states: Collection[State] | None = None,
        results: Collection[Result] | None = None, with_output: bool = False,
        ids: Sequence[int] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Job records in id order; only those called ``name``, in one of ``states``, with one of ``results``."""
        table = self.table
        rows = np.arange(len(table)) if ids is None else np.unique(np.asarray(ids, "i8")) - 1
        if name is not None:
            if name not in self.named:
                raise RunError(f"no group {name!r}; there are: {', '.join(self.named) or 'none'}")
            rows = np.intersect1d(rows, np.asarray(ids_of(self.named[name])) - 1, assume_unique=True)
        if states is not None:
            rows = rows[np.isin(table.state[rows], [int(s) for s in states])]
        if results is not None:
            rows = rows[np.isin(table.result[rows], [int(r) for r in results])]
        for at in range(0, len(rows), _WINDOW):
            yield from self._window(rows[at:at + _WINDOW], with_output)

    def _window(self, rows: Array, with_output: bool) -> Iterator[dict[str, Any]]:
        table, alive = self.table, self.state == "running"
        ended = table.state[rows] == State.INACTIVE
        batch = table.batch[rows]
        where = np.where(ended, self._first[np.maximum(batch, 0)] + table.pos[rows], 0)
        records = _named(self._records[where]) if ended.any() else [None] * len(rows)
        runs = (self._runs[np.maximum(batch, 0)] if len(self._runs) else batch).tolist()
        reasons = self._reasons(batch[ended]) if ended.any() else {}
        rest = zip(rows.tolist(), records, runs, batch.tolist(), where.tolist(), ended.tolist(), strict=True)
        for row, record, run, number, place, done in rest:
            id, group = row + 1, group_of(self.groups, row + 1)
            if not done or record is None:
                live = self.running.get(id)
                tried = max(int(table.attempt[row]) - 1, 0)
                out = self._unended(group, id, live and (live, max(self._meta)), State(table.state[row]), tried, alive)
                span = None
            else:
                reason = reasons.get((number, id), "") if record.flags & FLAG_REASON else ""
                out = describe.job(self.history.group_at(group, number), id, self.t_submit[group.number],
                                   State.INACTIVE, record, self._where(record, run), reason)
                offset = int(self._offset[place] - self._offset[self._first[number]])
                span = Attempt(record, run, number, offset, reason)
            if with_output:
                self._add_output(out, span)
            yield out

    def _reasons(self, batches: Array) -> dict[tuple[int, int], str]:
        low, high = int(batches.min()), int(batches.max())
        rows = self._db.query("ib", "SELECT batch, reasons FROM jobs WHERE batch BETWEEN ? AND ? "
                           "AND reasons NOT NULL", (low, high))
        return {(batch, id): text for batch, data in rows
                for id, text in self._db.unpack(data, dict[int, str]).items()}

    def _where(self, record: Record, run: int) -> Where | None:
        """The resources of an attempt; None when it never had any."""
        if not record.t_alloc:
            return None
        key = (run, record.r_sched, record.r_id)
        if key not in self._rsets:
            rows = self._db.query("b", "SELECT data FROM rsets WHERE run=? AND sched=? AND r_id=?", key)
            if not rows:
                return None
            r = self._db.unpack(rows[0][0], ResourceSet)
            self._rsets[key] = describe.where(r, self._meta.get(run, {}).get("nodes", []))
        return self._rsets[key]

    # -- one job, closely --------------------------------------------------------------------------------------

    def eventlog(self, id: int) -> list[Event]:
        """What happened to a job, in order."""
        group, attempts = group_of(self.groups, id), self.attempts(id)
        extra = [Event(name, t, self._db.unpack(context, dict[str, Any])) for t, name, context in self._db.query(
            "fsb", "SELECT t, name, context FROM events WHERE id IN (?,?) ORDER BY number",
            (id, schema.group_event_id(group.number)))]
        extra = [Event(name, t, {key: value for key, value in context.items() if key != ELEMENTS})
                 for name, t, context in extra if about(context, id - group.first_id)]
        done = ended(self.history, group, attempts)
        live = None if done else self._running_record(id)
        told = [(self._written.whole(attempt.record), attempt.reason) for attempt in attempts]
        reruns = [(sum(attempt.batch < step.batch for attempt in attempts), step.t)
                  for step in self.history.reruns(group, id)]
        return eventlog(group, self.t_submit[group.number], told, extra, running=live and live[0], ended=done,
                        reruns=reruns)

    def events(self, name: str = "") -> list[tuple[int, Event]]:
        """Every stored event with its job's id; 0 is the instance, below 0 a group (−1 − its number)."""
        rows = self._db.query(
            "ifsb", "SELECT id, t, name, context FROM events WHERE ?1='' OR name=?1 ORDER BY number", (name,))
        return [(id, Event(name, t, self._db.unpack(context, dict[str, Any]))) for id, t, name, context in rows]

    def output(self, id: int, stream: int, attempt: int | None = None) -> bytes:
        """What a job wrote to stdout (1) or stderr (2) in an attempt, by default its latest."""
        found = [a for a in self.attempts(id) if attempt in (None, a.record.attempt)]
        live = self._running_record(id)
        if live and (not found or live[0].attempt > found[-1].record.attempt) and attempt in (None, live[0].attempt):
            return self._written.streamed(id, live[0].attempt, stream)
        return self._written.of(found[-1], stream) if found else b""

    def _add_output(self, job: dict[str, Any], latest: Attempt | None = None) -> None:
        for stream, name in ((STDOUT, "stdout"), (STDERR, "stderr")):
            data = self.output(job["id"], stream) if latest is None else self._written.of(latest, stream)
            job[name] = data.decode("utf-8", "surrogateescape")

    def jobspec(self, id: int) -> dict[str, Any]:
        """What the job asked for, templates filled in."""
        group, attempts = group_of(self.groups, id), self.attempts(id)
        if attempts and ended(self.history, group, attempts):
            group = self.history.group_at(group, attempts[-1].batch)
        compiled = self._compiled.get(group.number)
        if compiled is None or compiled.group != group:
            compiled = self._compiled[group.number] = CompiledGroup(group, str(self.meta.get("workflow_dir", "")))
        return describe.jobspec(compiled, id - group.first_id, max([1, *(a.record.attempt for a in attempts)]))

    def R(self, id: int) -> dict[str, Any] | None:
        """The job's resources by Flux RFC 20; None while it has none."""
        attempts = self.attempts(id)
        if ended(self.history, group_of(self.groups, id), attempts):
            record, run = attempts[-1].record, attempts[-1].run
        else:
            live = self._running_record(id)
            if live is None:
                return None
            record, run = live
        place = self._where(record, run)
        return describe.rfc20(place, record) if place else None

    # -- the KVS -----------------------------------------------------------------------------------------------

    def kvs(self) -> Kvs:
        """The users' keys as they were committed last, versions included."""
        store = Kvs()
        store.load(self._db.query("sBi", "SELECT key, data, version FROM kvs"))
        return store

    def kvs_get(self, key: str) -> Any:
        """A key's value. ``job.ID.…`` and ``job.NAME.INDEX.…`` show a job: see :mod:`kvsview`. Raises NoKey."""
        return kvsview.get(self, key)

    def kvs_data(self, key: str) -> Any:
        """The value of a user's key. Raises NoKey."""
        rows = self._db.query("B", "SELECT data FROM kvs WHERE key=?", (key,))
        if rows and rows[0][0] is not None:
            return self._db.unpack(rows[0][0], Any)
        return self.kvs().get(key)

    def kvs_ls(self, prefix: str = "", *, recursive: bool = False) -> list[str]:
        """Keys below a prefix; directories end in a dot. Jobs are listed only below ``job``."""
        return kvsview.ls(self, prefix, recursive=recursive)


def _named(records: Array) -> list[Any]:
    return [Record._make(row) for row in records.tolist()]
