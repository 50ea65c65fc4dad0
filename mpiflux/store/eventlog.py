"""A job's eventlog, put together from what is stored: its group, the records of its attempts, exceptional events.

Pure. The common events of an attempt (alloc, start, output, finish, release) are in its record and are not stored
a second time. What comes out follows :data:`mpiflux.model.states.TRANSITIONS`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from mpiflux.model.jobspec import JobGroup
from mpiflux.model.records import FLAG_NOT_STARTED, FLAG_STDERR_TRUNCATED, FLAG_STDOUT_TRUNCATED
from mpiflux.model.states import Result

_EXCEPTIONS = {Result.CANCELED: "cancel", Result.TIMEOUT: "timeout", Result.LOST: "lost"}


ELEMENTS = "elements"
"""In the context of a group's event: ranges (start, stop, step) of the only indices that it is about."""


def about(context: dict[str, Any], index: int) -> bool:
    """Whether an event of a group is about one of its elements."""
    ranges = context.get(ELEMENTS)
    try:
        return ranges is None or any(index in range(*one) for one in ranges)
    except (TypeError, ValueError):  # of a damaged file
        return False


class Record(NamedTuple):
    """One attempt record with names: ``Record._make(row)`` of what NumPy's ``tolist`` gives."""

    id: int
    attempt: int
    result: int
    flags: int
    returncode: int
    tasks: int
    r_sched: int
    r_id: int
    t_alloc: float
    t_start: float
    t_finish: float
    utime: float
    stime: float
    maxrss: int
    out_len: int
    err_len: int
    pid: int


def truncated(record: Record) -> list[str]:
    """The streams of which not everything was kept."""
    return [name for name, flag in (("stdout", FLAG_STDOUT_TRUNCATED), ("stderr", FLAG_STDERR_TRUNCATED))
            if record.flags & flag]


class Event(NamedTuple):
    """A timestamped fact. ``timestamp`` in Unix seconds; ``context`` is JSON."""

    name: str
    timestamp: float
    context: dict[str, Any]


def eventlog(
    group: JobGroup,
    t_submit: float,
    attempts: Iterable[tuple[Record, str]],
    extra: Iterable[Event],
    *,
    running: Record | None = None,
    ended: bool = False,
    reruns: Iterable[tuple[int, float]] = (),
) -> list[Event]:
    """The events of one job, in order.

    ``attempts`` are its ended attempts' records in order, each with the text that says why or an empty one; their
    ``out_len`` and ``err_len`` count all that is kept of a stream, what was sent while it ran too;
    ``running`` is the record of an attempt that runs; ``extra`` are stored events, told where their time puts
    them; ``ended`` says whether the last attempt was the job's end or is to be repeated; ``reruns`` are
    (ended attempts before it, time) of each time that the job was to run again although it had ended.
    """
    extra = sorted(extra, key=lambda event: event.timestamp)
    out = [Event("submit", t_submit, {"urgency": group.priority, "name": group.name})]
    attempts = list(attempts)
    tried = [record for record, _ in attempts if record.attempt > 0] + ([running] if running else [])
    if not any(event.name == "depend" for event in extra) and (not group.after or tried):
        first = tried[0] if tried and group.after else None
        out.append(Event("depend", first.t_alloc or first.t_start or first.t_finish if first else t_submit, {}))
    rerun_at = dict(reruns)
    for i, (record, reason) in enumerate(attempts):
        out += attempt_events(record, reason)
        if i + 1 in rerun_at:
            t = rerun_at[i + 1]
            out += [Event("clean", record.t_finish, {}), Event("rerun", t, {})]
            if not group.after:
                out.append(Event("depend", t, {}))
        elif i < len(attempts) - 1 or not ended:
            out.append(Event("retry", record.t_finish, {"attempt": record.attempt + 1}))
        else:
            out.append(Event("clean", record.t_finish, {}))
    if running:
        out += attempt_begin(running)
    return _merge(out, extra)


def attempt_begin(record: Record) -> list[Event]:
    """The events with which an attempt begins."""
    start = record.t_start or record.t_finish
    return [Event("alloc", record.t_alloc or start, {"attempt": record.attempt}),
            Event("start", start, {"pid": record.pid})]


def attempt_end(record: Record, reason: str) -> list[Event]:
    """The events with which an attempt that was started ends; whether ``retry`` or ``clean`` follows, is not in it.

    The record's lengths count what was sent while it ran too.
    """
    result, end = Result(record.result), record.t_finish
    kind = _EXCEPTIONS.get(result, "")
    out: list[Event] = []
    cut = truncated(record)
    if record.out_len or record.err_len or cut:
        context: dict[str, Any] = {"stdout": record.out_len, "stderr": record.err_len}
        out.append(Event("output", end, {**context, "truncated": cut} if cut else context))
    if kind:
        out.append(Event("exception", end, {"type": kind, "severity": 0, "note": reason}))
    elif reason and result is Result.COMPLETED:
        out.append(Event("exception", end, {"type": "warning", "severity": 4, "note": reason}))
    out.append(Event("finish", end, {"returncode": record.returncode, "result": result.name}))
    return [*out, Event("release", end, {})]


def attempt_events(record: Record, reason: str) -> list[Event]:
    """All events of an ended attempt but the ``retry`` or ``clean`` that follows."""
    if not record.flags & FLAG_NOT_STARTED:
        return attempt_begin(record) + attempt_end(record, reason)
    result, end = Result(record.result), record.t_finish
    trouble = Event("exception", end, {"type": _EXCEPTIONS.get(result, "exec"), "severity": 0, "note": reason})
    if not record.t_alloc:
        return [trouble]
    alloc = Event("alloc", record.t_alloc, {"attempt": record.attempt})
    finish = Event("finish", end, {"returncode": record.returncode, "result": result.name})
    return [alloc, trouble, finish, Event("release", end, {})]


def _merge(events: list[Event], extra: list[Event]) -> list[Event]:
    """Put each extra event before the first one that is later; ``submit`` stays first, ``clean`` last, but for what
    comes after a ``rerun``."""
    out, i = events[:1], 0
    for n, event in enumerate(events[1:], 2):
        until = event.timestamp if event.name != "clean" else events[n].timestamp if n < len(events) else float("inf")
        while i < len(extra) and (extra[i].timestamp < until
                                  or (extra[i].name == "depend" and event.name == "alloc")):
            out.append(extra[i])
            i += 1
        out.append(event)
    return _sensible(out + extra[i:])


def _sensible(events: list[Event]) -> list[Event]:
    """Without what was said of a whole group and does not concern this job: that its dependencies are met, again."""
    out: list[Event] = []
    waits = True
    for event in events:
        if event.name == "rerun":
            waits = True
        elif event.name == "depend":
            if not waits:
                continue
            waits = False
        elif event.name == "clean":
            waits = False
        out.append(event)
    return out
