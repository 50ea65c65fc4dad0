"""How jobs are ended: their deadlines, the signals to all of their processes, and what they leave behind."""

from __future__ import annotations

import heapq
import signal
from collections.abc import Callable, Mapping

from mpiflux.model.states import Result
from mpiflux.node import proctree
from mpiflux.node.job import Job
from mpiflux.node.spawn import kill_group

LINGER = 2.0
"""Seconds that a job may keep its output open through processes that outlive its own."""
GRACE = 5.0
"""Seconds between TERM and KILL."""
GIVE_UP = 5.0
"""Seconds after KILL in which a job that has ended must let go of its output. Then it is closed: who still holds it we
cannot find or may not end."""
_SWEEP = 0.05
_NEVER = float("inf")


class Endings:
    """Of the jobs of a supervisor: ``jobs`` are its running tasks by pid, ``lingering`` the jobs that have ended but
    for their output, by id. ``soon(when)`` is told when there is something to do."""

    def __init__(self, jobs: Mapping[int, Job], lingering: Mapping[int, Job], soon: Callable[[float], None]) -> None:
        self._jobs, self._lingering, self._soon = jobs, lingering, soon
        self.strays = proctree.Strays()
        self.sweep_at = _NEVER
        """When to look for what ended jobs left behind."""
        self._deadlines: list[tuple[float, int, Job]] = []
        self._pushed = 0

    def running(self) -> list[Job]:
        """All jobs that have not been reported as ended."""
        return [*dict.fromkeys(self._jobs.values()), *self._lingering.values()]

    @property
    def due(self) -> float:
        """When there is something to do; infinity: never."""
        return min(self._deadlines[0][0] if self._deadlines else _NEVER, self.sweep_at)

    def enforce(self, now: float) -> list[Job]:
        """Do what deadlines ask for: time limits, graces, lingering. Returns the jobs whose output is to be closed."""
        given_up = []
        while self._deadlines and self._deadlines[0][0] <= now:
            job = heapq.heappop(self._deadlines)[2]
            if self._is_live(job) and self._enforce(job, now):
                given_up.append(job)
        return given_up

    def _enforce(self, job: Job, now: float) -> bool:
        if job.ended and job.kill_at and now >= job.kill_at + GIVE_UP:
            return True
        if job.kill_at and now >= job.kill_at:
            self._signal(job, signal.SIGKILL)
            self.wake_for(job, now + 1.0)
        elif job.ended and not job.kill_at:
            job.kill_at = now + GRACE
            self._signal(job, signal.SIGTERM)
            self.wake_for(job, job.kill_at)
        elif job.deadline and now >= job.deadline and not job.kill_at:
            limit = job.group.spec.time_limit
            self.end(job, Result.TIMEOUT, f"exceeded its time limit of {limit:g} s", now)
        return False

    def end(self, job: Job, result: Result, reason: str, now: float, grace: float | None = None) -> None:
        """Ask a job's whole process tree to end; KILL follows after ``grace`` seconds (:data:`GRACE`)."""
        if job.kill_at:
            return
        grace = GRACE if grace is None else grace
        if job.ended:
            # only what it left behind is still there: the job's own end stands
            grace = 0.0
        else:
            job.result, job.reason = result, reason
        job.kill_at = now + grace
        self._signal(job, signal.SIGTERM if grace > 0 else signal.SIGKILL)
        self.wake_for(job, job.kill_at)

    def linger(self, job: Job, now: float) -> None:
        """The job has ended, and somebody still has its output open."""
        if not job.kill_at:
            self.wake_for(job, now + LINGER)

    def end_background(self, job: Job, now: float) -> None:
        """What a job leaves running does not outlive it: its resources go to the next one."""
        self._signal_group(job, signal.SIGKILL)
        self.sweep_at = now
        self._soon(now)

    def sweep(self, now: float) -> None:
        """End what ended jobs left behind, until nothing of it is left. Who has ended has been waited for before."""
        orphans = self.strays.orphaned(self._jobs, self._traces())
        proctree.signal_tree(orphans, signal.SIGKILL)
        self.sweep_at = now + _SWEEP if orphans else _NEVER

    def wake_for(self, job: Job, when: float) -> None:
        """Look at this job again at ``when``."""
        self._pushed += 1
        heapq.heappush(self._deadlines, (when, self._pushed, job))
        self._soon(when)
        if len(self._deadlines) > 64 + 4 * len(self._jobs):
            # jobs that ended before their limit would pile up here
            self._deadlines = [entry for entry in self._deadlines if self._is_live(entry[2])]
            heapq.heapify(self._deadlines)

    def _signal(self, job: Job, sig: int) -> None:
        """Signal everything that belongs to a job, wherever it went."""
        team = job.team
        if team is not None and team.starts_all and sig != signal.SIGKILL:
            # what starts the tasks passes it on, on every node, and they are to hear it once
            if not team.part:
                self._signal_group(job, sig)
            return
        mains = [pid for pid, other in self._jobs.items() if other is job]
        strays = self.strays.of((job.id, job.attempt), self._jobs, self._traces())
        groups = proctree.signal_tree([*mains, *strays], sig)
        if job.pid not in groups or sig == signal.SIGKILL:
            # its first process is gone, not all of its group need be
            self._signal_group(job, sig)

    def _signal_group(self, job: Job, sig: int) -> None:
        if self._jobs.get(job.pid, job) is job:
            kill_group(job.pid, sig)

    def _traces(self) -> list[proctree.Trace]:
        return [job.trace() for job in self.running()]

    def _is_live(self, job: Job) -> bool:
        return not job.ended or self._lingering.get(job.id) is job
