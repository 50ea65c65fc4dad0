"""The process that starts user processes, watches them, and reports what became of them.

It is forked before MPI is initialised and has one connection, to its rank. Work arrives as leases (resources) and
index ranges (jobs); it starts the next job of a lease in the same turn in which the last one ended. A job that ends
within milliseconds costs two pipes, one ``posix_spawn``, one ``wait4`` and a record: everything else (epoll, started
records, live output) is done only for jobs that live longer than :data:`YOUNG`.
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
    NO_R,
    PACK,
)
from mpiflux.model.states import Result
from mpiflux.node import proctree
from mpiflux.node.capture import SPILL, Stream, make_pipe
from mpiflux.node.launch import CannotStart, Group, Launcher, Lease
from mpiflux.node.link import Link, LinkClosed
from mpiflux.node.spawn import kill_group, signalfd

YOUNG = 0.01
"""Seconds after which a running job is reported as started and its output is read as it comes."""
FLUSH = 0.008
"""Longest time in seconds that a finished record waits while there is work left to do."""
STALE = 0.05
"""A backlog that has not moved for this long goes back to the scheduler, which may know an idle lease elsewhere."""
LINGER = 2.0
"""Seconds that a job may keep its output open through processes that outlive its own."""
LIVE = 0.5
"""Seconds between pieces of a running job's output."""
GRACE = 5.0
"""Seconds between TERM and KILL."""
_SWEEP = 1.0
_CONGESTED = 8 << 20
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC


class Span:
    """What is left of a chunk that was fed."""

    __slots__ = ("attempt", "group", "next", "step", "stop")

    def __init__(self, group: Group, chunk: m.Chunk) -> None:
        self.group, self.attempt = group, chunk.attempt
        self.next, self.stop, self.step = chunk.start, chunk.stop, chunk.step

    def chunk(self) -> m.Chunk:
        return m.Chunk(self.group.spec.number, self.next, self.stop, self.step, self.attempt)


class Job:
    """One running attempt."""

    __slots__ = ("attempt", "deadline", "ended", "err", "group", "id", "kill_at", "lease", "left", "out", "pid",
                 "reason", "registered", "result", "returncode", "stime", "t_alloc", "t_start", "maxrss", "utime")

    def __init__(self, group: Group, index: int, attempt: int, lease: Lease, now: float) -> None:
        self.group, self.attempt, self.lease = group, attempt, lease
        self.id = group.spec.first_id + index
        self.pid = 0
        self.left: set[int] = set()
        """Tasks that still run."""
        self.t_alloc = self.t_start = now
        self.ended = 0.0
        """When the last task ended; its output may still be open."""
        self.deadline = 0.0
        self.kill_at = 0.0
        """When TERM turns into KILL; 0 while nobody wants it to end."""
        self.result = Result.NONE
        self.reason = ""
        self.returncode = 0
        self.utime = self.stime = 0.0
        self.maxrss = 0
        self.registered = False
        self.out = self.err = _NO_STREAM


_NO_STREAM = Stream(-1, 0)


