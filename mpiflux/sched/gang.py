"""Jobs that span nodes: parts on several executors, seen as one attempt by everybody above.

A gang collects what its parts report into one attempt record, exchanges what their tasks put into PMI's key-value
space, and ends all parts when one of them fails. Its resources are free when the last part has ended, never before.
"""

from __future__ import annotations

from collections.abc import Sequence

from mpiflux.model import messages as m
from mpiflux.model.records import (
    FLAG_NOT_STARTED,
    FLAG_REASON,
    FLAG_STDERR_TRUNCATED,
    FLAG_STDOUT_TRUNCATED,
    FLAG_STREAMED,
    PACK,
)
from mpiflux.model.states import Result

Action = tuple[int, m.Message]
"""(destination endpoint, message)."""

_NO_RECORD = (0,) * 17
_RESULT, _FLAGS, _RETURNCODE, _START, _FINISH, _UTIME, _STIME, _MAXRSS, _OUT, _ERR = 2, 3, 4, 9, 10, 11, 12, 13, 14, 15


class _Part:
    """One node's part of a gang."""

    __slots__ = ("ended", "executor", "host", "message", "output", "reason", "record", "sent", "started")

    def __init__(self, executor: int, host: str, message: m.Part) -> None:
        self.executor, self.host, self.message = executor, host, message
        self.sent = self.started = self.ended = False
        self.record: tuple[float, ...] = _NO_RECORD
        self.output = b""
        self.reason = ""


