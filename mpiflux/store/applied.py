"""What :class:`mpiflux.store.jobtable.JobTable` tells. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Applied:
    """What a batch of ended records changed."""

    late: Array
    """Mask over the records: refused; the attempt is superseded, the job has ended, or there is none such."""
    repeated: Array
    """Mask over the records: refused; an earlier record of the same batch is of the same job."""
    ended: Array
    """Ids of the jobs that are INACTIVE now."""
    results: Array
    """Their results, parallel to ``ended``."""
    again: Array
    """Ids of jobs to run again; :meth:`JobTable.chunks` numbers them as their next attempt."""
    ran: Array
    """Mask over the records: their jobs were known to run."""
    groups: dict[int, tuple[int, int, int, int]]
    """Group number → jobs that ended COMPLETED, FAILED, CANCELED, TIMEOUT, in this batch."""
    plain: bool = False
    """All jobs completed, none was refused, and no record has a flag."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Totals over all jobs (or one group); kept up to date, so reading them costs nothing."""

    total: int
    depend: int
    sched: int
    run: int
    inactive: int
    completed: int
    failed: int
    canceled: int
    timeout: int
