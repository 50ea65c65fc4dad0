"""What a supervisor sends to its schedulers: reports, gathered until they are worth a message, and output at once."""

from __future__ import annotations

import select
from collections import deque

from mpiflux.model import messages as m
from mpiflux.model.records import FLAG_NOT_STARTED, FLAG_REASON, NO_R, PACK, SIZE
from mpiflux.model.states import Result
from mpiflux.node import outside
from mpiflux.node.link import Link

FLUSH = 0.05
"""Longest time in seconds that the record of a job waits while others run; jobs that last longer do not wait."""
_FINISH = 10
"""The place of ``t_finish`` in a record."""
_BY_THEMSELVES = (Result.COMPLETED, Result.FAILED)
CONGESTED = 8 << 20
"""Bytes that may wait to be sent before no more output is read and no more jobs are started."""
_NEVER = float("inf")


class Report:
    """A report to one scheduler in the making."""

    __slots__ = ("done", "idle", "output", "reasons", "records", "returned", "started")

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.output: list[bytes] = []
        self.started: list[bytes] = []
        self.reasons: dict[int, str] = {}
        self.returned: list[tuple[int, m.Chunk]] = []
        self.idle: list[int] = []
        self.done: dict[tuple[int, int], list[float]] = {}
        """(jobs, seconds) by (shape, group)."""

    def unstarted(self, job: int, attempt: int, shape: int, group: int, why: m.Cancel, now: float) -> None:
        """A job that ended in the backlog."""
        self.records.append(PACK.pack(job, attempt, why.result, FLAG_NOT_STARTED | FLAG_REASON, 0, 0, NO_R, 0,
                                      now, now, now, 0, 0, 0, 0, 0, 0))
        self.reasons[job] = why.reason
        self.count(shape, group, 0.0)

    def count(self, shape: int, group: int, seconds: float, jobs: int = 1) -> None:
        """So many jobs of a shape and a group are over; they took so many seconds in all."""
        key = (shape, group)
        done = self.done.get(key)
        if done is None:
            self.done[key] = [jobs, seconds]
        else:
            done[0] += jobs
            done[1] += seconds

    def message(self) -> m.Report:
        return m.Report(b"".join(self.records), b"".join(self.output), self.reasons, b"".join(self.started),
                        tuple(self.returned), tuple(self.idle),
                        tuple((*key, int(n), seconds) for key, (n, seconds) in self.done.items()))


class Outbox:
    """The sending side of a supervisor's link. ``number`` is the supervisor's endpoint."""

    def __init__(self, link: Link, number: int, epoll: select.epoll) -> None:
        self.link, self._number, self._epoll = link, number, epoll
        self._fd = link.fileno()
        self._sending = False
        epoll.register(self._fd, select.EPOLLIN)
        self._recent: deque[bytes] = deque()
        """Records that were sent lately."""
        self.reports: dict[int, Report] = {}
        self.oldest = 0.0
        """Time of the oldest record that waits to be sent; 0 when none does."""
        self.urgent = False
        """Somebody should hear what is in the reports without delay."""

    @property
    def congested(self) -> bool:
        """Whether the rank does not keep up."""
        return self.link.backlog > CONGESTED

    @property
    def due(self) -> float:
        """When what waits is to be sent; infinity when nothing does."""
        return self.oldest + FLUSH if self.oldest else _NEVER

    def report(self, owner: int) -> Report:
        """The report to a scheduler that is in the making."""
        found = self.reports.get(owner)
        if found is None:
            found = self.reports[owner] = Report()
        return found

    def flush(self) -> None:
        """Send all reports. Raises LinkClosed."""
        self.oldest = 0.0
        self.urgent = False
        if self.reports:
            items: list[tuple[int, int, m.Message]] = [
                (owner, self._number, report.message()) for owner, report in self.reports.items()]
            for report in self.reports.values():
                if report.records:
                    self.remember(b"".join(report.records))
            self.reports.clear()
            self._send(m.encode(items))

    def remember(self, records: bytes) -> None:
        """These are being sent: :meth:`ended_since` knows them for a while."""
        recent = self._recent
        recent.append(records)
        old = _last_end(records) - outside.AROUND
        while _last_end(recent[0]) < old:
            recent.popleft()

    def ended_since(self, when: float) -> list[tuple[int, int]]:
        """(job, attempt) of those that have ended by themselves since then, reported or not; ``when`` is at most
        :data:`mpiflux.node.outside.AROUND` seconds ago."""
        waiting = (records for report in self.reports.values() for records in report.records)
        found = (record for records in (*self._recent, *waiting) for record in PACK.iter_unpack(records))
        return [record[:2] for record in found
                if record[_FINISH] >= when and record[2] in _BY_THEMSELVES and not record[3] & FLAG_NOT_STARTED]

    def tell(self, owner: int, message: m.Message) -> None:
        """Send one message now. Raises LinkClosed."""
        self._send(m.encode([(owner, self._number, message)]))

    def _send(self, frame: bytes) -> None:
        self.link.send(frame)
        self._watch()

    def go_on(self) -> None:
        """Send more of what the link did not take. Raises LinkClosed."""
        if self._sending:
            self.link.flush()
            self._watch()

    def _watch(self) -> None:
        # hear of room on the link only while something waits for it
        if bool(self.link.backlog) is not self._sending:
            self._sending = not self._sending
            self._epoll.modify(self._fd, select.EPOLLIN | (select.EPOLLOUT if self._sending else 0))


def _last_end(records: bytes) -> float:
    """When the last of these jobs ended."""
    end: float = PACK.unpack_from(records, len(records) - SIZE)[_FINISH]
    return end
