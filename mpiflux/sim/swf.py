"""Workload traces in the Standard Workload Format, version 2.2, of the Parallel Workloads Archive.

Source of the format: D. Feitelson, "The Standard Workload Format",
https://www.cs.huji.ac.il/labs/parallel/workload/swf.html: 18 numbers a line, -1 for what is not known, lines that
begin with ``;`` are comments.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mpiflux.model.jobspec import JobGroup, Request
from mpiflux.model.messages import Chunk
from mpiflux.sim.durations import Listed

FIELDS = 18
_WHOLE = {0: "job number", 4: "allocated processors", 7: "requested processors", 10: "status", 11: "user id",
          12: "group id", 13: "executable", 14: "queue", 15: "partition", 16: "preceding job"}


class TraceError(ValueError):
    """A file is not a trace in this format; the text has ``file:line``."""


@dataclass(frozen=True)
class TraceJob:
    """Times in seconds; ``limit`` is what its user asked for, never less than it ran."""

    number: int
    submit: float
    seconds: float
    processors: int
    limit: float


@dataclass(frozen=True)
class Trace:
    jobs: tuple[TraceJob, ...]
    skipped: int
    """Jobs without processors or run time: cancelled before they started."""

    def workload(self) -> tuple[tuple[JobGroup, ...], list[tuple[float, Chunk]], Listed]:
        """Groups of jobs alike, when which jobs arrive, and how long they run."""
        kinds: dict[tuple[int, float], list[TraceJob]] = {}
        for job in self.jobs:
            kinds.setdefault((job.processors, job.limit), []).append(job)
        groups, arrivals, seconds, first = [], [], [], 1
        for number, ((processors, limit), jobs) in enumerate(kinds.items()):
            groups.append(JobGroup(number=number, name=f"p{processors}-{limit:g}s", first_id=first, count=len(jobs),
                                   request=Request(tasks=processors), time_limit=limit))
            first += len(jobs)
            seconds.append([job.seconds for job in jobs])
            arrivals += [(job.submit, job.number, Chunk(number, i, i + 1)) for i, job in enumerate(jobs)]
        arrivals.sort(key=lambda arrival: arrival[:2])
        start = arrivals[0][0]
        return tuple(groups), [(submit - start, chunk) for submit, _, chunk in arrivals], Listed(seconds)


def read_trace(path: str) -> Trace:
    """Raises TraceError, OSError."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return parse_trace(file, path)


def parse_trace(lines: Iterable[str], name: str) -> Trace:
    """Raises TraceError at the first line that is wrong."""
    jobs: list[TraceJob] = []
    skipped, last = 0, float("-inf")
    numbers: set[int] = set()
    for at, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith(";"):
            continue
        values = _numbers(line, f"{name}:{at}")
        number, submit, seconds = int(values[0]), values[1], values[3]
        if number in numbers:
            raise TraceError(f"{name}:{at}: job number {number} is there twice")
        numbers.add(number)
        if submit < last:
            raise TraceError(f"{name}:{at}: job {number} is submitted at {submit:g}, before the job above it; "
                             "the format wants lines in order of submit time")
        last = submit
        processors = int(values[7] if values[7] > 0 else values[4])
        if processors <= 0 or seconds < 0:
            skipped += 1
            continue
        jobs.append(TraceJob(number, submit, seconds, processors, max(values[8], seconds, 1.0)))
    if not jobs:
        raise TraceError(f"{name}: no job that ran is in it")
    return Trace(tuple(jobs), skipped)


def _numbers(line: str, where: str) -> list[float]:
    words = line.split()
    if len(words) != FIELDS:
        raise TraceError(f"{where}: {len(words)} fields; a job in the Standard Workload Format has {FIELDS}")
    values = []
    for i, word in enumerate(words):
        try:
            value = float(word)
        except ValueError:
            raise TraceError(f"{where}: field {i + 1} is {word!r}, not a number") from None
        if not -1 <= value < 1e15:
            raise TraceError(f"{where}: field {i + 1} is {word}; numbers are from 0 on, or -1 for what is not known")
        if i in _WHOLE and value != int(value):
            raise TraceError(f"{where}: field {i + 1}, the {_WHOLE[i]}, is {word}, not a whole number")
        values.append(value)
    if values[0] < 1 or values[1] < 0:
        raise TraceError(f"{where}: a job has a number from 1 on and a submit time from 0 on")
    return values
