"""A supervisor's parallel jobs: their PMI, the parts of jobs that span nodes, and the end of all when one task ends.

Jobs of one task without MPI never come here.
"""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING

from mpiflux.model import messages as m
from mpiflux.model.pmi import Abort, Action, BarrierEntered
from mpiflux.model.records import FLAG_NOT_STARTED, FLAG_REASON, PACK
from mpiflux.model.states import Result
from mpiflux.node.job import Job
from mpiflux.node.launch import Group, Lease
from mpiflux.node.pmi import remove_segments
from mpiflux.node.team import Team
from mpiflux.node.wording import ending

if TYPE_CHECKING:
    from mpiflux.node.supervisor import Supervisor

GRACE = 5.0
"""Seconds between TERM and KILL for tasks of a job of which one has failed."""


class Parallel:
    """Belongs to a supervisor, which calls it when something happens to such a job."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._parts: dict[int, Job] = {}
        """Parts that run here, by job id."""
        self.sockets: dict[int, Job] = {}
        """PMI sockets to wait on, and the job of each."""
        self.instance = os.urandom(4).hex()
        """Tells instances apart."""
        self._held: list[tuple[int, m.Part]] = []
        """Parts that came while nothing is to be started, and who sent them."""

    # -- starting ------------------------------------------------------------------------------------------------

    def team(self, group: Group, job: int, attempt: int, tasks: int, part: m.Part | None) -> Team:
        """For a new attempt of a job that has ``tasks`` tasks here."""
        host = self._supervisor.launcher.node_name
        counts = (tasks,) if part is None else part.tasks
        name = ""
        if group.parallel:
            # all parts have to come to the same name by themselves
            name = f"mpiflux_{self.instance}_{job}_{attempt}"
            if attempt > 1:
                # when its supervisor was killed, there was nobody left to do this
                remove_segments(f"mpiflux_{self.instance}_{job}_{attempt - 1}", len(counts))
        kind: type[Team] = Team
        if group.spec.mpi == "pmix":
            from mpiflux.node.openmpi import MpirunTeam

            kind = MpirunTeam
        team = kind(counts, part.part if part is not None else 0, part.hosts if part is not None else host, host, name)
        team.message, team.null = part, self._supervisor.null
        return team

    def create_flags(self, job: Job) -> int:
        """How to open a file that a job writes: its parts on other nodes append to what the first one makes."""
        part = job.team.message if job.team is not None else None
        if part is None:
            return os.O_TRUNC
        return os.O_APPEND if part.part else os.O_APPEND | os.O_TRUNC

    def start_part(self, src: int, message: m.Part) -> None:
        """Start this node's tasks of a job that spans nodes."""
        supervisor = self._supervisor
        if not supervisor.outside.quiet:
            self._held.append((src, message))
            return
        lease = Lease(-1, src, -1, 0, message.share.tasks, supervisor.launcher.place(message.share))
        supervisor.start(lease, supervisor.groups[message.group], message.index, message.attempt, supervisor.clock(),
                         message)

    def start_held(self) -> None:
        """Start what had to wait."""
        held, self._held = self._held, []
        for src, message in held:
            self.start_part(src, message)

    def drop_held(self, why: m.Cancel | None) -> None:
        """Parts that wait are not to be started; those who sent them hear of those that are cancelled."""
        supervisor, now = self._supervisor, self._supervisor.clock()
        for src, part in list(self._held):
            if why is not None and why.ids and part.id not in why.ids:
                continue
            self._held.remove((src, part))
            if why is None:
                continue
            flags = FLAG_NOT_STARTED | FLAG_REASON
            record = PACK.pack(part.id, part.attempt, why.result, flags, 0, 0, src, 0, now, now, now, 0, 0, 0, 0, 0, 0)
            supervisor.outbox.tell(src, m.PartEnded(part.id, part.attempt, part.part, record, b"", why.reason))

    def started(self, job: Job, team: Team) -> None:
        """All tasks of a job exist."""
        if team.pmi is not None:
            for fd in team.pmi.fds():
                self.sockets[fd] = job
                self._supervisor.epoll.register(fd, select.EPOLLIN)
        if team.message is not None:
            self._parts[job.id] = job
            self._tell(job, m.PartStarted(job.id, job.attempt, team.part, job.t_start, job.pid))

    # -- PMI -----------------------------------------------------------------------------------------------------

    def readable(self, fd: int, now: float) -> None:
        """A task has said something on its PMI socket, or has closed it."""
        job = self.sockets[fd]
        team = job.team
        assert team is not None and team.pmi is not None
        actions = team.pmi.on_readable(fd)
        if not team.pmi.serves(fd):
            del self.sockets[fd]
        self._act(job, team, actions, now)

    def barrier_done(self, message: m.BarrierDone, now: float) -> None:
        """All nodes are in the barrier."""
        job = self._parts.get(message.id)
        if job is not None and job.attempt == message.attempt and job.team is not None and job.team.pmi is not None:
            self._act(job, job.team, job.team.pmi.complete_barrier(message.puts), now)
            self._forget_closed(job.team)

    def _act(self, job: Job, team: Team, actions: list[Action], now: float) -> None:
        for action in actions:
            if isinstance(action, Abort):
                self._forget_closed(team)
                self._fail(job, team, *team.aborted(action), now)
            elif isinstance(action, BarrierEntered):
                self._tell(job, m.Barrier(job.id, job.attempt, team.part, action.puts))
        self._check_deserted(job, team, now)

    def _forget_closed(self, team: Team) -> None:
        for fd in [fd for fd, job in self.sockets.items() if job.team is team]:
            if team.pmi is None or not team.pmi.serves(fd):
                del self.sockets[fd]

    def _check_deserted(self, job: Job, team: Team, now: float) -> None:
        gone = team.deserted()
        if gone >= 0:
            self._fail(job, team, 1, f"{team.name(gone)} ended while others waited for it in a PMI barrier "
                                     "(in MPI_Init or MPI_Finalize)", now)

    # -- ending --------------------------------------------------------------------------------------------------

    def task_ended(self, job: Job, team: Team, pid: int, status: int, now: float) -> None:
        """One task has ended; ``job.running`` says how many are left."""
        rank = team.alive[pid]
        if team.pmi is not None:
            # it may have said why
            fd = team.pmi.fd_of(rank)
            if fd >= 0:
                self.readable(fd, now)
        del team.alive[pid]
        if status:
            code = os.waitstatus_to_exitcode(status)
            outside = self._supervisor.outside.killed(code)
            own = f"{team.name(rank)} {ending(code)}" if team.size > 1 or team.starts_all else ""
            self._fail(job, team, code, outside or own, now, Result.LOST if outside else Result.FAILED)
        else:
            self._check_deserted(job, team, now)

    def _fail(self, job: Job, team: Team, code: int, reason: str, now: float, result: Result = Result.FAILED) -> None:
        """End a job for the first thing that went wrong in it."""
        if job.kill_at or job.result is not Result.NONE:
            return
        job.returncode = code
        if job.running:
            self._supervisor.endings.end(job, result, reason, now, GRACE)
        else:
            job.result, job.reason = result, reason
        if team.message is not None:
            self._tell(job, m.PartFailed(job.id, job.attempt, team.part, result, code, reason))

    def finished(self, job: Job, team: Team) -> None:
        """Nothing of the job runs here any more, and its output has ended."""
        for fd in [fd for fd, other in self.sockets.items() if other is job]:
            del self.sockets[fd]
        if job.result is Result.COMPLETED:
            job.reason = job.reason or team.oddity()
        team.close()
        if self._parts.get(job.id) is job:
            del self._parts[job.id]

    def ended(self, job: Job, team: Team, record: bytes, output: bytes) -> None:
        """Report the end of a part."""
        self._supervisor.outbox.remember(record)
        self._tell(job, m.PartEnded(job.id, job.attempt, team.part, record, output, job.reason))

    def _tell(self, job: Job, message: m.Message) -> None:
        self._supervisor.outbox.tell(job.lease.owner, message)
