"""The process that starts user processes, watches them, and reports what became of them.

It is forked before MPI is initialised and has one connection, to its rank. Work arrives as leases (resources) and
index ranges (jobs); it starts the next job of a lease in the same turn in which the last one ended. A job that ends
within milliseconds costs one ``posix_spawn``, one ``wait4``, a read of each of its pipes and a record: everything else
(epoll, started records, live output) is done only for jobs that live longer than :data:`YOUNG`.
"""

from __future__ import annotations

import heapq
import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable

from mpiflux.model import messages as m
from mpiflux.model.records import (
    FLAG_NOT_STARTED,
    FLAG_REASON,
    FLAG_STDERR_TRUNCATED,
    FLAG_STDOUT_TRUNCATED,
    FLAG_STREAMED,
)
from mpiflux.model.states import Result
from mpiflux.node import proctree
from mpiflux.node.capture import SPILL, Pipes, Stream
from mpiflux.node.job import Job, Span
from mpiflux.node.launch import CannotStart, Group, Launcher, Lease, cannot
from mpiflux.node.link import Link, LinkClosed
from mpiflux.node.parallel import Parallel
from mpiflux.node.report import Report
from mpiflux.node.spawn import kill_group, signalfd

YOUNG = 0.01
"""Seconds after which a running job is reported as started and its output is read as it comes."""
FLUSH = 0.02
"""Longest time in seconds that a finished record waits while there is work left to do."""
STALE = 0.05
"""A backlog that has not moved for this long goes back to the scheduler, which may know an idle lease elsewhere."""
LINGER = 2.0
"""Seconds that a job may keep its output open through processes that outlive its own."""
LIVE = 0.5
"""Seconds between pieces of a running job's output."""
GRACE = 5.0
"""Seconds between TERM and KILL."""
SHORT = 0.1
"""Seconds before a start that failed for want of processes or descriptors is tried again."""
PATIENCE = 10.0
"""Seconds of such trying, after which the job fails."""
_SWEEP = 0.05
_IDLE = 60.0
_CONGESTED = 8 << 20
_NEVER = float("inf")
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC


