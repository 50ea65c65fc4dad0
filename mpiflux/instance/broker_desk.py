"""The desk of the master: the broker and its parts, put together, and told of what happens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mpiflux.instance.broker import LATER, Broker, Handler, RequestError, Session
from mpiflux.instance.broker_events import Streams
from mpiflux.instance.broker_explain import Explaining
from mpiflux.instance.broker_jobs import Jobs
from mpiflux.instance.broker_kvs import Keys
from mpiflux.instance.broker_messages import Messages
from mpiflux.instance.broker_results import Results
from mpiflux.instance.broker_running import Running
from mpiflux.instance.broker_stdin import Stdins
from mpiflux.instance.broker_ties import Ties
from mpiflux.instance.master import Master
from mpiflux.model import messages as m
from mpiflux.model import requests as r
from mpiflux.model.jobspec import JobGroup
from mpiflux.store import kvsview
from mpiflux.store.groups import by_name
from mpiflux.store.kvs import BadKey, Kvs, KvsError, check_key, encode_value
from mpiflux.store.reader import RunReader
from mpiflux.store.schema import RunError


class Desk:
    """Implements :class:`mpiflux.instance.master.Desk`."""

    def __init__(self, master: Master, results: Results, kvs: Kvs, *, instance: str, run_dir: str, cores: int,
                 gpus: int, misfit: Callable[[JobGroup], str], node_of: Callable[[int], str],
                 note: Callable[[str], None]) -> None:
        self._master, self._results = master, results
        self._facts = {"instance": instance, "run_dir": run_dir, "cores": cores, "gpus": gpus,
                       "nodes": list(results.hosts)}
        self._started, self._why = True, ""
        """Whether jobs are started, and why not."""
        ties = Ties(master.table, master.cancel)
        self._jobs = Jobs(master, results, misfit, ties)
        self._running = Running(master.table, results, master.reach, self._jobs.chosen)
        self._stdins = Stdins(master.table, master.reach, master.cancel)
        self._keys = Keys(kvs, master.journal.put_kvs, self._job_key, self._job_ls, self._job_watch,
                          self._one_job)
        self._explaining = Explaining(master, self._stopped)
        self.explained = self._explaining.explained
        streams = Streams(master.feed, self._jobs.selection, self._jobs.is_over, self._jobs.named)
        parts = (self._jobs, ties, self._running, self._stdins, streams, self._keys, Messages(), self._explaining,
                 self)
        self._broker = Broker(parts, instance=instance, run_dir=run_dir, hold=self._hold, node_of=node_of,
                              note=note)
        self.handle, self.farewell = self._broker.handle, self._broker.farewell
        self.collect = self._broker.collect

    def _stopped(self) -> str:
        return "" if self._started else f"nothing is started: the queue was stopped ({self._why or 'no reason given'})"

    # -- what the master says --------------------------------------------------------------------------------------

    def turn(self, now: float) -> None:
        """A part of the broker too: nothing to do for the answers given here."""

    def work(self, now: float) -> None:
        """Once a loop turn of the rank."""
        self._broker.turn(now)

    def descriptors(self) -> list[int]:
        return [self._results.wake_fd]

    def ended(self, place: tuple[int, int], records: Any, report: m.Report, ids: Any) -> None:
        self._results.ended(place, len(records), report)
        self._stdins.ended(ids)
        self._running.ended(records, report.output, ids)
        self._jobs.ended(ids)

    def started(self, records: Any) -> None:
        self._stdins.started(records)
        self._running.started(records)

    def output(self, message: m.Output) -> None:
        self._running.output(message)

    def stdin_taken(self, message: m.StdinTaken) -> None:
        self._stdins.taken(message)

    def resources(self, message: m.NewR) -> None:
        self._results.resources(message)

    def lost(self, endpoint: int) -> None:
        """A rank is lost, and with it the clients who came through its door."""
        self._broker.lost(endpoint)

    def close(self) -> None:
        self._results.close()

    # -- what concerns several parts -------------------------------------------------------------------------------

    def handlers(self) -> Mapping[type, Handler]:
        return {r.Status: self._status, r.Gate: self._gate}

    def _hold(self, session: Session, keep: bool) -> None:
        if keep:
            self._master.holders.add(session)
        else:
            self._master.holders.discard(session)

    def _status(self, session: Session, number: int, op: r.Status) -> dict[str, Any]:
        counts, view = self._master.table.counts(), self._master.view
        return {**self._facts, "t_start": view.t_start, "now": self._master.now(), "clients": len(self._broker),
                "jobs": {"total": counts.total, "depend": counts.depend, "sched": counts.sched, "run": counts.run,
                         "inactive": counts.inactive, "completed": counts.completed, "failed": counts.failed,
                         "canceled": counts.canceled, "timeout": counts.timeout},
                "groups": len(self._master.groups), "ending": self._master.ending,
                "lost_ranks": view.lost_ranks}

    def _gate(self, session: Session, number: int, op: r.Gate) -> dict[str, Any]:
        jobs = self._jobs
        if op.enabled is not None:
            jobs.closed = None if op.enabled else op.reason or jobs.closed or ""
        if op.started is not None:
            self._why = "" if op.started else op.reason or self._why
            if op.started is not self._started:
                self._started = op.started
                self._master.pause("queue", not op.started)
        reasons = dict.fromkeys(why for why in (self._why, jobs.closed) if why)
        return {"enabled": jobs.closed is None, "started": self._started, "reason": "; ".join(reasons)}

    def _job_key(self, session: Session, number: int, key: str) -> Any:
        """``job.ID.what`` and ``job.NAME.INDEX.what``."""
        try:
            names = check_key(key)
        except BadKey as error:
            raise RequestError("value", str(error)) from None
        if len(names) < 3 or names[-1] not in kvsview.JOB_KEYS:
            what = ", ".join("job.ID." + name for name in kvsview.JOB_KEYS)
            raise RequestError("key", f"there is no key {key!r}; a job has {what}")
        first = self._one_job(".".join(names[1:-1]))
        session.wait(number, lambda: None)

        def look(reader: RunReader) -> Any:
            return [encode_value(kvsview.get(reader, f"job.{first}.{names[-1]}")), 0]

        return self._read(session, number, look)

    def _job_watch(self, session: Session, number: int, op: r.Watch) -> Any:
        """``job.ID.stdout`` and ``.stderr``: what is written, as it comes."""
        names = op.key.split(".")
        if names[-1] not in ("stdout", "stderr"):
            raise RequestError("value", f"{op.key}: of a job's keys stdout, stderr and what is below job.ID.guest can "
                                        "be watched; follow its states by its events")
        job = self._one_job(".".join(names[1:-1]))
        return self._running.watch(session, op, job, 1 if names[-1] == "stdout" else 2)

    def _one_job(self, ref: str) -> int:
        """The job that a key names. Raises RequestError."""
        ranges = self._jobs.resolve(ref)
        n = sum(stop - first for first, stop in ranges)
        if n != 1:
            raise RequestError("key", f"there is no key below job.{ref}: {n} jobs are called that; say which one")
        return ranges[0][0]

    def _job_ls(self, session: Session, number: int, op: r.Ls) -> Any:
        session.wait(number, lambda: None)

        def look(reader: RunReader) -> Any:
            reader.named = by_name(reader.groups)
            return kvsview.ls(reader, op.prefix, recursive=op.recursive)

        return self._read(session, number, look)

    def _read(self, session: Session, number: int, look: Callable[[RunReader], Any]) -> Any:
        def answer(reader: RunReader) -> Any:
            try:
                return look(reader)
            except KvsError as error:
                return RequestError("key", str(error))

        def tell(value: Any) -> None:
            if number not in session.waiting:
                return
            if isinstance(value, RequestError):
                session.error(number, value.kind, value.text)
            elif isinstance(value, RunError):
                session.error(number, "job", str(value))
            else:
                session.reply(number, value)

        self._results.read(answer, tell)
        return LATER