class Supervisor:
    """See the module's text. ``run`` returns when the rank says so or is gone."""

    def __init__(self, link: Link, launcher: Launcher, number: int, clock: Callable[[], float] = time.time) -> None:
        self.link, self.launcher, self.number, self.clock = link, launcher, number, clock
        self.groups: dict[int, Group] = {}
        self.leases: dict[int, Lease] = {}
        self.idle: dict[int, list[Lease]] = {}
        self.backlog: dict[int, deque[Span]] = {}
        self.owner_of_shape: dict[int, int] = {}
        self.moved: dict[int, float] = {}
        """When a shape's backlog last moved."""
        self.jobs: dict[int, Job] = {}
        """Running tasks by pid."""
        self.lingering: dict[int, Job] = {}
        self.young: deque[Job] = deque()
        self.streams: dict[int, tuple[Job, Stream]] = {}
        self.deadlines: list[tuple[float, int, Job]] = []
        self.reports: dict[int, _Report] = {}
        self.pushed = 0
        self.done = False
        self.stopping: set[int] = set()
        """Schedulers that wait to hear that nothing runs any more."""
        self.oldest = 0.0
        """Time of the oldest record that waits to be sent; 0 when none does."""
        self.urgent = False
        self.next_sweep = 0.0
        self.next_live = 0.0
        self.signals = signalfd({signal.SIGCHLD})
        self.epoll = select.epoll()
        self.epoll.register(self.signals, select.EPOLLIN)
        self.epoll.register(link.fileno(), select.EPOLLIN)
        self.null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)

    # -- the loop ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            while not self.done:
                self.turn()
        except LinkClosed:
            pass
        finally:
            self.kill_everything()

    def turn(self) -> None:
        events = self.epoll.poll(self.timeout(self.clock()))
        now = self.clock()
        for fd, _ in events:
            if fd == self.signals:
                os.read(self.signals, 1 << 12)
                self.reap()
            elif fd == self.link.fileno():
                self.accept(self.link.receive())
            elif fd in self.streams:
                self.read_stream(fd, now)
        self.start_jobs()
        self.timers(self.clock())
        self.flush(self.clock())

    def timeout(self, now: float) -> float:
        soonest = now + _SWEEP
        if self.young:
            soonest = min(soonest, self.young[0].t_start + YOUNG)
        if self.oldest:
            soonest = min(soonest, self.oldest + FLUSH)
        if self.deadlines:
            soonest = min(soonest, self.deadlines[0][0])
        if any(self.backlog.values()):
            soonest = min(soonest, now + STALE)
        return max(soonest - now, 0.0)

    def timers(self, now: float) -> None:
        while self.young and self.young[0].t_start + YOUNG <= now:
            self.grow_up(self.young.popleft(), now)
        while self.deadlines and self.deadlines[0][0] <= now:
            self.enforce(heapq.heappop(self.deadlines)[2], now)
        if self.backlog:
            self.return_stale(now)
        if now >= self.next_live:
            self.next_live = now + LIVE
            for job, stream in self.streams.values():
                if stream.size:
                    self.spill(job, stream)
        if now >= self.next_sweep:
            self.next_sweep = now + _SWEEP
            self.sweep(now)

    # -- messages ------------------------------------------------------------------------------------------------

    def accept(self, frames: list[bytes]) -> None:
        now = self.clock()
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
        elif isinstance(message, m.Grant):
            lease = Lease(message.lease, src, message.shape, message.r_id, message.r.shares[0])
            self.launcher.prepare(lease)
            self.leases[message.lease] = lease
            self.idle.setdefault(message.shape, []).append(lease)
        elif isinstance(message, m.Declare):
            self.groups[message.group.number] = Group(message, self.launcher.base)
        elif isinstance(message, m.Cancel):
            self.cancel(message, now)
        elif isinstance(message, m.Stop):
            self.stop(src, message.grace, now)
        elif isinstance(message, m.Shutdown):
            self.done = True

    def cancel(self, message: m.Cancel, now: float) -> None:
        wanted = set(message.ids)
        for job in {id(j): j for j in self.jobs.values()}.values():
            if not wanted or job.id in wanted:
                self.end(job, Result(message.result), message.reason, GRACE, now)
        for shape, spans in self.backlog.items():
            kept: deque[Span] = deque()
            for span in spans:
                first = span.group.spec.first_id
                for index in range(span.next, span.stop, span.step):
                    if not wanted or first + index in wanted:
                        self.record_unstarted(shape, span, index, message, now)
                    else:
                        kept.append(Span(span.group, m.Chunk(0, index, index + 1, 1, span.attempt)))
            self.backlog[shape] = kept

    def stop(self, src: int, grace: float, now: float) -> None:
        """The run is interrupted: forget the backlog, end what runs."""
        self.stopping.add(src)
        self.backlog.clear()
        for job in {id(j): j for j in self.jobs.values()}.values():
            self.end(job, Result.LOST, "the run was interrupted", grace, now)

    # -- starting ------------------------------------------------------------------------------------------------

    def start_jobs(self) -> None:
        for shape, leases in self.idle.items():
            spans = self.backlog.get(shape)
            while leases:
                if not spans:
                    self.end_leases(leases)
                    break
                span = spans[0]
                index = span.next
                span.next = index + span.step
                if span.next >= span.stop:
                    spans.popleft()
                self.start(leases.pop(), span.group, index, span.attempt)

    def start(self, lease: Lease, group: Group, index: int, attempt: int) -> None:
        now = self.clock()
        self.moved[lease.shape] = now
        job = Job(group, index, attempt, lease, now)
        opened: list[int] = []
        try:
            fds = self.open_files(job, group, index, opened)
            pids = self.launcher.start(group, lease, index, attempt, fds)
        except CannotStart as error:
            self.cannot_start(job, error.returncode, str(error))
            return
        except OSError as error:
            self.cannot_start(job, 126, f"{error.filename or 'cannot start'}: {error.strerror}")
            return
        finally:
            for fd in opened:
                os.close(fd)
        job.pid = pids[0]
        job.left.update(pids)
        for pid in pids:
            self.jobs[pid] = job
        self.young.append(job)
        if group.spec.time_limit:
            job.deadline = job.t_start + group.spec.time_limit
            self.wake_for(job, job.deadline)

    def open_files(self, job: Job, group: Group, index: int, opened: list[int]) -> tuple[int, int, int]:
        """stdin, stdout and stderr of a new job. What is put into ``opened`` is closed once it has started."""
        spec, compiled, attempt = group.spec, group.compiled, job.attempt
        if not (spec.input or spec.output or spec.error):
            out, out_child = make_pipe()
            opened.append(out_child)
            job.out = Stream(out, group.limit)
            err, err_child = make_pipe()
            opened.append(err_child)
            job.err = Stream(err, group.limit)
            return self.null, out_child, err_child
        cwd = compiled.cwd(index, attempt)
        fds = [self.null, -1, -1]
        if spec.input:
            fds[0] = os.open(os.path.join(cwd, compiled.input(index, attempt)), os.O_RDONLY | os.O_CLOEXEC)
            opened.append(fds[0])
        names = (compiled.output(index, attempt), compiled.error(index, attempt))
        for number, name in enumerate(names, 1):
            if name and number == 2 and name == names[0]:
                fds[2] = fds[1]
            elif name:
                fds[number] = os.open(os.path.join(cwd, name), _CREATE, 0o666)
                opened.append(fds[number])
            else:
                read, fds[number] = make_pipe()
                opened.append(fds[number])
                if number == 1:
                    job.out = Stream(read, group.limit)
                else:
                    job.err = Stream(read, group.limit)
        return fds[0], fds[1], fds[2]

    def cannot_start(self, job: Job, returncode: int, reason: str) -> None:
        job.out.close()
        job.err.close()
        job.returncode, job.reason = returncode, reason
        job.result = Result.FAILED
        job.ended = self.clock()
        self.finish(job, FLAG_NOT_STARTED)

    def end_leases(self, leases: list[Lease]) -> None:
        for lease in leases:
            del self.leases[lease.number]
            self.report(lease.owner).idle.append(lease.number)
        leases.clear()
        self.urgent = True

    # -- ending --------------------------------------------------------------------------------------------------

    def reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            job = self.jobs.pop(pid, None)
            if job is None:
                continue
            job.utime += usage.ru_utime
            job.stime += usage.ru_stime
            job.maxrss = max(job.maxrss, usage.ru_maxrss)
            code = os.waitstatus_to_exitcode(status)
            if code and not job.returncode:
                job.returncode = code
            job.left.discard(pid)
            if not job.left:
                self.process_ended(job)
            elif code:
                self.end(job, Result.FAILED, f"a task ended with status {code}", GRACE, self.clock())

    def process_ended(self, job: Job) -> None:
        job.ended = self.clock()
        if self.drain(job.out) and self.drain(job.err):
            self.finish(job)
            return
        # somebody whom the job left behind still holds its output
        self.lingering[job.pid] = job
        self.watch_streams(job)
        if not job.kill_at:
            self.wake_for(job, job.ended + LINGER)

    def drain(self, stream: Stream) -> bool:
        """Read all that is there; True at the end of the stream."""
        fd = stream.fd
        if fd >= 0 and stream.read(1 << 12):
            self.streams.pop(fd, None)
        return stream.fd < 0

    def finish(self, job: Job, flags: int = 0) -> None:
        lease = job.lease
        if not flags & FLAG_NOT_STARTED:
            # background processes of its group do not outlive a job: its resources go to the next one
            kill_group(job.pid, signal.SIGKILL)
        if job.result is Result.NONE:
            job.result = Result.FAILED if job.returncode else Result.COMPLETED
        out, err = job.out.take(), job.err.take()
        if job.out.truncated:
            flags |= FLAG_STDOUT_TRUNCATED
        if job.err.truncated:
            flags |= FLAG_STDERR_TRUNCATED
        if job.out.spilled or job.err.spilled:
            flags |= FLAG_STREAMED
        report = self.report(lease.owner)
        if job.reason:
            flags |= FLAG_REASON
            report.reasons[job.id] = job.reason
        report.records.append(self.pack(job, flags, len(out), len(err)))
        if out:
            report.output.append(out)
        if err:
            report.output.append(err)
        self.idle.setdefault(lease.shape, []).append(lease)
        self.oldest = self.oldest or job.ended
        done = report.done.setdefault((lease.shape, job.group.spec.number), [0, 0.0])
        done[0] += 1
        done[1] += job.ended - job.t_start

    def pack(self, job: Job, flags: int, out: int, err: int) -> bytes:
        lease = job.lease
        return PACK.pack(job.id, job.attempt, job.result, flags, job.returncode, lease.share.tasks, lease.owner,
                         lease.r_id, job.t_alloc, job.t_start, job.ended, job.utime, job.stime, job.maxrss, out, err,
                         job.pid)

    def record_unstarted(self, shape: int, span: Span, index: int, why: m.Cancel, now: float) -> None:
        report = self.report(self.owner_of_shape[shape])
        job = span.group.spec.first_id + index
        report.records.append(PACK.pack(job, span.attempt, why.result, FLAG_NOT_STARTED | FLAG_REASON, 0, 0, NO_R, 0,
                                        now, now, now, 0, 0, 0, 0, 0, 0))
        report.reasons[job] = why.reason
        report.done.setdefault((shape, span.group.spec.number), [0, 0.0])[0] += 1
        self.urgent = True

    def end(self, job: Job, result: Result, reason: str, grace: float, now: float) -> None:
        """Ask a job's whole process tree to end; KILL follows after ``grace`` seconds."""
        if job.kill_at:
            return
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
        roots = list(job.left)
        mains = set(self.jobs)
        mine = (job.id, job.attempt)
        roots += [pid for pid in proctree.children(os.getpid()) if pid not in mains and proctree.job_of(pid) == mine]
        proctree.signal_tree(roots, sig)
        kill_group(job.pid, sig)

    def sweep(self, now: float) -> None:
        """End what ended jobs left behind: children of ours that are no job's own process."""
        strays = [pid for pid in proctree.children(os.getpid()) if pid not in self.jobs]
        if not strays:
            return
        alive = {(job.id, job.attempt) for job in [*self.jobs.values(), *self.lingering.values()]}
        for pid in strays:
            if proctree.job_of(pid) not in alive:
                proctree.signal_tree([pid], signal.SIGKILL)

    def kill_everything(self) -> None:
        """Leave nobody behind. Loops, because what is being killed may still fork."""
        for _ in range(100):
            below = proctree.descendants(os.getpid())
            if not below:
                return
            for pid in below:
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return
            time.sleep(0.002)

    # -- output and reports --------------------------------------------------------------------------------------

    def grow_up(self, job: Job, now: float) -> None:
        """A job is no longer young: report that it runs, and read its output as it comes."""
        if job.ended:
            return
        self.report(job.lease.owner).started.append(self.pack(job, 0, 0, 0))
        self.oldest = self.oldest or now
        self.watch_streams(job)

    def watch_streams(self, job: Job) -> None:
        for stream in (job.out, job.err):
            if stream.fd >= 0 and stream.fd not in self.streams:
                self.streams[stream.fd] = (job, stream)
                self.epoll.register(stream.fd, select.EPOLLIN)

    def wake_for(self, job: Job, when: float) -> None:
        """Look at this job again at ``when``."""
        self.pushed += 1
        heapq.heappush(self.deadlines, (when, self.pushed, job))
        if len(self.deadlines) > 64 + 4 * len(self.jobs):
            # jobs that ended before their limit would pile up here
            self.deadlines = [entry for entry in self.deadlines if self.is_live(entry[2])]
            heapq.heapify(self.deadlines)

    def is_live(self, job: Job) -> bool:
        return not job.ended or self.lingering.get(job.pid) is job

    def read_stream(self, fd: int, now: float) -> None:
        job, stream = self.streams[fd]
        if self.link.backlog > _CONGESTED and not stream.truncated:
            # the rank does not keep up: leave it in the pipe, the job waits
            self.link.flush()
            return
        ended = stream.read()
        if ended:
            del self.streams[fd]
        if stream.size >= SPILL:
            self.spill(job, stream)
        if ended and job.ended and job.out.fd < 0 and job.err.fd < 0 and self.lingering.pop(job.pid, None):
            self.finish(job)

    def spill(self, job: Job, stream: Stream) -> None:
        offset, data = stream.spill()
        number = 1 if stream is job.out else 2
        message = m.Output(job.id, job.attempt, number, offset, data)
        self.link.send(m.encode([(job.lease.owner, self.number, message)]))

    def return_stale(self, now: float) -> None:
        for shape, spans in self.backlog.items():
            if spans and now - self.moved[shape] > STALE:
                self.report(self.owner_of_shape[shape]).returned.extend((shape, span.chunk()) for span in spans)
                spans.clear()
                self.urgent = True

    def report(self, owner: int) -> _Report:
        found = self.reports.get(owner)
        if found is None:
            found = self.reports[owner] = _Report()
        return found

    def flush(self, now: float) -> None:
        if self.link.backlog:
            self.link.flush()
        if self.stopping and not self.jobs and not self.lingering:
            self.urgent = True
        if not (self.urgent or (self.oldest and (now - self.oldest >= FLUSH or not self.jobs))):
            return
        items: list[tuple[int, int, m.Message]] = []
        for owner, report in self.reports.items():
            items.append((owner, self.number, report.message()))
        self.reports.clear()
        self.oldest = 0.0
        self.urgent = False
        if self.stopping and not self.jobs and not self.lingering:
            items += [(src, self.number, m.Stopped()) for src in self.stopping]
            self.stopping.clear()
        if items:
            self.link.send(m.encode(items))


class _Report:
    """A report in the making."""

    __slots__ = ("done", "idle", "output", "reasons", "records", "returned", "started")

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.output: list[bytes] = []
        self.started: list[bytes] = []
        self.reasons: dict[int, str] = {}
        self.returned: list[tuple[int, m.Chunk]] = []
        self.idle: list[int] = []
        self.done: dict[tuple[int, int], list[float]] = {}

    def message(self) -> m.Report:
        return m.Report(b"".join(self.records), b"".join(self.output), self.reasons, b"".join(self.started),
                        tuple(self.returned), tuple(self.idle),
                        tuple((*key, int(n), seconds) for key, (n, seconds) in self.done.items()))
