"""Jobs that run, for clients: what they write as they write it, and signals.

A follower is told what was written before it came from the run directory, and the rest as it arrives; offsets tell
where the one ends and the other begins. Supervisors hear of followers, and then send what a job writes at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mpiflux.instance.broker import Handler, RequestError, Session
from mpiflux.instance.broker_results import Results, output_of
from mpiflux.model import messages as m
from mpiflux.model import requests as r
from mpiflux.model.states import State
from mpiflux.store.jobtable import JobTable
from mpiflux.store.kvs import encode_value
from mpiflux.store.reader import RunReader
from mpiflux.store.schema import RunError

ATTEMPT = 1 << 40
"""A version of a watched ``job.ID.stdout`` is the attempt times this, and how much of it has been told."""

Tell = Callable[[int, int, int, bytes], None]
"""(attempt, stream, offset, data)."""


class _Follower:
    """Who follows one job. ``next`` is where its knowledge of stdout and of stderr ends."""

    def __init__(self, session: Session, sub: int, job: int, streams: tuple[int, ...], tell: Tell) -> None:
        self.session, self.sub, self.job, self.streams, self.tell = session, sub, job, streams, tell
        self.attempt = 0
        self.next = {1: 0, 2: 0}
        self.early: list[tuple[int, int, int, bytes]] | None = None
        """What came while it was still to be told what was before; None once it has been."""
        self.reads = 0
        """Readings of what was before; the latest counts."""

    def piece(self, attempt: int, stream: int, offset: int, data: bytes) -> None:
        if stream not in self.streams or attempt < self.attempt:
            return
        if self.early is not None:
            self.early.append((attempt, stream, offset, data))
            return
        if attempt > self.attempt:
            self.attempt, self.next = attempt, {1: 0, 2: 0}
        known = self.next[stream] - offset
        if known > 0:
            offset, data = offset + known, data[known:]
        if data:
            self.next[stream] = offset + len(data)
            self.tell(attempt, stream, offset, data)

    def caught_up(self, attempt: int, streams: tuple[bytes, bytes]) -> None:
        """What was written before it came."""
        early, self.early = self.early or [], None
        for stream, data in enumerate(streams, 1):
            self.piece(attempt, stream, 0, data)
        for piece in early:
            self.piece(*piece)


class Running:
    """Implements :class:`mpiflux.instance.broker.DeskPart`.

    ``reach`` sends a message down to running jobs, ``chosen`` finds those of a Select.
    """

    def __init__(self, table: JobTable, results: Results, reach: Callable[[m.Listen | m.Signal | m.Stdin], None],
                 chosen: Callable[[r.Select], Any]) -> None:
        self.table, self.results = table, results
        self._reach, self._chosen = reach, chosen
        self._followers: dict[int, dict[tuple[Session, int], _Follower]] = {}
        """By job."""

    def handlers(self) -> Mapping[type, Handler]:
        return {r.Signal: self._signal, r.Follow: self._follow}

    def turn(self, now: float) -> None:
        return

    # -- what happens to jobs --------------------------------------------------------------------------------------

    def started(self, records: Any) -> None:
        """Attempts that run."""
        if self._followers:
            ids = [job for job in records["id"].tolist() if job in self._followers]
            if ids:
                self._reach(m.Listen(tuple(ids)))

    def output(self, message: m.Output) -> None:
        """A piece of what a running job writes."""
        for follower in list(self._followers.get(message.id, {}).values()):
            follower.piece(message.attempt, message.stream, message.offset, message.data)

    def ended(self, records: Any, output: bytes, ids: Any) -> None:
        """Attempts are over; the jobs ``ids`` are for good."""
        if not self._followers:
            return
        for position in np.flatnonzero(np.isin(records["id"], list(self._followers))).tolist():
            job, attempt = int(records["id"][position]), int(records["attempt"][position])
            rest = output_of(records, output, position)
            for follower in list(self._followers[job].values()):
                if follower.early is None:
                    for stream, data in enumerate(rest, 1):
                        offset = follower.next[stream] if follower.attempt == attempt else 0
                        follower.piece(attempt, stream, offset, data)
        for job in ids.tolist():
            for follower in list(self._followers.get(job, {}).values()):
                if follower.early is None:
                    follower.session.ended(follower.sub)
                    self._forget(follower)
                else:
                    # it still waits for what was before: the whole is there by now
                    self._catch_up(follower)

    # -- signals ---------------------------------------------------------------------------------------------------

    def _signal(self, session: Session, number: int, op: r.Signal) -> int:
        if not 0 < op.number < 65:
            raise RequestError("value", f"signal {op.number}: signals have numbers from 1 to 64")
        ids = self._chosen(op.select)
        ids = ids[self.table.state[ids - 1] == State.RUN]
        if len(ids):
            self._reach(m.Signal(tuple(ids.tolist()), op.number))
        return len(ids)

    # -- following -------------------------------------------------------------------------------------------------

    def _follow(self, session: Session, number: int, op: r.Follow) -> Any:
        self._chosen(r.Select(ids=((op.id, op.id + 1),)))

        def tell(attempt: int, stream: int, offset: int, data: bytes) -> None:
            session.say(r.Items(op.sub, [[attempt, stream, offset, data]], 0))

        follower = _Follower(session, op.sub, op.id, op.streams, tell)
        follower.attempt, follower.next = op.attempt, {1: op.offsets[0], 2: op.offsets[1]}
        self._begin(follower)
        return None

    def watch(self, session: Session, op: r.Watch, job: int, stream: int) -> Any:
        """The same as changes of a key, each of which has what was written since the one before."""
        first = op.since < 0

        def tell(attempt: int, stream: int, offset: int, data: bytes) -> None:
            nonlocal first
            version = attempt * ATTEMPT + offset + len(data)
            items: list[list[Any]] = [[op.key, encode_value(data), version]]
            if offset == 0 and attempt > 1 and not first:
                # the job runs again: what it wrote before is gone
                items.insert(0, [op.key, None, attempt * ATTEMPT])
            first = False
            session.say(r.Items(op.sub, items, version))

        follower = _Follower(session, op.sub, job, (stream,), tell)
        if not first:
            follower.attempt, follower.next[stream] = divmod(op.since, ATTEMPT)
        self._begin(follower)
        session.say(r.Items(op.sub, [], max(op.since, 0)))
        return max(op.since, 0)

    def _begin(self, follower: _Follower) -> None:
        session, place, job = follower.session, (follower.session, follower.sub), follower.job
        session.subscribe(follower.sub, lambda: self._forget(follower))
        self._followers.setdefault(job, {})[place] = follower
        state = self.table.state[job - 1]
        if state in (State.RUN, State.INACTIVE):
            follower.early = []
            self._catch_up(follower)
        if state == State.RUN:
            self._reach(m.Listen((job,)))

    def _catch_up(self, follower: _Follower) -> None:
        job = follower.job
        follower.reads += 1
        mine = follower.reads

        def look(reader: RunReader) -> tuple[int, bytes, bytes]:
            return reader.job(job)["attempts"], reader.output(job, 1), reader.output(job, 2)

        def tell(found: Any) -> None:
            if follower.session.gone or mine != follower.reads:
                return
            if isinstance(found, RunError):
                follower.session.ended(follower.sub, str(found))
                self._forget(follower)
                return
            attempt, *streams = found
            follower.caught_up(attempt, (streams[0], streams[1]))
            if self.table.state[job - 1] == State.INACTIVE:
                follower.session.ended(follower.sub)
                self._forget(follower)

        self.results.read(look, tell)

    def _forget(self, follower: _Follower) -> None:
        job = follower.job
        here = self._followers.get(job, {})
        if here.pop((follower.session, follower.sub), None) is not None and not here:
            del self._followers[job]
            if self.table.state[job - 1] == State.RUN:
                self._reach(m.Listen((job,), False))
