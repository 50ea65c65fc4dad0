"""The output of jobs that live longer than a moment: read as it comes, sent on in pieces, held back under pressure."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

from mpiflux.model import messages as m
from mpiflux.node.capture import SPILL, Stream
from mpiflux.node.outbox import Outbox

if TYPE_CHECKING:
    from mpiflux.node.job import Job

LIVE = 0.5
"""Seconds between pieces of a running job's output."""
FOLLOWED = 0.02
"""The same where somebody follows it; the first piece after a pause is sent at once."""


class Outputs:
    """Streams that a supervisor waits on."""

    def __init__(self, epoll: select.epoll, outbox: Outbox) -> None:
        self._epoll, self._outbox = epoll, outbox
        self.streams: dict[int, tuple[Job, Stream]] = {}
        """By descriptor."""
        self._held = False
        self.next_live = self._next_all = 0.0
        """When the next pieces are due, while there are streams; and those of jobs that nobody follows."""

    def watch(self, job: Job, now: float) -> None:
        """Read this job's output from now on; it ends with its last writer."""
        if not self.streams:
            self.next_live = self._next_all = now + LIVE
        for stream in (job.pipes.out, job.pipes.err):
            stream.release()
            if stream.fd >= 0 and stream.fd not in self.streams:
                self.streams[stream.fd] = (job, stream)
                if not self._held:
                    self._epoll.register(stream.fd, select.EPOLLIN)

    def follow(self, job: Job, on: bool, now: float) -> None:
        """Send what this job writes as it comes, or no longer."""
        job.live = on
        if on:
            self.watch(job, now)
            self.next_live = now

    def read(self, fd: int, now: float) -> Job:
        """Take what a stream has; returns its job."""
        job, stream = self.streams[fd]
        if stream.read():
            del self.streams[fd]
        if job.live and stream.size:
            if now >= job.due:
                job.due = now + FOLLOWED
                self._spill(job, stream)
            else:
                self.next_live = min(self.next_live, job.due)
        if stream.size >= SPILL:
            self._spill(job, stream)
            if self._outbox.congested:
                self._hold()
        return job

    def drain(self, stream: Stream) -> bool:
        """Read all that is there; True at the end of the stream."""
        fd = stream.fd
        if stream.read(1 << 12):
            self.streams.pop(fd, None)
        return stream.fd < 0

    def forget(self, job: Job) -> None:
        """Close a job's output, whoever still writes to it."""
        for stream in (job.pipes.out, job.pipes.err):
            self.streams.pop(stream.fd, None)
            stream.close()

    def send_pieces(self, now: float) -> None:
        """What has come of the streams that are due since the last time."""
        everything = now >= self._next_all
        if everything:
            self._next_all = now + LIVE
        self.next_live = self._next_all
        for job, stream in self.streams.values():
            if not stream.size:
                continue
            if everything or (job.live and now >= job.due):
                job.due = now + FOLLOWED
                self._spill(job, stream)
            elif job.live:
                self.next_live = min(self.next_live, job.due)

    def _spill(self, job: Job, stream: Stream) -> None:
        offset, data = stream.spill()
        number = 1 if stream is job.pipes.out else 2
        self._outbox.tell(job.lease.owner, m.Output(job.id, job.attempt, number, offset, data))

    def _hold(self) -> None:
        # what is left in the pipes makes the jobs wait, instead of filling our memory
        if not self._held:
            self._held = True
            for fd in self.streams:
                self._epoll.unregister(fd)

    def relieve(self) -> None:
        """Read again, once the rank keeps up."""
        if self._held and not self._outbox.congested:
            self._held = False
            for fd in self.streams:
                self._epoll.register(fd, select.EPOLLIN)
