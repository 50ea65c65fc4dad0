"""What a supervisor has to tell its schedulers, gathered until it is worth a message."""

from __future__ import annotations

from mpiflux.model import messages as m
from mpiflux.model.records import FLAG_NOT_STARTED, FLAG_REASON, NO_R, PACK


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

    def count(self, shape: int, group: int, seconds: float) -> None:
        """One job of a shape and a group is over."""
        key = (shape, group)
        done = self.done.get(key)
        if done is None:
            self.done[key] = [1, seconds]
        else:
            done[0] += 1
            done[1] += seconds

    def message(self) -> m.Report:
        return m.Report(b"".join(self.records), b"".join(self.output), self.reasons, b"".join(self.started),
                        tuple(self.returned), tuple(self.idle),
                        tuple((*key, int(n), seconds) for key, (n, seconds) in self.done.items()))
