"""What clients write to jobs: kept until the job runs, and then sent as fast as it reads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from mpiflux.instance.broker import Handler, RequestError, Session
from mpiflux.model import messages as m
from mpiflux.model import requests as r
from mpiflux.model.jobspec import STDIN
from mpiflux.model.states import State
from mpiflux.store.jobtable import JobTable

WINDOW = 1 << 20
"""Bytes that may wait for one job before who writes has to wait too; also what is kept for an attempt that comes
after."""
MOST = 64 << 20
"""Bytes that may wait for one job at all."""
_PIECE = 1 << 18


class _Input:
    """The stdin of one job."""

    def __init__(self) -> None:
        self.attempt = 0
        """That it is sent to; 0 while none runs."""
        self.pieces: deque[bytes] = deque()
        """To be sent."""
        self.written = self.sent = self.taken = 0
        """Bytes since the beginning."""
        self.eof = self.eof_sent = False
        self.kept: list[bytes] | None = []
        """All that was written, for another attempt; None when that is too much."""
        self.writers: deque[tuple[int, Session, int]] = deque()
        """Who waits for an answer: (bytes up to what it wrote, session, call)."""


class Stdins:
    """Those of all jobs that have one. Implements :class:`mpiflux.instance.broker.DeskPart`."""

    def __init__(self, table: JobTable, reach: Callable[[m.Listen | m.Signal | m.Stdin], None],
                 cancel: Callable[[Any, str], int]) -> None:
        self.table, self._reach, self._cancel = table, reach, cancel
        self._inputs: dict[int, _Input] = {}

    def handlers(self) -> Mapping[type, Handler]:
        return {r.Stdin: self._write}

    def turn(self, now: float) -> None:
        return

    def _write(self, session: Session, number: int, op: r.Stdin) -> Any:
        table = self.table
        if not 0 < op.id <= len(table):
            raise RequestError("job", f"no job {op.id}: there are {len(table)} jobs, from 1")
        if table.groups[table.group_of(op.id)].input != STDIN:
            raise RequestError("value", f"job {op.id} reads no stdin from here: submit it with --input={STDIN} "
                                        f"(in Python and the workflow file, input: '{STDIN}')")
        if table.state[op.id - 1] == State.INACTIVE:
            raise RequestError("value", f"job {op.id} has ended: it reads nothing any more")
        found = self._inputs.setdefault(op.id, _Input())
        if found.eof:
            if op.eof and not op.data:
                return None
            raise RequestError("value", f"the stdin of job {op.id} was closed")
        if found.written - found.taken + len(op.data) > MOST:
            raise RequestError("value", f"more than {MOST >> 20} MiB wait for job {op.id} to read them; wait for the "
                                        "answers to what was written before")
        self._take(found, op)
        self._send(op.id, found)
        if found.written - found.taken <= WINDOW or not number:
            return None
        answer = session.wait(number, lambda: None)
        found.writers.append((found.written, session, number))
        return answer

    def _take(self, found: _Input, op: r.Stdin) -> None:
        found.eof = op.eof
        found.written += len(op.data)
        found.pieces.extend(op.data[at:at + _PIECE] for at in range(0, len(op.data), _PIECE))
        if found.kept is not None:
            found.kept.append(op.data)
            if found.written > WINDOW:
                found.kept = None

    def _send(self, job: int, found: _Input) -> None:
        if not found.attempt:
            # a job that runs already was reported before anybody wrote to it
            row = job - 1
            if self.table.state[row] != State.RUN:
                return
            found.attempt = int(self.table.attempt[row])
        while found.pieces and found.sent - found.taken < WINDOW:
            data = found.pieces.popleft()
            found.sent += len(data)
            found.eof_sent = found.eof and not found.pieces
            self._reach(m.Stdin((job,), found.attempt, data, found.eof_sent))
        if found.eof and not found.eof_sent and not found.pieces:
            found.eof_sent = True
            self._reach(m.Stdin((job,), found.attempt, b"", True))

    def taken(self, message: m.StdinTaken) -> None:
        """The job has read."""
        found = self._inputs.get(message.id)
        if found is None or found.attempt != message.attempt:
            return
        found.taken += message.size
        self._send(message.id, found)
        while found.writers and found.writers[0][0] - found.taken <= WINDOW:
            _, session, number = found.writers.popleft()
            if number in session.waiting:
                session.reply(number, None)

    def started(self, records: Any) -> None:
        """Attempts that run."""
        if not self._inputs:
            return
        for job, attempt in zip(records["id"].tolist(), records["attempt"].tolist(), strict=True):
            found = self._inputs.get(job)
            if found is None or found.attempt == attempt:
                continue
            if found.attempt and found.sent:
                if found.kept is None:
                    self._cancel([job], f"it runs again, and of its stdin more than {WINDOW >> 20} MiB are not kept")
                    continue
                found.pieces = deque(found.kept)
                found.sent = found.taken = 0
            found.attempt, found.eof_sent = attempt, False
            self._send(job, found)

    def ended(self, ids: Any) -> None:
        """Jobs are over."""
        if not self._inputs:
            return
        for job in ids.tolist():
            found = self._inputs.pop(job, None)
            for _, session, number in found.writers if found is not None else ():
                if number in session.waiting:
                    session.error(number, "value", f"job {job} has ended before it read all of this")
