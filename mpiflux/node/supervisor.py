"""The process that starts user processes, watches them, and reports what became of them.

It is forked before MPI is initialised and has one connection, to its rank. Work arrives as leases (resources) and
index ranges (jobs); it starts the next job of a lease in the same turn in which the last one ended. A job that ends
within milliseconds costs one ``posix_spawn``, one ``wait4``, a read of each of its pipes and a record: everything else
(epoll, started records, live output) is done only for jobs that live longer than :data:`YOUNG`.
"""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Callable, Sequence

from mpiflux.model import messages as m
from mpiflux.model.records import (
    FLAG_NOT_STARTED,
    FLAG_REASON,
    FLAG_STDERR_TRUNCATED,
    FLAG_STDOUT_TRUNCATED,
    FLAG_STREAMED,
)
from mpiflux.model.states import Result
from mpiflux.node import orders, outside, proctree
from mpiflux.node.backlog import Backlog, Span, Waiting
from mpiflux.node.burst import Burst
from mpiflux.node.capture import Pipes
from mpiflux.node.endings import Endings
from mpiflux.node.job import ANNOUNCED, Job
from mpiflux.node.launch import CannotStart, Group, Launcher, Lease, cannot, open_files
from mpiflux.node.link import Link, LinkClosed
from mpiflux.node.outbox import FLUSH, Outbox
from mpiflux.node.outputs import Outputs
from mpiflux.node.outside import Outside
from mpiflux.node.parallel import Parallel
from mpiflux.node.patience import Patience
from mpiflux.node.shortage import Shortage
from mpiflux.node.stdin import Inputs

YOUNG = 0.01
"""Seconds after which a running job is reported as started and its output is read as it comes."""
STALE = 0.05
"""A backlog that has not moved for this long goes back to the scheduler, which may know an idle lease elsewhere."""
_IDLE = 60.0
_NEVER = float("inf")


