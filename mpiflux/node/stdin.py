"""What clients write to the stdin of running jobs: a pipe for each such job, filled as fast as the job reads."""

from __future__ import annotations

import fcntl
import os
import select
from collections import deque
from typing import TYPE_CHECKING

from mpiflux.model import messages as m
from mpiflux.node.outbox import Outbox

if TYPE_CHECKING:
    from mpiflux.node.job import Job


class StdinPipe:
    """Our end of one job's stdin."""

    __slots__ = ("eof", "fd", "waiting")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        """−1 once it is closed."""
        self.waiting: deque[bytes] = deque()
        self.eof = False
        """It ends with what waits."""


class Inputs:
    """The pipes of a supervisor. What waits for a job is bounded by its writers, who wait for StdinTaken."""

    def __init__(self, epoll: select.epoll, outbox: Outbox) -> None:
        self._epoll, self._outbox = epoll, outbox
        self.pipes: dict[int, Job] = {}
        """Those that wait for their job to read, by descriptor."""

    def open(self, job: Job, opened: list[int]) -> int:
        """The job's end, which is to be closed with ``opened`` once the job has started. Raises OSError."""
        theirs, ours = os.pipe2(os.O_CLOEXEC)
        opened.append(theirs)
        fcntl.fcntl(ours, fcntl.F_SETFL, os.O_NONBLOCK)
        job.stdin = StdinPipe(ours)
        return theirs

    def write(self, job: Job, message: m.Stdin) -> None:
        pipe = job.stdin
        if pipe is None or job.attempt != message.attempt:
            return
        if pipe.fd < 0:
            self._taken(job, len(message.data))
            return
        if message.data:
            pipe.waiting.append(message.data)
        pipe.eof = pipe.eof or message.eof
        if pipe.fd not in self.pipes:
            self._fill(job, pipe)

    def writable(self, fd: int) -> None:
        """A job has read, or closed its end."""
        job = self.pipes[fd]
        assert job.stdin is not None
        self._fill(job, job.stdin)

    def _fill(self, job: Job, pipe: StdinPipe) -> None:
        taken = 0
        try:
            while pipe.waiting:
                n = os.write(pipe.fd, pipe.waiting[0])
                taken += n
                if n < len(pipe.waiting[0]):
                    pipe.waiting[0] = pipe.waiting[0][n:]
                else:
                    pipe.waiting.popleft()
        except BlockingIOError:
            pass
        except OSError:
            # nobody reads it any more
            taken += sum(map(len, pipe.waiting))
            pipe.waiting.clear()
            pipe.eof = True
        if taken:
            self._taken(job, taken)
        if pipe.waiting and pipe.fd not in self.pipes:
            self.pipes[pipe.fd] = job
            self._epoll.register(pipe.fd, select.EPOLLOUT)
        elif not pipe.waiting:
            if self.pipes.pop(pipe.fd, None) is not None:
                self._epoll.unregister(pipe.fd)
            if pipe.eof:
                os.close(pipe.fd)
                pipe.fd = -1

    def _taken(self, job: Job, size: int) -> None:
        self._outbox.tell(job.lease.owner, m.StdinTaken(job.id, job.attempt, size))

    def close(self, job: Job) -> None:
        """The job has ended."""
        pipe = job.stdin
        if pipe is None or pipe.fd < 0:
            return
        if self.pipes.pop(pipe.fd, None) is not None:
            self._epoll.unregister(pipe.fd)
        os.close(pipe.fd)
        pipe.fd = -1
