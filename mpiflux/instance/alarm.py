"""What rank 0 does about signals that batch systems send to all processes: nothing is started, nobody is blamed.

They come to ranks, supervisors and jobs in any order. Whoever has got one tells rank 0, which holds everything until it
has got its own, the end of the run, or has heard of no other for a while: then the signal was for one node alone.
What ended by itself just before the signal may have ended because of it, and is to run again with the next instance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mpiflux.model import messages as m
from mpiflux.model.states import Result, State
from mpiflux.store.history import RERUN
from mpiflux.store.jobtable import JobTable, progressions
from mpiflux.store.journal import Journal

HOLD = 5.0
"""Seconds without a further word of a signal after which everything goes on."""
SUSPICION = 0.3
"""Seconds for which nothing is cancelled because of a failure, below a batch system: its signal may be behind it."""
LISTEN = 0.3
"""Seconds that supervisors wait for a signal of their own once rank 0 has got one."""
_BATCH = ("SLURM_JOB_ID", "LSB_JOBID", "PBS_JOBID", "FLUX_JOB_ID", "JOB_ID", "COBALT_JOBID", "OAR_JOB_ID",
          "MPIFLUX_JOB_ID")
_NEVER = float("inf")


def suspicion(environ: Mapping[str, str]) -> float:
    """:data:`SUSPICION` below a batch system, or inside a job of another instance; else 0."""
    return SUSPICION if any(name in environ for name in _BATCH) else 0.0


class Alarm:
    """What rank 0 has heard of signals. Until ``until`` it starts nothing because of one."""

    def __init__(self) -> None:
        self.until = _NEVER
        self.doubtful: set[tuple[int, int]] = set()
        """(job, attempt)."""

    def heard(self, message: m.Warned, now: float) -> None:
        self.until = now + HOLD
        self.doubtful.update(message.doubtful)

    def over(self) -> None:
        """It was not meant for everybody."""
        self.until = _NEVER
        self.doubtful.clear()

    def run_again(self, table: JobTable, journal: Journal, now: float) -> list[int]:
        """Have the doubtful ones run again when the run is resumed; their ids. The journal takes no records after."""
        jobs = sorted(job for job, attempt in self.doubtful
                      if 0 < job <= len(table) and table.state[job - 1] == State.INACTIVE
                      and table.attempt[job - 1] == attempt
                      and table.result[job - 1] in (Result.COMPLETED, Result.FAILED))
        by_group: dict[int, list[int]] = {}
        for job in jobs:
            by_group.setdefault(table.group_of(job), []).append(job)
        for number, mine in by_group.items():
            indices: Any = np.array(mine, "i8") - table.groups[number].first_id
            journal.append_event(0, now, RERUN, {"group": number, "batch": journal.next_batch,
                                                 "ranges": progressions(indices)})
        if jobs:
            table.rerun(np.array(jobs, "i8"))
        return jobs
