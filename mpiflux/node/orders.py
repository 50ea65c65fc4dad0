"""What a supervisor is told to do to jobs that it has: cancel them, reach those that run, stop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpiflux.model import messages as m
from mpiflux.model.states import Result
from mpiflux.node.spawn import kill_group

if TYPE_CHECKING:
    from mpiflux.node.supervisor import Supervisor


def cancel(sup: Supervisor, message: m.Cancel, now: float) -> None:
    """End these jobs, those that wait too."""
    wanted = set(message.ids)
    for job in sup.endings.running():
        if not wanted or job.id in wanted:
            sup.endings.end(job, Result(message.result), message.reason, now)
    for shape, backlog in list(sup.backlog.items()):
        report = sup.outbox.report(backlog.owner)
        for waiting in backlog.remove(lambda job_id: not wanted or job_id in wanted):
            report.unstarted(waiting.id, waiting.attempt, shape, waiting.group.number, message, now)
            sup.outbox.urgent = True
        if not backlog.count:
            del sup.backlog[shape]
    sup.parallel.drop_held(message)


def reach(sup: Supervisor, message: m.Listen | m.Signal | m.Stdin, now: float) -> None:
    """What clients want of jobs that run."""
    for job in [job for job in sup.endings.running() if job.id in message.ids]:
        if isinstance(message, m.Listen):
            sup.outputs.follow(job, message.on, now)
            sup.soon(sup.outputs.next_live)
        elif isinstance(message, m.Stdin):
            sup.inputs.write(job, message)
        elif not job.ended:
            kill_group(job.pid, message.number)


def stop(sup: Supervisor, src: int, message: m.Stop, now: float) -> None:
    """The run is interrupted: forget the backlog, end what runs."""
    sup.stopping.add(src)
    sup.backlog.clear()
    sup.parallel.drop_held(None)
    if sup.outside.quiet:
        sup.answer_at = now + message.listen
        sup.soon(sup.answer_at)
    for job in sup.endings.running():
        sup.endings.end(job, Result.LOST, "the run was interrupted", now, message.grace)