class Supervisor:
    """See the module's text. ``run`` returns when the rank says so, is gone, or has been silent for ``patience``
    seconds (0: however long)."""

    def __init__(self, link: Link, launcher: Launcher, number: int, clock: Callable[[], float] = time.monotonic,
                 patience: float = 0.0) -> None:
        self.link, self.launcher, self.number, self.clock = link, launcher, number, clock
        self.groups: dict[int, Group] = {}
        self.leases: dict[int, Lease] = {}
        self.idle: dict[int, list[Lease]] = {}
        """Leases without a job, by shape."""
        self.shortage = Shortage()
        self.backlog: dict[int, Backlog] = {}
        """By shape."""
        self.jobs: dict[int, Job] = {}
        """Running tasks by pid."""
        self.lingering: dict[int, Job] = {}
        """Jobs that have ended but for their output, by id: their pids may be others' already."""
        self.young: deque[Job] = deque()
        self.spare: list[Pipes] = []
        """Pipes that wait for their next job."""
        self.endings = Endings(self.jobs, self.lingering, self.soon)
        self.parallel = Parallel(self)
        self.due = 0.0
        """When :meth:`timers` has something to do, or earlier."""
        self.done = False
        self.patience = Patience(patience, clock())
        self.stopping: set[int] = set()
        """Schedulers that wait to hear that nothing runs any more,"""
        self.answer_at = 0.0
        """and when they may at the earliest."""
        self.scheduler = -1
        """Who is to hear of what concerns no job."""
        self.outside = Outside(clock)
        self.signals = self.outside.fd
        self.link_fd = link.fileno()
        self.epoll = select.epoll()
        self.epoll.register(self.signals, select.EPOLLIN)
        self.outbox = Outbox(link, number, self.epoll)
        self.outputs = Outputs(self.epoll, self.outbox)
        self.inputs = Inputs(self.epoll, self.outbox)
        self.null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self.burst: Burst | None = None

    # -- the loop ------------------------------------------------------------------------------------------------

    def run(self, frames: Sequence[bytes] = ()) -> None:
        """``frames``: what came together with the first one."""
        try:
            # whoever dies without this has not died of a job
            self.outbox.tell(self.number, m.Alive())
            self.accept(frames, self.clock())
            while not self.done:
                self.turn()
        except LinkClosed:
            pass
        finally:
            proctree.kill_everything()

    def turn(self) -> None:
        now = self.clock()
        events = self.epoll.poll(self.due - now if self.due > now else 0, 64)
        now = self.clock()
        for fd, _ in events:
            if fd == self.signals:
                self.outside.read()
                self.reap(now)
            elif fd == self.link_fd:
                self.communicate(now)
            elif fd in self.outputs.streams:
                self.read_output(fd, now)
            elif fd in self.parallel.sockets:
                self.parallel.readable(fd, now)
            elif fd in self.inputs.pipes:
                self.inputs.writable(fd)
        if self.outside.news:
            self.warned(now)
        if self.idle:
            self.start_jobs()
        if now >= self.due:
            self.timers(now)
        if self.outbox.urgent or not self.jobs:
            self.flush()

    def soon(self, when: float) -> None:
        """Have :meth:`timers` called at ``when``."""
        if when < self.due:
            self.due = when

    def timers(self, now: float) -> None:
        young = self.young
        while young and (young[0].ended or young[0].t_start + YOUNG <= now):
            job = young.popleft()
            if not job.ended:
                self.grow_up(job, now)
        for job in self.endings.enforce(now):
            self.outputs.forget(job)
            self.let_go(job, now)
        if self.outside.quiet:
            if self.backlog:
                self.return_stale(now)
            self.parallel.start_held()
        if self.shortage.leases and now >= self.shortage.at:
            for lease in self.shortage.take():
                self.idle.setdefault(lease.shape, []).append(lease)
            self.start_jobs()
        outbox, outputs = self.outbox, self.outputs
        if outputs.streams and now >= outputs.next_live:
            outputs.send_pieces(now)
        if now >= self.endings.sweep_at:
            self.reap(now)
            self.endings.sweep(now)
        if now >= self.patience.next and self.patience.over(now):
            self.done = True
        if now >= outbox.due:
            outbox.flush()
        self.due = self.next_due(now)

    def next_due(self, now: float) -> float:
        answer = self.answer_at if self.stopping and self.answer_at > now else _NEVER
        return min(self.due_of_jobs(), now + STALE if self.backlog else _NEVER, self.outbox.due, self.outside.due,
                   answer, now + _IDLE)

    def due_of_jobs(self) -> float:
        """When something is to be done for jobs that run, or have run."""
        young = self.young
        while young and young[0].ended:
            young.popleft()
        return min(
            young[0].t_start + YOUNG if young else _NEVER,
            self.shortage.at if self.shortage.leases else _NEVER,
            self.outputs.next_live if self.outputs.streams else _NEVER,
            self.endings.due,
            self.patience.next,
        )

    def keep_time(self, now: float) -> bool:
        """:meth:`timers` within a burst, whose jobs they do not know; False when there is more to do than that."""
        if now >= self.due_of_jobs():
            return False
        self.return_stale(now)
        if self.outbox.urgent or now >= self.outbox.due:
            self.outbox.flush()
        self.due = self.next_due(now)
        return True

    # -- messages ------------------------------------------------------------------------------------------------

    def communicate(self, now: float) -> None:
        """Send what waits, take what came."""
        self.outbox.go_on()
        self.outputs.relieve()
        self.accept(self.link.receive(), now)

    def accept(self, frames: Sequence[bytes], now: float) -> None:
        for frame in frames:
            for _dst, src, message in m.decode(frame):
                self.handle(src, message, now)

    def handle(self, src: int, message: m.Message, now: float) -> None:
        if isinstance(message, m.Feed):
            if self.stopping:
                return
            backlog = self.backlog.setdefault(message.shape, Backlog(src, now))
            backlog.feed((Span(self.groups[chunk.group], chunk) for chunk in message.chunks), now)
            self.soon(now + STALE)
        elif isinstance(message, m.Grant):
            share = message.r.shares[0]
            lease = Lease(message.lease, src, message.shape, message.r_id, share.tasks, self.launcher.place(share))
            self.leases[message.lease] = lease
            self.launcher.stay_behind(len(self.leases) == 1)
            self.idle.setdefault(message.shape, []).append(lease)
        elif isinstance(message, m.Declare):
            self.groups[message.group.number] = Group(message, self.launcher.base)
            self.scheduler = src
        elif isinstance(message, m.Forget):
            for group in message.groups:
                self.groups.pop(group, None)
        elif isinstance(message, m.Cancel):
            orders.cancel(self, message, now)
        elif isinstance(message, (m.Listen, m.Signal, m.Stdin)):
            orders.reach(self, message, now)
        elif isinstance(message, m.Part):
            if not self.stopping:
                self.parallel.start_part(src, message)
        elif isinstance(message, m.BarrierDone):
            self.parallel.barrier_done(message, now)
        elif isinstance(message, m.Stop):
            orders.stop(self, src, message, now)
        elif isinstance(message, m.Alive):
            self.patience.heard(now - message.age)
            self.outbox.tell(src, message)
        elif isinstance(message, m.Shutdown):
            self.done = True
        elif isinstance(message, m.Revoke) and message.lease in self.leases:
            self.leases[message.lease].revoked = True

    def warned(self, now: float) -> None:
        """A signal has come from outside: start nothing for now, and tell what can not be believed."""
        number, self.outside.news = self.outside.news, 0
        self.answer_at = now
        self.soon(self.outside.due)
        if self.scheduler >= 0:
            # before the ends that it is the cause of
            self.outbox.tell(self.scheduler, m.Warned(number, tuple(self.outbox.ended_since(now - outside.AROUND))))

    # -- starting ------------------------------------------------------------------------------------------------

    def start_jobs(self) -> None:
        if self.outbox.congested:
            # what is not started needs no memory
            return
        while self.idle and self.outside.quiet:
            shape, leases = self.idle.popitem()
            for lease in [lease for lease in leases if lease.revoked]:
                leases.remove(lease)
                self.end_lease(lease)
            backlog = self.backlog.get(shape)
            # a burst is the last thing to begin: no other lease would get a job before it is over
            if (not self.idle and leases and backlog is not None and self.burst is not None
                    and self.burst.run(shape, leases, backlog)):
                if self.outbox.congested:
                    return
                continue
            for lease in leases:
                backlog = self.backlog.get(shape)
                if backlog is None:
                    self.end_lease(lease)
                else:
                    self.start_next(lease, backlog)

    def start_next(self, lease: Lease, backlog: Backlog) -> None:
        """Start the first job of a backlog."""
        now = self.clock()
        group, index, attempt = backlog.next(now)
        if not backlog.count:
            del self.backlog[lease.shape]
        elif backlog.count == backlog.low:
            self.outbox.urgent = True
        self.start(lease, group, index, attempt, now)

    def end_lease(self, lease: Lease) -> None:
        del self.leases[lease.number]
        self.launcher.stay_behind(len(self.leases) == 1)
        self.outbox.report(lease.owner).idle.append(lease.number)
        self.outbox.urgent = True

    def start(self, lease: Lease, group: Group, index: int, attempt: int, now: float,
              part: m.Part | None = None) -> None:
        pipes = self.spare.pop() if self.spare else Pipes()
        job = Job(group, index, attempt, lease, pipes, now)
        if lease.tasks > 1 or group.parallel or part is not None:
            job.team = self.parallel.team(group, job.id, attempt, lease.tasks, part)
            # its tasks spin while they wait for our answers
            self.launcher.stay_behind(False)
        if attempt >= ANNOUNCED and (job.team is None or job.team.message is None):
            self.outbox.report(lease.owner).started.append(job.pack())
            self.outbox.flush()
        opened: list[int] = []
        try:
            pipes.begin(group.limit)
            fds = (self.null, pipes.out.child_fd, pipes.err.child_fd)
            if group.reads and (job.team is None or not job.team.first):
                fds = (self.inputs.open(job, opened), *fds[1:])
            if group.files:
                fds = open_files(group, index, attempt, fds, opened, self.parallel.create_flags(job))
            pids = self.launcher.start(group, lease.place, index, attempt, fds, job.team)
        except OSError as error:
            self.cannot_start(job, index, cannot(error, os.fsdecode(error.filename or "cannot start")))
            return
        except CannotStart as error:
            self.cannot_start(job, index, error)
            return
        finally:
            for fd in opened:
                os.close(fd)
        self.shortage.since = 0.0
        self.adopt(job, pids)
        if job.team is not None:
            self.parallel.started(job, job.team)
        if len(self.leases) > 1:
            self.launcher.unbind()

    def adopt(self, job: Job, pids: list[int]) -> None:
        """Watch a job that has been started."""
        job.pid = pids[0]
        job.running = len(pids)
        for pid in pids:
            self.jobs[pid] = job
        self.young.append(job)
        self.soon(job.t_start + YOUNG)
        if limit := job.group.spec.time_limit:
            job.deadline = job.t_start + limit
            self.endings.wake_for(job, job.deadline)

    def cannot_start(self, job: Job, index: int, error: CannotStart) -> None:
        lease, now = job.lease, self.clock()
        self.inputs.close(job)
        if job.team is not None:
            self.parallel.finished(job, job.team)
        if lease.tasks > 1:
            # some of its tasks may have been started, and are dying
            job.pipes.close()
        if error.passing and lease.number >= 0 and self.shortage.bears(lease, now):
            backlog = self.backlog.setdefault(lease.shape, Backlog(lease.owner, now))
            backlog.put_back(Waiting(job.group, index, job.attempt))
            self.soon(self.shortage.at)
            self.recycle(job.pipes)
            return
        job.returncode, job.reason = error.returncode, str(error)
        job.result = Result.FAILED
        job.ended = now
        self.finish(job, FLAG_NOT_STARTED)

    # -- ending --------------------------------------------------------------------------------------------------

    def reap(self, now: float) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self.reaped(pid, status, usage.ru_utime, usage.ru_stime, usage.ru_maxrss, now)
            if not self.jobs:
                # strays that have ended are waited for when the next job ends, or by the sweep
                return

    def reaped(self, pid: int, status: int, utime: float, stime: float, maxrss: int, now: float) -> None:
        """A child has been waited for; ``maxrss`` is in KiB."""
        job = self.jobs.pop(pid, None)
        if job is None:
            return
        job.utime += utime
        job.stime += stime
        job.maxrss = max(job.maxrss, maxrss)
        if status:
            job.returncode = job.returncode or os.waitstatus_to_exitcode(status)
        job.running -= 1
        if job.team is not None:
            self.parallel.task_ended(job, job.team, pid, status, now)
        if not job.running:
            self.process_ended(job, now)

    def process_ended(self, job: Job, now: float) -> None:
        # it may have been started after the turn of the loop that sees its end had begun
        job.ended = now if now > job.t_start else self.clock()
        nobody_left = self.endings.strays.none(len(self.jobs))
        ended = True
        for stream in (job.pipes.out, job.pipes.err):
            if nobody_left and stream.child_fd >= 0:
                stream.collect()
            elif stream.fd >= 0:
                stream.release()
                ended = self.outputs.drain(stream) and ended
        if ended:
            if not nobody_left:
                self.endings.end_background(job, now)
            self.finish(job)
            return
        # somebody whom the job left behind still holds its output
        self.lingering[job.id] = job
        self.watch_output(job, now)
        self.endings.linger(job, now)

    def finish(self, job: Job, flags: int = 0) -> None:
        lease, pipes = job.lease, job.pipes
        out, err = pipes.out, pipes.err
        if job.stdin is not None:
            self.inputs.close(job)
        if job.result is Result.NONE:
            job.result = Result.FAILED if job.returncode else Result.COMPLETED
            if reason := self.outside.killed(job.returncode):
                job.result, job.reason = Result.LOST, reason
        if out.truncated:
            flags |= FLAG_STDOUT_TRUNCATED
        if err.truncated:
            flags |= FLAG_STDERR_TRUNCATED
        if out.spilled or err.spilled:
            flags |= FLAG_STREAMED
        if job.team is not None:
            self.parallel.finished(job, job.team)
            if job.team.message is not None:
                self.parallel.ended(job, job.team, job.pack(flags, out.size, err.size), out.take() + err.take())
                self.recycle(pipes)
                return
        outbox = self.outbox
        report = outbox.report(lease.owner)
        if job.reason:
            flags |= FLAG_REASON
            report.reasons[job.id] = job.reason
        report.records.append(job.pack(flags, out.size, err.size))
        if out.size:
            report.output.append(out.take())
        if err.size:
            report.output.append(err.take())
        self.recycle(pipes)
        seconds = job.ended - job.t_start
        report.count(lease.shape, job.group.number, seconds)
        self.idle.setdefault(lease.shape, []).append(lease)
        if seconds > FLUSH:
            outbox.urgent = True
        elif not outbox.oldest:
            outbox.oldest = job.ended
            self.soon(job.ended + FLUSH)

    def recycle(self, pipes: Pipes) -> None:
        if pipes.reusable:
            self.spare.append(pipes)
        else:
            pipes.close()

    # -- output and reports --------------------------------------------------------------------------------------

    def grow_up(self, job: Job, now: float) -> None:
        """A job is no longer young: report that it runs, and read its output as it comes."""
        if job.team is None or job.team.message is None:
            self.outbox.report(job.lease.owner).started.append(job.pack())
        self.outbox.oldest = self.outbox.oldest or now
        self.watch_output(job, now)

    def watch_output(self, job: Job, now: float) -> None:
        self.outputs.watch(job, now)
        self.soon(self.outputs.next_live)

    def read_output(self, fd: int, now: float) -> None:
        job = self.outputs.read(fd, now)
        if job.live:
            self.soon(self.outputs.next_live)
        if job.pipes.ended and job.id in self.lingering:
            self.let_go(job, now)

    def let_go(self, job: Job, now: float) -> None:
        """The output of a job that had ended before has ended too."""
        del self.lingering[job.id]
        self.endings.end_background(job, now)
        self.finish(job)

    def return_stale(self, now: float) -> None:
        for shape, backlog in list(self.backlog.items()):
            if now - backlog.moved > STALE:
                report = self.outbox.report(backlog.owner)
                report.returned.extend((shape, span.chunk()) for span in backlog.spans)
                del self.backlog[shape]
                self.outbox.urgent = True

    def flush(self) -> None:
        """Send all reports, and whether everything has stopped."""
        self.outbox.flush()
        if self.stopping and not self.jobs and not self.lingering and self.clock() >= self.answer_at:
            for src in self.stopping:
                self.outbox.tell(src, m.Stopped())
            self.stopping.clear()