class Gang:
    """One attempt of a job that spans nodes. What is to be sent gathers in ``out``.

    ``parent`` hears of the attempt as of any other; ``in_turn``: the first part starts before the others do, as it
    makes the files that they append to. ``limit`` is in bytes for each stream, over all parts.
    """

    def __init__(self, token: int, parts: Sequence[tuple[int, str, m.Part]], *, sched: int, r_id: int, parent: int,
                 limit: int, in_turn: bool, now: float) -> None:
        first = parts[0][2]
        self.token, self.id, self.attempt = token, first.id, first.attempt
        self.parts = [_Part(*part) for part in parts]
        self.out: list[Action] = []
        self.over = False
        """Nothing of it is left anywhere, and its end was reported."""
        self._sched, self._r_id, self._parent, self._limit, self._t_alloc = sched, r_id, parent, limit, now
        self._result = Result.NONE
        """How the first thing that went wrong ends the job; NONE while all is well."""
        self._returncode, self._reason = 0, ""
        self._entered: set[int] = set()
        self._puts: dict[bytes, bytes] = {}
        self._streamed = [0, 0]
        self._cut = [False, False]
        self._t_start, self._pid = 0.0, 0
        self._send(self.parts[:1] if in_turn else self.parts)

    # -- what happens --------------------------------------------------------------------------------------------

    def started(self, src: int, message: m.PartStarted) -> None:
        part = self._part(src, message.part)
        if part is None or part.started:
            return
        part.started = True
        self._t_start = min(self._t_start or message.t_start, message.t_start)
        if part is self.parts[0]:
            self._pid = message.pid
        if self._result is Result.NONE:
            self._send([one for one in self.parts if not one.sent])
        if all(one.started for one in self.parts):
            self.out.append((self._parent, m.Report(started=self._record(Result.NONE, 0, 0.0, 0, 0))))

    def failed(self, src: int, message: m.PartFailed) -> None:
        part = self._part(src, message.part)
        if part is not None:
            self._fail(Result(message.result), message.returncode, message.reason, part)

    def ended(self, src: int, message: m.PartEnded, now: float) -> None:
        part = self._part(src, message.part)
        if part is None:
            return
        part.ended, part.output, part.reason = True, message.output, message.reason
        part.record = PACK.unpack(message.record)
        result = Result(int(part.record[_RESULT]))
        if result is not Result.COMPLETED:
            self._fail(result, int(part.record[_RETURNCODE]), message.reason, part)
        self._check_barrier()
        self._finish(now)

    def lost(self, executor: int, now: float) -> None:
        """An executor died with all that it ran."""
        for part in self.parts:
            if part.executor == executor and part.sent and not part.ended:
                part.ended = True
                reason = f"the supervisor of its tasks on {part.host} was killed"
                if self._result is Result.FAILED:
                    # tasks elsewhere fail when those they talk to are killed: that was not their fault
                    self._result, self._returncode, self._reason = Result.LOST, 0, reason
                self._fail(Result.LOST, 0, reason, part)
        self._finish(now)

    def cancelled(self, message: m.Cancel, now: float) -> None:
        """The executors are told by the caller, once each."""
        if self._result is Result.NONE:
            self._result, self._reason = Result(message.result), message.reason
        self._forget_unsent()
        self._finish(now)

    def stopped(self) -> None:
        """The run is interrupted: nothing more is started, and executors end what runs by themselves."""
        if self._result is Result.NONE:
            self._result, self._reason = Result.LOST, "the run was interrupted"
        self._forget_unsent()

    def barrier(self, src: int, message: m.Barrier) -> None:
        """Also of a job that is being ended: tasks that end by themselves when asked meet in MPI_Finalize."""
        part = self._part(src, message.part)
        if part is None:
            return
        self._entered.add(message.part)
        self._puts.update(message.puts)
        if len(self._entered) == len(self.parts):
            done = m.BarrierDone(self.id, self.attempt, self._puts)
            self.out += [(one.executor, done) for one in self.parts]
            self._entered, self._puts = set(), {}
        else:
            self._check_barrier()

    def output(self, message: m.Output) -> None:
        """A piece of a part's stream becomes a piece of the job's, at the end of what came before."""
        number = message.stream - 1
        offset = self._streamed[number]
        data = message.data[:max(self._limit - offset, 0)]
        if len(data) < len(message.data):
            self._cut[number] = True
        if data:
            self._streamed[number] += len(data)
            self.out.append((self._parent, m.Output(self.id, self.attempt, message.stream, offset, data)))

    def executors(self) -> set[int]:
        """Who still runs something of it."""
        return {part.executor for part in self.parts if part.sent and not part.ended}

    # -- inside --------------------------------------------------------------------------------------------------

    def _part(self, src: int, number: int) -> _Part | None:
        """The part that an executor speaks of; None when it has ended, as far as we are concerned."""
        part = self.parts[number]
        return part if part.executor == src and not part.ended else None

    def _send(self, parts: Sequence[_Part]) -> None:
        for part in parts:
            part.sent = True
            self.out.append((part.executor, part.message))

    def _fail(self, result: Result, returncode: int, reason: str, culprit: _Part | None) -> None:
        """End the other parts, the first time."""
        if self._result is not Result.NONE:
            return
        self._result, self._returncode, self._reason = result, returncode, reason
        why = m.Cancel((self.id,), reason, result)
        others = {part.executor for part in self.parts if part.sent and not part.ended and part is not culprit}
        self.out += [(executor, why) for executor in sorted(others)]
        self._forget_unsent()

    def _forget_unsent(self) -> None:
        for part in self.parts:
            if not part.sent:
                part.ended = True

    def _check_barrier(self) -> None:
        """Tasks that wait for others which have ended well would wait for ever."""
        if self._entered and self._result is Result.NONE:
            gone = next((part for part in self.parts if part.ended), None)
            if gone is not None:
                self._fail(Result.FAILED, 1, f"its tasks on {gone.host} ended while others waited for them in a PMI "
                                             "barrier (in MPI_Init or MPI_Finalize)", None)

    def _finish(self, now: float) -> None:
        if self.over or not all(part.ended for part in self.parts):
            return
        self.over = True
        result = self._result if self._result is not Result.NONE else Result.COMPLETED
        codes = (int(part.record[_RETURNCODE]) for part in self.parts)
        returncode = self._returncode or next((code for code in codes if code), 0)
        if result is Result.COMPLETED and all(part.reason for part in self.parts):
            # what is odd about each of them is so of the job
            self._reason = self.parts[0].reason
        flags = FLAG_REASON if self._reason else 0
        if not self._t_start:
            flags |= FLAG_NOT_STARTED
        if any(self._streamed):
            flags |= FLAG_STREAMED
        out, err = self._rest()
        for number, flag in enumerate((FLAG_STDOUT_TRUNCATED, FLAG_STDERR_TRUNCATED)):
            if self._cut[number] or any(int(part.record[_FLAGS]) & flag for part in self.parts):
                flags |= flag
        finish = max([float(part.record[_FINISH]) for part in self.parts if part.record[_FINISH]], default=now)
        record = self._record(result, returncode, finish, len(out), len(err), flags)
        reasons = {self.id: self._reason} if self._reason else {}
        self.out.append((self._parent, m.Report(record, out + err, reasons)))

    def _rest(self) -> tuple[bytes, bytes]:
        """What was not streamed of stdout and of stderr, part after part."""
        outs, errs = [], []
        for part in self.parts:
            out = int(part.record[_OUT])
            outs.append(part.output[:out])
            errs.append(part.output[out:out + int(part.record[_ERR])])
        streams = []
        for number, pieces in enumerate((outs, errs)):
            data, room = b"".join(pieces), max(self._limit - self._streamed[number], 0)
            self._cut[number] = self._cut[number] or len(data) > room
            streams.append(data[:room])
        return streams[0], streams[1]

    def _record(self, result: Result, returncode: int, finish: float, out: int, err: int, flags: int = 0) -> bytes:
        records = [part.record for part in self.parts]
        starts = [float(record[_START]) for record in records if record[_START]]
        start = self._t_start or min(starts, default=self._t_alloc)
        tasks = sum(self.parts[0].message.tasks) if self._t_start else 0
        return PACK.pack(self.id, self.attempt, result, flags, returncode, tasks, self._sched, self._r_id,
                         min(self._t_alloc, start), start, finish, sum(record[_UTIME] for record in records),
                         sum(record[_STIME] for record in records), max(int(record[_MAXRSS]) for record in records),
                         out, err, self._pid)


