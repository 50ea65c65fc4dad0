"""The state of every job of a run, as NumPy columns: 24 bytes a job and no Python object for any of them.

Pure: time and batch numbers come in as arguments. Rank 0 keeps one table and changes it by whole batches of
attempt records (:mod:`mpiflux.model.records`) and by chunks; the reader of a run directory rebuilds the same
table by applying the stored batches again.

No job rests in CLEANUP here: a record says how an attempt ended, so the events that lead through CLEANUP are
applied together. Which states allow them is computed from :data:`mpiflux.model.states.TRANSITIONS`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from mpiflux.model.jobspec import JobGroup
from mpiflux.model.messages import Chunk
from mpiflux.model.records import FIELDS, FLAG_NOT_STARTED
from mpiflux.model.states import TRANSITIONS, IllegalTransition, Result, State
from mpiflux.store.applied import Applied, Counts
from mpiflux.store.groups import Groups
from mpiflux.store.plain import complete
from mpiflux.store.progressions import progressions
from mpiflux.store.retries import Retries
from mpiflux.store.transitions import ALLOC, END, START

Array = npt.NDArray[Any]

RECORD = np.dtype(list(FIELDS))
"""A batch of attempt records is ``np.frombuffer(data, RECORD)``."""

NOBODY = 0xFFFFFFFF
"""Owner of a job that no child holds."""

_COLUMNS: tuple[tuple[str, str], ...] = (
    ("state", "u1"), ("result", "u1"), ("returncode", "i2"), ("attempt", "u2"), ("owner", "u4"),
    ("retries_used", "u2"), ("batch", "i8"), ("pos", "u4"),
)
BYTES_PER_JOB = sum(np.dtype(kind).itemsize for _, kind in _COLUMNS)


class JobTable:
    """Columns indexed by row = id − 1. Read them freely; change them only by the methods."""

    state: Array
    result: Array
    returncode: Array
    attempt: Array
    """Number of the attempt that is running or comes next; 0 before the first one is handed out."""
    owner: Array
    retries_used: Array
    batch: Array
    """Journal batch of the latest ended record; −1 for none."""
    pos: Array
    """Position in that batch."""

    def __init__(self, eventlog: Callable[[int], object] | None = None) -> None:
        """``eventlog`` gives a job's eventlog for the message of an illegal transition."""
        self.groups = Groups()
        self._n = 0
        self._eventlog = eventlog
        self._first = np.zeros(16, "i8")
        self._retries = Retries(self.groups)
        self._group_results = np.zeros((16, len(Result)), "i8")
        self._states = np.zeros(len(State) + 1, "i8")
        self._results = np.zeros(len(Result), "i8")
        for name, kind in _COLUMNS:
            setattr(self, name, np.zeros(0, kind))

    def __len__(self) -> int:
        return self._n

    @property
    def nbytes(self) -> int:
        """Memory of the columns, spare capacity included."""
        return sum(int(getattr(self, name).nbytes) for name, _ in _COLUMNS)

    # -- growing ---------------------------------------------------------------------------------------------

    def add_group(self, group: JobGroup) -> None:
        """Add a group's jobs: in DEPEND if it waits for others, else in SCHED.

        Raises ValueError unless its number and first id are the next ones.
        """
        if group.number != len(self.groups) or group.first_id != self._n + 1:
            raise ValueError(
                f"group {group.name!r} has number {group.number} and first id {group.first_id}; "
                f"the next ones are {len(self.groups)} and {self._n + 1}")
        index, n, stop = group.number, self._n, self._n + group.count
        self._reserve(stop)
        if index >= len(self._first):
            for name in ("_first", "_group_results"):
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros_like(old)]))
        self._first[index] = n
        self._retries.note(group)
        state = State.DEPEND if group.after else State.SCHED
        self.state[n:stop] = state
        self.owner[n:stop] = NOBODY
        self.batch[n:stop] = -1
        self._states[state] += group.count
        self.groups.append(group)
        self._n = stop

    def redefine(self, group: JobGroup) -> None:
        """A group as it is from now on: the same number and jobs, other retries or whatever else."""
        assert group.count == self.groups[group.number].count, "a group never has more or fewer jobs"
        self._retries.note(group)
        self.groups.replace(group)
        rows = slice(group.first_id - 1, group.stop_id - 1)
        state, untried = self.state[rows], self.attempt[rows] == 0
        before, after = (State.SCHED, State.DEPEND) if group.after else (State.DEPEND, State.SCHED)
        moved = (state == before) & untried
        state[moved] = after
        self._states[before] -= np.count_nonzero(moved)
        self._states[after] += np.count_nonzero(moved)

    def rerun(self, ids: Array) -> Array:
        """Jobs that have ended are to run again, with new attempt numbers and all their retries.

        They are in DEPEND if their group waits for others, else in SCHED. Returns the ids of those that had ended.
        """
        rows = np.unique(np.asarray(ids, "i8")) - 1
        rows = rows[self.state[rows] == State.INACTIVE]
        numbers = np.searchsorted(self._first[:len(self.groups)], rows, "right") - 1
        waits = np.zeros(len(rows), bool)
        for number in np.unique(numbers).tolist():
            waits[numbers == number] = bool(self.groups[number].after)
        results = self.result[rows]
        np.subtract.at(self._group_results, (numbers, results), 1)
        self._results -= np.bincount(results, minlength=len(self._results))
        self._states[State.INACTIVE] -= len(rows)
        again = TRANSITIONS[State.INACTIVE, "rerun"]
        self.state[rows] = np.where(waits, again, TRANSITIONS[again, "depend"])
        self._states += np.bincount(self.state[rows], minlength=len(self._states))
        self.result[rows] = self.returncode[rows] = self.retries_used[rows] = 0
        self.attempt[rows] += self.attempt[rows] > 0
        self.owner[rows] = NOBODY
        again_ids: Array = rows + 1
        return again_ids

    def _reserve(self, rows: int) -> None:
        capacity = len(self.state)
        if rows <= capacity:
            return
        capacity = max(rows, capacity + capacity // 2, 64)
        for name, kind in _COLUMNS:
            column = np.zeros(capacity, kind)
            column[:self._n] = getattr(self, name)[:self._n]
            setattr(self, name, column)

    # -- chunks ----------------------------------------------------------------------------------------------

    def _slice(self, chunk: Chunk) -> slice:
        group = self.groups[chunk.group]
        if not 0 <= chunk.start <= chunk.stop or chunk.step < 1 or (
                len(chunk) and chunk.start + (len(chunk) - 1) * chunk.step >= group.count):
            raise ValueError(f"{chunk} does not lie in group {group.name!r} of {group.count} jobs")
        base = group.first_id - 1
        return slice(base + chunk.start, min(base + chunk.stop, self._n), chunk.step)

    def _check(self, rows: Array | slice, table: Array, event: str) -> Array:
        """The states after ``event``; raises IllegalTransition for the first row that forbids it."""
        before = self.state[rows]
        after = table[before]
        if not after.all():
            where = int(np.flatnonzero(after == 0)[0])
            row = int(rows[where]) if isinstance(rows, np.ndarray) else rows.start + where * rows.step
            self._illegal(row, event)
        return after

    def _illegal(self, row: int, event: str) -> None:
        job = row + 1
        known: object = {"attempt": int(self.attempt[row]), "owner": int(self.owner[row]),
                         "batch": int(self.batch[row])}
        raise IllegalTransition(job, State(int(self.state[row])), event,
                                self._eventlog(job) if self._eventlog else known)

    def depend(self, chunk: Chunk) -> int:
        """The dependencies of these jobs are satisfied: DEPEND → SCHED. Returns how many jobs that moved.

        Jobs past DEPEND are left alone: after a resume part of a group is, and cancelled jobs are.
        """
        rows = self._slice(chunk)
        waiting = self.state[rows] == State.DEPEND
        self.state[rows] = np.where(waiting, TRANSITIONS[State.DEPEND, "depend"], self.state[rows])
        moved = int(np.count_nonzero(waiting))
        self._states[State.DEPEND] -= moved
        self._states[State.SCHED] += moved
        return moved

    def assign(self, chunk: Chunk, owner: int) -> None:
        """Child ``owner`` holds these jobs now, to be tried as attempt ``chunk.attempt``.

        Raises IllegalTransition for a job that is not in SCHED, ValueError for another attempt than the next.
        """
        rows = self._slice(chunk)
        self._check(rows, ALLOC, "alloc")
        current = self.attempt[rows]
        wrong = (current != chunk.attempt) & (current != 0)
        if wrong.any():
            where = int(np.flatnonzero(wrong)[0])
            raise ValueError(f"job {rows.start + where * rows.step + 1}: attempt {chunk.attempt} handed out, "
                             f"{int(current[where])} is the next")
        self.attempt[rows] = chunk.attempt
        self.owner[rows] = owner

    def unassign(self, chunk: Chunk) -> None:
        """These jobs came back unstarted; jobs that have ended or moved on meanwhile are left alone."""
        rows = self._slice(chunk)
        back = (self.state[rows] == State.SCHED) & (self.attempt[rows] == chunk.attempt)
        self.owner[rows] = np.where(back, NOBODY, self.owner[rows])

    def chunks(self, ids: Array) -> list[Chunk]:
        """Jobs as chunks by group and attempt to come, each an arithmetic progression of indices."""
        rows = np.asarray(ids, "i8") - 1
        if not (rows[1:] > rows[:-1]).all():
            rows = np.unique(rows)
        group = np.searchsorted(self._first[:len(self.groups)], rows, "right") - 1
        bounds = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(rows)] if len(rows) else []
        out: list[Chunk] = []
        for low, high in pairwise(bounds):
            number = int(group[low])
            mine = rows[low:high]
            attempt = np.maximum(self.attempt[mine], 1)
            for tried in np.flatnonzero(np.bincount(attempt)).tolist():
                index = mine[attempt == tried] - (self.groups[number].first_id - 1)
                out.extend(Chunk(number, *progression, tried) for progression in progressions(index))
        return out

    def unfinished(self, group: int) -> list[Chunk]:
        """What is still to be done of a group, by attempt to come."""
        g = self.groups[group]
        rows = slice(g.first_id - 1, g.first_id - 1 + g.count)
        if g.count and self._group_results[group].sum() == 0 and not self.attempt[rows].any():
            # a fresh group: millions of jobs are not to be listed only to be called a range again
            return [Chunk(group, 0, g.count, 1, 1)]
        return self.chunks(np.flatnonzero(self.state[rows] != State.INACTIVE) + g.first_id)

    def outstanding_of(self, owner: int) -> list[Chunk]:
        """The jobs that a child holds: started or not, not ended."""
        return self.chunks(self.held_by(owner))

    def held_by(self, owner: int) -> Array:
        """Ids of the jobs that a child holds."""
        n = self._n
        return np.flatnonzero((self.owner[:n] == owner) & (self.state[:n] != State.INACTIVE)) + 1

    # -- records ---------------------------------------------------------------------------------------------

    def _rows(self, records: Array) -> tuple[Array, Array]:
        """Rows, and a mask of those that exist; rows of the others are 0."""
        rows = records["id"].astype("i8") - 1
        known = (rows >= 0) & (rows < self._n)
        if not known.all():
            rows[~known] = 0
        return rows, known

    def started(self, records: Array, *, replay: bool = False) -> Array:
        """Attempts that run: SCHED → RUN. Returns a mask of the records that were news.

        What is said twice, or of a superseded attempt or an ended job, is not. Raises IllegalTransition for a
        job that waits for others. ``replay`` as in :meth:`apply`.
        """
        rows, fresh = self._rows(records)
        if not self._n:
            return fresh
        state = self.state[rows]
        fresh &= (state != State.INACTIVE) & (state != State.RUN)
        fresh &= (self.attempt[rows] <= records["attempt"]) if replay else (self.attempt[rows] == records["attempt"])
        picked = np.flatnonzero(fresh)
        _, once = np.unique(rows[picked], return_index=True)
        if len(once) != len(picked):
            fresh[:] = False
            fresh[picked[once]] = True
        rows = rows[fresh]
        if replay:
            self._release(rows)
            self.attempt[rows] = records["attempt"][fresh]
        self.state[rows] = self._check(rows, START, "alloc")
        self._states[State.SCHED] -= len(rows)
        self._states[State.RUN] += len(rows)
        return fresh

    def apply(
        self, records: Array, batch: int | Array, pos: int | Array = 0, *, replay: bool = False,
    ) -> Applied:
        """Attempts that ended.

        A job ends, unless the attempt was LOST, or FAILED or TIMEOUT with retries left (attempt 0, never handed
        out, has none): then it is in SCHED again, held by nobody, and its attempt number is one up, which is
        what makes a late record of the old attempt recognisable. LOST uses up no retry.

        ``batch`` and ``pos`` say where the journal holds the first record (arrays: each record). ``replay``
        takes any attempt number not below the current one and any job in DEPEND that was tried: neither handing
        out nor satisfied dependencies are journaled. Raises IllegalTransition, with nothing changed, when a
        record contradicts its job's state.
        """
        n = len(records)
        plain = None if replay else complete(self, records, batch, pos)
        if plain is not None:
            return self._count_plain(plain)
        rows, good = self._rows(records)
        none, repeated = np.zeros(0, "i8"), np.zeros(n, bool)
        if not self._n or not n:
            return Applied(~good, repeated, none, none.astype("u1"), none, repeated, {})
        attempts, results = records["attempt"], records["result"]
        current, state = self.attempt[rows], self.state[rows]
        ran = good & (state == State.RUN)
        good &= (attempts >= current) if replay else (attempts == current)
        good &= (state != State.INACTIVE) & (results - np.uint8(1) < Result.LOST)
        late = ~good
        index = np.arange(n)
        if late.any():
            index = np.flatnonzero(good)
            rows, records = rows[index], records[index]
        if replay:
            self._release(rows[records["attempt"] > 0])
        after = END[_unstarted(records), (records["result"] == Result.LOST).astype("u1"), self.state[rows]]
        if not after.all():
            self._illegal(int(rows[int(np.flatnonzero(after == 0)[0])]), "finish")
        # Of several writes to one place NumPy keeps the last: written backwards, a job's first record stays.
        mine = np.arange(len(rows), dtype="u4")
        self.pos[rows[::-1]] = mine[::-1]
        first = self.pos[rows] == mine
        if not first.all():
            repeated[index[~first]] = True
            index, rows, records = index[first], rows[first], records[first]
        self.pos[rows] = pos[index] if isinstance(pos, np.ndarray) else index + pos
        self.batch[rows] = batch[index] if isinstance(batch, np.ndarray) else batch
        return self._end(rows, records, late, repeated, ran)

    def replay(self, records: Array, batch: Array, pos: Array) -> None:
        """Apply a whole history at once; several records of one job take their turns."""
        while len(records):
            left = self.apply(records, batch, pos, replay=True).repeated
            records, batch, pos = records[left], batch[left], pos[left]

    def _release(self, rows: Array) -> None:
        rows = np.unique(rows[self.state[rows] == State.DEPEND])
        self.state[rows] = State.SCHED
        self._states[State.DEPEND] -= len(rows)
        self._states[State.SCHED] += len(rows)

    def _end(self, rows: Array, records: Array, late: Array, repeated: Array, ran: Array) -> Applied:
        """Change the rows of accepted records, one record a row."""
        results = records["result"]
        groups = self._groups_of(rows)
        again = results == Result.LOST
        limits = self._retries.limits[groups]
        if limits.any():
            failed = self._retries.wanted(groups, limits, self.retries_used[rows], records)
            self.retries_used[rows] += failed
            again |= failed
        self._states -= np.bincount(self.state[rows], minlength=len(self._states))
        self.returncode[rows] = records["returncode"]
        self.attempt[rows] = records["attempt"] + again
        self.owner[rows] = NOBODY
        if again.any():
            self.state[rows] = END[_unstarted(records), again.astype("u1"), self.state[rows]]
            repeat, done = rows[again], ~again
            rows, results = rows[done], results[done]
            groups = groups[done] if isinstance(groups, np.ndarray) else groups
        else:
            repeat = rows[:0]
            self.state[rows] = State.INACTIVE
        self.result[rows] = results
        self._states[State.SCHED] += len(repeat)
        self._states[State.INACTIVE] += len(rows)
        tally = self._tally(groups, results)
        return Applied(late, repeated, rows + 1, results, repeat + 1, ran, tally)

    def _count_plain(self, applied: Applied) -> Applied:
        """Add a plain batch to the totals: its jobs were all in one state."""
        (group, (n, *_)), = applied.groups.items()
        self._states[State.RUN if applied.ran[0] else State.SCHED] -= n
        self._states[State.INACTIVE] += n
        self._results[Result.COMPLETED] += n
        self._group_results[group, Result.COMPLETED] += n
        return applied

    def delays(self, ids: Array) -> list[tuple[float, Array]]:
        """Jobs to be tried again after a failure, by the seconds that they are to wait; 0 where they need not."""
        if not self._retries.patient or not len(ids):
            return [(0.0, ids)]
        rows = np.asarray(ids, "i8") - 1
        numbers = np.searchsorted(self._first[:len(self.groups)], rows, "right") - 1
        used = self.retries_used[rows].astype("i8")
        return [(seconds, np.sort(ids[places])) for seconds, places in self._retries.delays(numbers, used)]

    def running(self, records: Array) -> Array:
        """Mask of the records that are of attempts that are known to run."""
        rows, known = self._rows(records)
        found: Array = known & (self.attempt[rows] == records["attempt"]) & (self.state[rows] == State.RUN)
        return found

    def current(self, records: Array) -> Array:
        """Mask of the records that are of their jobs' current attempts."""
        rows, known = self._rows(records)
        found: Array = known & (self.attempt[rows] == records["attempt"])
        return found

    def here(self, ids: Array) -> Array:
        """Those of these jobs that wait for nothing but to be handed out."""
        rows = np.asarray(ids, "i8") - 1
        found: Array = ids[(self.state[rows] == State.SCHED) & (self.owner[rows] == NOBODY)]
        return found

    def group_of(self, job: int) -> int:
        """The number of the group that a job id is of."""
        return int(np.searchsorted(self._first[:len(self.groups)], job - 1, "right")) - 1

    def _groups_of(self, rows: Array) -> Array | int:
        """Group number of each row, or one number when all are of one group."""
        if not len(rows):
            return 0
        first = self._first[:len(self.groups)]
        low, high = np.searchsorted(first, [rows.min(), rows.max()], "right") - 1
        return int(low) if low == high else np.searchsorted(first, rows, "right") - 1

    def _tally(self, groups: Array | int, results: Array) -> dict[int, tuple[int, int, int, int]]:
        width = len(self._results)
        out: dict[int, tuple[int, int, int, int]] = {}
        if not len(results):
            return out
        base = groups if isinstance(groups, int) else int(groups.min())
        cells: Array = np.bincount(results if isinstance(groups, int) else (groups - base) * width + results)
        cells = np.concatenate([cells, np.zeros(-len(cells) % width, "i8")]).reshape(-1, width)
        self._results += cells.sum(0)
        self._group_results[base:base + len(cells)] += cells
        for offset in np.flatnonzero(cells.any(1)).tolist():
            c = cells[offset].tolist()
            out[base + offset] = (c[1], c[2], c[3], c[4])
        return out

    def synthesize(self, ids: Array, result: Result, now: float, returncode: int = 0) -> Array:
        """Records for jobs that nobody will report: cancelled before they were handed out, lost with a rank.

        Applying and journaling them like any others keeps one way of ending. Jobs that have ended are left
        out.
        """
        rows = np.unique(np.asarray(ids, "i8")) - 1
        rows = rows[self.state[rows] != State.INACTIVE]
        records = np.zeros(len(rows), RECORD)
        records["id"] = rows + 1
        records["attempt"] = self.attempt[rows]
        records["result"] = result
        records["returncode"] = returncode
        records["flags"] = np.where(self.state[rows] == State.RUN, 0, FLAG_NOT_STARTED)
        records["t_finish"] = now
        return records

    # -- totals ----------------------------------------------------------------------------------------------

    def counts(self) -> Counts:
        """Totals over all jobs, in constant time."""
        s, r = self._states.tolist(), self._results.tolist()
        return Counts(self._n, s[1], s[2], s[3], s[5], r[1], r[2], r[3], r[4])

    @property
    def over(self) -> bool:
        """Whether all jobs have ended, in constant time."""
        return int(self._states[State.INACTIVE]) == self._n

    def group_ended(self, group: int) -> tuple[int, int, int, int]:
        """Jobs of a group that ended COMPLETED, FAILED, CANCELED, TIMEOUT, in constant time."""
        c = self._group_results[group].tolist()
        return c[1], c[2], c[3], c[4]

    def is_over(self, group: int) -> bool:
        """Whether all jobs of a group have ended, in constant time."""
        stop = int(self._first[group + 1]) if group + 1 < len(self.groups) else self._n
        return int(self._group_results[group].sum()) == stop - int(self._first[group])

    def group_counts(self, group: int) -> Counts:
        """Totals over one group, by a look at its rows."""
        g = self.groups[group]
        s = np.bincount(self.state[g.first_id - 1:g.stop_id - 1], minlength=len(State) + 1).tolist()
        return Counts(g.count, s[1], s[2], s[3], s[5], *self.group_ended(group))


def _unstarted(records: Array) -> Array:
    flag: Array = (records["flags"] & FLAG_NOT_STARTED) != 0
    return flag.astype("u1")
