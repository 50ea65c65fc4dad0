"""When the batch job ends, asked of Slurm itself where its environment does not say it, as Slurm 22.05's does not."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping

from mpiflux.instance.deadline import AllocationEnd, allocation_end

PATIENCE = 5.0
"""Seconds that squeue gets to answer: a run without a known end is better than none."""


def end_of_allocation(environ: Mapping[str, str], now: float, ask: bool = True) -> AllocationEnd:
    """What the environment says, else what squeue does. ``ask``: this process may be the one to ask, which one of many
    ranks should be. A process must not come here once it has initialised MPI, as it forks."""
    said = allocation_end(environ, now)
    if said.time or said.trouble or said.notes or not ask or not _asks(environ):
        return said
    job = environ["SLURM_JOB_ID"]
    left = time_left(_squeue(job), job)
    return AllocationEnd(now + left) if left else said


def _asks(environ: Mapping[str, str]) -> bool:
    """Nobody has said that there is no end; and a job of another instance, of which there may be thousands, does not
    ask: the outer one ends it."""
    return (environ.get("SLURM_JOB_ID", "").isdigit() and "MPIFLUX_JOB_ID" not in environ
            and not environ.get("MPIFLUX_END_TIME") and not environ.get("SLURM_JOB_END_TIME"))


def time_left(text: str, job: str) -> float:
    """Seconds of squeue's ``%A %L`` for this job: ``9:59``, ``1:00:00``, ``2-03:04:05``; 0 when there is no limit, or
    nothing to be read (``UNLIMITED``, ``NOT_SET``, ``INVALID``). An array's number is that of one of its elements, too,
    and squeue tells of all of them."""
    rows = [words for line in text.splitlines() if len(words := line.split()) == 2 and words[0] == job]
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", rows[0][1], re.ASCII) if rows else None
    if match is None:
        return 0.0
    days, hours, minutes, seconds = (int(word or 0) for word in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def _squeue(job: str) -> str:
    import subprocess

    # the user's own choices leave out jobs, or columns
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}
    try:
        done = subprocess.run(["squeue", "-h", "-j", job, "-t", "RUNNING", "-o", "%A %L"], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=PATIENCE, env=environ, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def job_end(environ: Mapping[str, str], ask: bool = True) -> float | None:
    """Unix seconds for ``doctor``; None when nothing is known."""
    return end_of_allocation(environ, time.time(), ask).time or None