class Gangs:
    """All gangs of a scheduler."""

    def __init__(self) -> None:
        self._gangs: dict[int, Gang] = {}
        """By job id; an attempt is never begun before the one before it is over."""
        self._over: list[Gang] = []

    def __len__(self) -> int:
        return len(self._gangs)

    def add(self, gang: Gang) -> list[Action]:
        self._gangs[gang.id] = gang
        return self._taken(gang)

    def receive(self, src: int, message: m.Message, now: float) -> list[Action] | None:
        """A message of an executor; None when it is about no gang. Take what is :meth:`over` afterwards."""
        if not isinstance(message, (m.PartStarted, m.PartFailed, m.PartEnded, m.Barrier, m.Output)):
            return None
        gang = self._gangs.get(message.id)
        if gang is None or gang.attempt != message.attempt:
            # of a job on one node, or too late
            return None if isinstance(message, m.Output) else []
        if isinstance(message, m.Output):
            gang.output(message)
        elif isinstance(message, m.PartStarted):
            gang.started(src, message)
        elif isinstance(message, m.PartFailed):
            gang.failed(src, message)
        elif isinstance(message, m.Barrier):
            gang.barrier(src, message)
        else:
            gang.ended(src, message, now)
        return self._taken(gang)

    def reached(self, message: m.Listen | m.Signal | m.Stdin) -> set[int]:
        """The executors that this is for; only a job's first task reads its stdin."""
        gangs = [self._gangs[job] for job in message.ids if job in self._gangs]
        if isinstance(message, m.Stdin):
            return {gang.parts[0].executor for gang in gangs if not gang.parts[0].ended}
        return {executor for gang in gangs for executor in gang.executors()}

    def cancel(self, message: m.Cancel, now: float) -> tuple[set[int], list[Action]]:
        """(executors that the message is to be passed on to, what else is to be sent)."""
        executors: set[int] = set()
        out: list[Action] = []
        for gang in ([self._gangs[job] for job in message.ids if job in self._gangs] if message.ids
                     else list(self._gangs.values())):
            executors |= gang.executors()
            gang.cancelled(message, now)
            out += self._taken(gang)
        return executors, out

    def lost(self, executor: int, now: float) -> list[Action]:
        """An executor died."""
        out: list[Action] = []
        for gang in list(self._gangs.values()):
            gang.lost(executor, now)
            out += self._taken(gang)
        return out

    def stop(self) -> None:
        for gang in self._gangs.values():
            gang.stopped()

    def over(self) -> list[Gang]:
        """Those that have ended since this was last asked: their resources are free."""
        ended, self._over = self._over, []
        return ended

    def _taken(self, gang: Gang) -> list[Action]:
        if gang.over:
            del self._gangs[gang.id]
            self._over.append(gang)
        out, gang.out = gang.out, []
        return out
