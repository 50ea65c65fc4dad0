"""What a supervisor keeps of a job that runs."""

from __future__ import annotations

from mpiflux.model.records import PACK
from mpiflux.model.states import Result
from mpiflux.node.capture import Pipes
from mpiflux.node.launch import Group, Lease
from mpiflux.node.proctree import Trace
from mpiflux.node.stdin import StdinPipe
from mpiflux.node.team import Team

ANNOUNCED = 3
"""The first attempt that is reported as started before it is. One that brings its supervisor down within a moment would
not be known to have begun (:mod:`mpiflux.store.crashes`)."""


class Job:
    """One running attempt. What most attempts never change is a class attribute: that makes short jobs cheaper."""

    pid = 0
    """Its first task, which leads its process group."""
    running = 1
    """Tasks that have not ended."""
    ended = 0.0
    """When the last task ended; its output may still be open."""
    deadline = 0.0
    """When its time limit is reached; 0 without one."""
    kill_at = 0.0
    """When TERM turns into KILL; 0 while nobody wants it to end."""
    live = False
    """Somebody follows what it writes."""
    due = 0.0
    """When what it has written may be sent, where somebody follows it."""
    stdin: StdinPipe | None = None
    """Where it reads what clients write."""
    team: Team | None = None
    """Its tasks, where it is a parallel job."""
    result = Result.NONE
    reason = ""
    returncode = 0
    utime = stime = 0.0
    maxrss = 0
    """KiB."""

    def __init__(self, group: Group, index: int, attempt: int, lease: Lease, pipes: Pipes, now: float) -> None:
        self.group, self.attempt, self.lease, self.pipes = group, attempt, lease, pipes
        self.id = group.first_id + index
        self.t_start = now

    def pack(self, flags: int = 0, out: int = 0, err: int = 0) -> bytes:
        """Its attempt record, with the lengths of the output that goes with it."""
        lease = self.lease
        return PACK.pack(self.id, self.attempt, self.result, flags, self.returncode, lease.tasks, lease.owner,
                         lease.r_id, self.t_start, self.t_start, self.ended, self.utime, self.stime, self.maxrss,
                         out, err, self.pid)

    def trace(self) -> Trace:
        """By what its processes are found."""
        return Trace((self.id, self.attempt), self.pid, frozenset().union(*self.lease.place.cpus), self.pipes.links())
