"""What is known of single jobs, for clients: from memory while it is recent, else from the run directory.

Reading the directory is left to a thread: rank 0's loop waits for no disk.
"""

from __future__ import annotations

import bisect
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, MutableSequence, Sequence
from typing import Any

import numpy as np

from mpiflux.model import messages as m
from mpiflux.model.records import FIELDS, FLAG_REASON, FLAG_STREAMED
from mpiflux.model.states import State
from mpiflux.store import describe
from mpiflux.store.describe import Where
from mpiflux.store.eventlog import Record
from mpiflux.store.jobtable import JobTable
from mpiflux.store.journal import Journal
from mpiflux.store.reader import RunReader, open_run
from mpiflux.store.schema import RunError

RECORD = np.dtype(list(FIELDS))
RECENT_BYTES = 16 << 20
"""Records and output that are kept at hand."""
_REPORT = 512
"""Bytes of memory that a report takes beside these."""

Done = Callable[[Any], None]
"""Gets what a reading gave: a value, or the RunError that it raised."""


class _Recent:
    """A report that came: where the journal has it, and what is in it."""

    __slots__ = ("n", "output", "place", "reasons", "records")

    def __init__(self, place: tuple[int, int], n: int, records: bytes, output: bytes, reasons: dict[int, str]) -> None:
        self.place, self.n, self.records, self.output, self.reasons = place, n, records, output, reasons


class Results:
    """Job records by id. ``hosts`` are the names of the instance's nodes; ``t_submit`` is by group number."""

    def __init__(self, table: JobTable, journal: Journal, hosts: Sequence[str],
                 t_submit: MutableSequence[float], run_dir: str) -> None:
        self.table, self.journal, self.hosts, self.t_submit = table, journal, hosts, t_submit
        self._run_dir = run_dir
        self._recent: deque[_Recent] = deque()
        self._bytes = 0
        self._where: dict[tuple[int, int], Where] = {}
        self._running: dict[int, Record] = {}
        self._todo: deque[tuple[int, Callable[[RunReader], Any], Done]] = deque()
        self._given: queue.SimpleQueue[tuple[Callable[[RunReader], Any], Done] | None] = queue.SimpleQueue()
        self._taken: queue.SimpleQueue[tuple[Any, Done]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    # -- what comes in ---------------------------------------------------------------------------------------------

    def ended(self, place: tuple[int, int], n: int, report: m.Report) -> None:
        """A report was journaled at ``place``."""
        self._recent.append(_Recent(place, n, report.records, report.output, report.reasons))
        self._bytes += _REPORT + len(report.records) + len(report.output)
        while self._bytes > RECENT_BYTES:
            old = self._recent.popleft()
            self._bytes -= _REPORT + len(old.records) + len(old.output)

    def resources(self, message: m.NewR) -> None:
        self._where[message.sched, message.r_id] = describe.where(message.r, self.hosts)

    # -- one job ---------------------------------------------------------------------------------------------------

    def record(self, id: int, *, output: bool, done: Done) -> None:
        """The job record as it is now: ``done`` is called at once, or in a later :meth:`turn`."""
        found = self._at_hand(id, output)
        if found is not None:
            done(found)
        else:
            self.read(lambda reader: _read(reader, id, output), done)

    def _at_hand(self, id: int, output: bool) -> dict[str, Any] | None:
        table, row = self.table, id - 1
        state = State(table.state[row])
        group = table.groups[table.group_of(id)]
        t_submit = self.t_submit[group.number]
        if state in (State.DEPEND, State.SCHED):
            tried = max(int(table.attempt[row]) - 1, 0)
            record = describe.job(group, id, t_submit, state, None, None, "", tried)
            return {**record, "stdout": b"", "stderr": b""} if output else record
        if state != State.INACTIVE:
            return None
        recent = self._find(int(table.batch[row]), int(table.pos[row]))
        if recent is None:
            return None
        batch, position = recent
        last = Record._make(np.frombuffer(batch.records, RECORD)[position].item())
        if output and last.flags & FLAG_STREAMED:
            return None
        reason = batch.reasons.get(id, "") if last.flags & FLAG_REASON else ""
        place = self._where.get((last.r_sched, last.r_id)) if last.t_alloc else None
        record = describe.job(group, id, t_submit, state, last, place, reason)
        if output:
            record["stdout"], record["stderr"] = output_of(
                np.frombuffer(batch.records, RECORD), batch.output, position)
        return record

    def _find(self, batch: int, pos: int) -> tuple[_Recent, int] | None:
        at = bisect.bisect(self._recent, (batch, pos), key=lambda recent: recent.place) - 1
        if at >= 0:
            found = self._recent[at]
            if found.place[0] == batch and pos < found.place[1] + found.n:
                return found, pos - found.place[1]
        return None

    # -- from the run directory ------------------------------------------------------------------------------------

    def read(self, what: Callable[[RunReader], Any], done: Done) -> None:
        """Call ``what`` with a reader that sees everything so far, then ``done`` with what it gave, in a turn."""
        self._todo.append((self.journal.flush(), what, done))

    def turn(self) -> None:
        committed = self.journal.committed_seq
        while self._todo and self._todo[0][0] <= committed:
            _, what, done = self._todo.popleft()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="results", daemon=True)
                self._thread.start()
            self._given.put((what, done))
        if self._thread is None:
            return
        try:
            os.eventfd_read(self.wake_fd)
        except BlockingIOError:
            return
        while not self._taken.empty():
            value, done = self._taken.get()
            done(value)

    def _work(self) -> None:
        reader: RunReader | None = None
        while (task := self._given.get()) is not None:
            what, done = task
            value: Any
            try:
                if reader is None:
                    reader = open_run(self._run_dir)
                    # as they are here: the reader would unpack every group again to see a new one
                    reader.groups, reader.t_submit = self.table.groups, self.t_submit
                value = what(reader)
            except RunError as error:
                value = error
            except Exception as error:
                value = RunError(f"{self._run_dir}: {error!r}")
            self._taken.put((value, done))
            os.eventfd_write(self.wake_fd, 1)
        if reader is not None:
            reader.close()

    def close(self) -> None:
        if self._thread is not None:
            self._given.put(None)
            self._thread.join()
        os.close(self.wake_fd)


def _read(reader: RunReader, id: int, output: bool) -> dict[str, Any]:
    record = reader.job(id)
    if output:
        record["stdout"], record["stderr"] = reader.output(id, 1), reader.output(id, 2)
    return record


def output_of(records: Any, output: bytes, position: int) -> tuple[bytes, bytes]:
    """What a record of a report has of stdout and stderr with it; ``output`` is that of all its records."""
    out_len, err_len = int(records["out_len"][position]), int(records["err_len"][position])
    if not (out_len or err_len):
        return b"", b""
    before = records[:position]
    at = int(before["out_len"].sum(dtype="u8") + before["err_len"].sum(dtype="u8"))
    middle = at + out_len
    return output[at:middle], output[middle:middle + err_len]