class Supervisor:
    """See the module's text. ``run`` returns when the rank says so or is gone."""

    def __init__(self, link: Link, launcher: Launcher, number: int, clock: Callable[[], float] = time.time) -> None:
        self.link, self.launcher, self.number, self.clock = link, launcher, number, clock
        self.groups: dict[int, Group] = {}
        self.leases: dict[int, Lease] = {}
        self.idle: dict[int, list[Lease]] = {}
        """Leases without a job, by shape."""
        self.short: list[Lease] = []
        """Leases whose next job could not be started for want of something that may come back."""
        self.short_since = self.short_at = 0.0
        """When that began, and when to try again."""
        self.backlog: dict[int, deque[Span]] = {}
        self.owner_of_shape: dict[int, int] = {}
        self.moved: dict[int, float] = {}
        """When a shape's backlog last moved."""
        self.jobs: dict[int, Job] = {}
        """Running tasks by pid."""
        self.lingering: dict[int, Job] = {}
        """Jobs that have ended but for their output, by pid."""
        self.young: deque[Job] = deque()
        self.spare: list[Pipes] = []
        """Pipes that wait for their next job."""
        self.streams: dict[int, tuple[Job, Stream]] = {}
        self.deadlines: list[tuple[float, int, Job]] = []
        self.pushed = 0
        self.parallel = Parallel(self)
        self.strays = proctree.Strays()
        self.sweep_at = _NEVER
        self.reports: dict[int, Report] = {}
        self.oldest = 0.0
        """Time of the oldest record that waits to be sent; 0 when none does."""
        self.urgent = False
        self.due = 0.0
        """When :meth:`timers` has something to do, or earlier."""
        self.next_live = 0.0
        self.done = False
        self.stopping: set[int] = set()
        """Schedulers that wait to hear that nothing runs any more."""
        self.signals = signalfd({signal.SIGCHLD})
        self.link_fd = link.fileno()
        self.sending = False
        self.epoll = select.epoll()
        self.epoll.register(self.signals, select.EPOLLIN)
        self.epoll.register(self.link_fd, select.EPOLLIN)
        self.null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)

    # -- the loop ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        try:
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
                os.read(fd, 4096)
                self.reap(now)
            elif fd == self.link_fd:
                self.communicate(now)
            elif fd in self.streams:
                self.read_stream(fd)
            elif fd in self.parallel.sockets:
                self.parallel.readable(fd, now)
        if self.idle:
            self.start_jobs()
        if now >= self.due:
            self.timers(now)
        if self.urgent or not self.jobs:
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
        while self.deadlines and self.deadlines[0][0] <= now:
            self.enforce(heapq.heappop(self.deadlines)[2], now)
        if self.backlog:
            self.return_stale(now)
        if self.short and now >= self.short_at:
            self.retry_short()
        if now >= self.next_live:
            self.next_live = now + LIVE
            for job, stream in self.streams.values():
                if stream.size:
                    self.spill(job, stream)
        if now >= self.sweep_at:
            self.sweep(now)
        if self.oldest and now >= self.oldest + FLUSH:
            self.flush()
        self.due = min(
            young[0].t_start + YOUNG if young else _NEVER,
            self.deadlines[0][0] if self.deadlines else _NEVER,
            now + STALE if self.backlog else _NEVER,
            self.short_at if self.short else _NEVER,
            self.next_live if self.streams else _NEVER,
            self.oldest + FLUSH if self.oldest else _NEVER,
            self.sweep_at,
            now + _IDLE,
        )

    # -- messages ------------------------------------------------------------------------------------------------

    def communicate(self, now: float) -> None:
        """Send what waits, take what came."""
        if self.sending:
            self.link.flush()
            self.watch_link()
        self.accept(self.link.receive(), now)

    def accept(self, frames: list[bytes], now: float) -> None:
        for frame in frames:
            for _dst, src, message in m.decode(frame):
                self.handle(src, message, now)

    def handle(self, src: int, message: m.Message, now: float) -> None:
        if isinstance(message, m.Feed):
            if self.stopping:
                return
            self.owner_of_shape[message.shape] = src
            spans = self.backlog.setdefault(message.shape, deque())
            spans.extend(Span(self.groups[chunk.group], chunk) for chunk in message.chunks)
            self.moved[message.shape] = now
            self.soon(now + STALE)
        elif isinstance(message, m.Grant):
            share = message.r.shares[0]
            lease = Lease(message.lease, src, message.shape, message.r_id, share.tasks, self.launcher.place(share))
            self.leases[message.lease] = lease
            self.launcher.stay_behind(len(self.leases) == 1)
            self.idle.setdefault(message.shape, []).append(lease)
        elif isinstance(message, m.Declare):
            self.groups[message.group.number] = Group(message, self.launcher.base)
        elif isinstance(message, m.Cancel):
            self.cancel(message, now)
        elif isinstance(message, m.Part):
            if not self.stopping:
                self.parallel.start_part(src, message)
        elif isinstance(message, m.BarrierDone):
            self.parallel.barrier_done(message, now)
        elif isinstance(message, m.Stop):
            self.stop(src, message.grace, now)
        elif isinstance(message, m.Shutdown):
            self.done = True
        elif isinstance(message, m.Revoke):
            if message.lease in self.leases:
                self.leases[message.lease].revoked = True

    def cancel(self, message: m.Cancel, now: float) -> None:
        wanted = set(message.ids)
        for job in self.running():
            if not wanted or job.id in wanted:
                self.end(job, Result(message.result), message.reason, GRACE, now)
        for shape, spans in list(self.backlog.items()):
            report = self.report(self.owner_of_shape[shape])
            kept: deque[Span] = deque()
            for span in spans:
                group = span.group
                for index in range(span.next, span.stop, span.step):
                    if not wanted or group.first_id + index in wanted:
                        report.unstarted(group.first_id + index, span.attempt, shape, group.number, message, now)
                        self.urgent = True
                    else:
                        kept.append(Span(group, m.Chunk(group.number, index, index + 1, 1, span.attempt)))
            self.keep_backlog(shape, kept)

    def keep_backlog(self, shape: int, spans: deque[Span]) -> None:
        if spans:
            self.backlog[shape] = spans
        else:
            del self.backlog[shape]

    def stop(self, src: int, grace: float, now: float) -> None:
        """The run is interrupted: forget the backlog, end what runs."""
        self.stopping.add(src)
        self.backlog.clear()
        for job in self.running():
            self.end(job, Result.LOST, "the run was interrupted", grace, now)

    def running(self) -> list[Job]:
        """All jobs that have not been reported as ended."""
        return [*dict.fromkeys(self.jobs.values()), *self.lingering.values()]

    # -- starting ------------------------------------------------------------------------------------------------

    def start_jobs(self) -> None:
        if self.link.backlog > _CONGESTED:
            # the rank does not keep up with our output: what is not started needs no memory
            return
        while self.idle:
            shape, leases = self.idle.popitem()
            spans = self.backlog.get(shape)
            for lease in leases:
                if not spans or lease.revoked:
                    self.end_lease(lease)
                    continue
                span = spans[0]
                index = span.next
                span.next = index + span.step
                if span.next >= span.stop:
                    spans.popleft()
                    if not spans:
                        del self.backlog[shape]
                self.start(lease, span.group, index, span.attempt)

    def end_lease(self, lease: Lease) -> None:
        del self.leases[lease.number]
        self.launcher.stay_behind(len(self.leases) == 1)
        self.report(lease.owner).idle.append(lease.number)
        self.urgent = True

    def start(self, lease: Lease, group: Group, index: int, attempt: int, part: m.Part | None = None) -> None:
        now = self.clock()
        self.moved[lease.shape] = now
        pipes = self.spare.pop() if self.spare else Pipes()
        job = Job(group, index, attempt, lease, pipes, now)
        if lease.tasks > 1 or group.parallel or part is not None:
            job.team = self.parallel.team(group, lease.tasks, part, attempt)
        opened: list[int] = []
        try:
            pipes.begin(group.limit)
            fds = (self.null, pipes.out.child_fd, pipes.err.child_fd)
            if group.files:
                fds = self.open_files(job, index, fds, opened)
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
        self.short_since = 0.0
        job.pid = pids[0]
        for pid in pids:
            self.jobs[pid] = job
        if job.team is not None:
            job.running = len(pids)
            self.parallel.started(job, job.team)
        if len(self.leases) > 1:
            self.launcher.unbind()
        self.young.append(job)
        self.soon(now + YOUNG)
        if group.spec.time_limit:
            job.deadline = now + group.spec.time_limit
            self.wake_for(job, job.deadline)

    def open_files(self, job: Job, index: int, fds: tuple[int, int, int], opened: list[int]) -> tuple[int, int, int]:
        """Put a job's files in place of ``fds``. What is put into ``opened`` is closed once it has started."""
        compiled, attempt = job.group.compiled, job.attempt
        cwd = job.group.cwd(index, attempt)
        stdin, stdout, stderr = fds
        if name := compiled.input(index, attempt):
            stdin = os.open(os.path.join(cwd, name), os.O_RDONLY | os.O_CLOEXEC)
            opened.append(stdin)
        output, error = compiled.output(index, attempt), compiled.error(index, attempt)
        create = _CREATE | self.parallel.create_flags(job)
        if output:
            stdout = os.open(os.path.join(cwd, output), create, 0o666)
            opened.append(stdout)
        if error and error == output:
            stderr = stdout
        elif error:
            stderr = os.open(os.path.join(cwd, error), create, 0o666)
            opened.append(stderr)
        return stdin, stdout, stderr

    def cannot_start(self, job: Job, index: int, error: CannotStart) -> None:
        lease, now = job.lease, self.clock()
        if job.team is not None:
            self.parallel.finished(job, job.team)
        if lease.tasks > 1:
            # some of its tasks may have been started, and are dying
            job.pipes.close()
        if error.passing and lease.number >= 0:
            self.short_since = self.short_since or now
            if now - self.short_since < PATIENCE:
                group = job.group
                chunk = m.Chunk(group.number, index, index + 1, 1, job.attempt)
                self.backlog.setdefault(lease.shape, deque()).appendleft(Span(group, chunk))
                self.short.append(lease)
                self.short_at = now + SHORT
                self.soon(self.short_at)
                self.recycle(job.pipes)
                return
            self.short_since = 0.0
        job.returncode, job.reason = error.returncode, str(error)
        job.result = Result.FAILED
        job.ended = now
        self.finish(job, FLAG_NOT_STARTED)

    def retry_short(self) -> None:
        for lease in self.short:
            self.idle.setdefault(lease.shape, []).append(lease)
        self.short.clear()
        self.start_jobs()

    # -- ending --------------------------------------------------------------------------------------------------

    def reap(self, now: float) -> None:
        jobs = self.jobs
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            job = jobs.pop(pid, None)
            if job is None:
                continue
            job.utime += usage.ru_utime
            job.stime += usage.ru_stime
            job.maxrss = max(job.maxrss, usage.ru_maxrss)
            if status:
                job.returncode = job.returncode or os.waitstatus_to_exitcode(status)
            job.running -= 1
            if job.team is not None:
                self.parallel.task_ended(job, job.team, pid, status, now)
            if not job.running:
                self.process_ended(job, now)
            if not jobs:
                # strays that have ended are waited for when the next job ends, or by the sweep
                return

    def process_ended(self, job: Job, now: float) -> None:
        job.ended = now
        nobody_left = self.strays.none(len(self.jobs))
        ended = True
        for stream in (job.pipes.out, job.pipes.err):
            if nobody_left and stream.child_fd >= 0:
                stream.collect()
            elif stream.fd >= 0:
                stream.release()
                ended = self.drain(stream) and ended
        if ended:
            if not nobody_left:
                self.end_background(job, now)
            self.finish(job)
            return
        # somebody whom the job left behind still holds its output
        self.lingering[job.pid] = job
        self.watch_streams(job)
        if not job.kill_at:
            self.wake_for(job, now + LINGER)

    def end_background(self, job: Job, now: float) -> None:
        """What a job leaves running does not outlive it: its resources go to the next one."""
        kill_group(job.pid, signal.SIGKILL)
        self.sweep_at = now
        self.soon(now)

    def drain(self, stream: Stream) -> bool:
        """Read all that is there; True at the end of the stream."""
        fd = stream.fd
        if stream.read(1 << 12):
            self.streams.pop(fd, None)
        return stream.fd < 0

    def finish(self, job: Job, flags: int = 0) -> None:
        lease, pipes = job.lease, job.pipes
        out, err = pipes.out, pipes.err
        if job.result is Result.NONE:
            job.result = Result.FAILED if job.returncode else Result.COMPLETED
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
        report = self.report(lease.owner)
        if job.reason:
            flags |= FLAG_REASON
            report.reasons[job.id] = job.reason
        report.records.append(job.pack(flags, out.size, err.size))
        if out.size:
            report.output.append(out.take())
        if err.size:
            report.output.append(err.take())
        self.recycle(pipes)
        report.count(lease.shape, job.group.number, job.ended - job.t_start)
        self.idle.setdefault(lease.shape, []).append(lease)
        if not self.oldest:
            self.oldest = job.ended
            self.soon(job.ended + FLUSH)

    def recycle(self, pipes: Pipes) -> None:
        if pipes.reusable:
            self.spare.append(pipes)
        else:
            pipes.close()

    def end(self, job: Job, result: Result, reason: str, grace: float, now: float) -> None:
        """Ask a job's whole process tree to end; KILL follows after ``grace`` seconds."""
        if job.kill_at:
            return
        if job.ended:
            # only what it left behind is still there: the job's own end stands
            grace = 0.0
        else:
            job.result, job.reason = result, reason
        job.kill_at = now + grace
        self.signal(job, signal.SIGTERM if grace > 0 else signal.SIGKILL)
        self.wake_for(job, job.kill_at)

    def enforce(self, job: Job, now: float) -> None:
        """A deadline of a job has come: its time limit, its grace, or its lingering."""
        if not self.is_live(job):
            return
        if job.kill_at and now >= job.kill_at:
            self.signal(job, signal.SIGKILL)
            self.wake_for(job, now + 1.0)
        elif job.ended and not job.kill_at:
            job.kill_at = now + GRACE
            self.signal(job, signal.SIGTERM)
            self.wake_for(job, job.kill_at)
        elif job.deadline and now >= job.deadline and not job.kill_at:
            limit = job.group.spec.time_limit
            self.end(job, Result.TIMEOUT, f"exceeded its time limit of {limit:g} s", GRACE, now)

    def signal(self, job: Job, sig: int) -> None:
        """Signal everything that belongs to a job, wherever it went."""
        mains = [pid for pid, other in self.jobs.items() if other is job]
        proctree.signal_tree([*mains, *self.strays.of((job.id, job.attempt), self.jobs)], sig)
        kill_group(job.pid, sig)

    def sweep(self, now: float) -> None:
        """End what ended jobs left behind, until nothing of it is left."""
        self.reap(now)
        alive = {(job.id, job.attempt) for job in self.running()}
        orphans = self.strays.orphaned(self.jobs, alive)
        proctree.signal_tree(orphans, signal.SIGKILL)
        self.sweep_at = now + _SWEEP if orphans else _NEVER

    # -- output and reports --------------------------------------------------------------------------------------

    def grow_up(self, job: Job, now: float) -> None:
        """A job is no longer young: report that it runs, and read its output as it comes."""
        if job.team is None or job.team.message is None:
            self.report(job.lease.owner).started.append(job.pack())
        self.oldest = self.oldest or now
        self.next_live = self.next_live if self.streams else now + LIVE
        self.watch_streams(job)

    def watch_streams(self, job: Job) -> None:
        for stream in (job.pipes.out, job.pipes.err):
            stream.release()
            if stream.fd >= 0 and stream.fd not in self.streams:
                self.streams[stream.fd] = (job, stream)
                self.epoll.register(stream.fd, select.EPOLLIN)

    def wake_for(self, job: Job, when: float) -> None:
        """Look at this job again at ``when``."""
        self.pushed += 1
        heapq.heappush(self.deadlines, (when, self.pushed, job))
        self.soon(when)
        if len(self.deadlines) > 64 + 4 * len(self.jobs):
            # jobs that ended before their limit would pile up here
            self.deadlines = [entry for entry in self.deadlines if self.is_live(entry[2])]
            heapq.heapify(self.deadlines)

    def is_live(self, job: Job) -> bool:
        return not job.ended or self.lingering.get(job.pid) is job

    def read_stream(self, fd: int) -> None:
        job, stream = self.streams[fd]
        if self.link.backlog > _CONGESTED and not stream.truncated:
            # the rank does not keep up: leave it in the pipe, the job waits
            return
        ended = stream.read()
        if ended:
            del self.streams[fd]
        if stream.size >= SPILL:
            self.spill(job, stream)
        if job.pipes.ended and job.pid in self.lingering:
            del self.lingering[job.pid]
            self.end_background(job, self.clock())
            self.finish(job)

    def spill(self, job: Job, stream: Stream) -> None:
        offset, data = stream.spill()
        number = 1 if stream is job.pipes.out else 2
        self.send([(job.lease.owner, self.number, m.Output(job.id, job.attempt, number, offset, data))])

    def return_stale(self, now: float) -> None:
        for shape, spans in list(self.backlog.items()):
            if now - self.moved[shape] > STALE:
                self.report(self.owner_of_shape[shape]).returned.extend((shape, span.chunk()) for span in spans)
                del self.backlog[shape]
                self.urgent = True

    def report(self, owner: int) -> Report:
        found = self.reports.get(owner)
        if found is None:
            found = self.reports[owner] = Report()
        return found

    def flush(self) -> None:
        """Send all reports."""
        items: list[tuple[int, int, m.Message]] = []
        if self.reports:
            items += [(owner, self.number, report.message()) for owner, report in self.reports.items()]
            self.reports.clear()
        if self.stopping and not self.jobs and not self.lingering:
            items += [(src, self.number, m.Stopped()) for src in self.stopping]
            self.stopping.clear()
        self.oldest = 0.0
        self.urgent = False
        if items:
            self.send(items)

    def send(self, items: list[tuple[int, int, m.Message]]) -> None:
        self.link.send(m.encode(items))
        self.watch_link()

    def watch_link(self) -> None:
        """Hear of room on the link while something waits for it."""
        if bool(self.link.backlog) is not self.sending:
            self.sending = not self.sending
            self.epoll.modify(self.link_fd, select.EPOLLIN | (select.EPOLLOUT if self.sending else 0))
