"""The wall clock is set, or is another node's, between two instances of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mpiflux.model.jobspec import JobGroup, Retry
from mpiflux.model.messages import Chunk
from mpiflux.model.records import PACK
from mpiflux.model.states import Result
from mpiflux.store.jobtable import RECORD, JobTable
from mpiflux.store.journal import Journal
from mpiflux.store.reader import open_run
from mpiflux.store.resume import resume


def test_a_clock_that_was_set_back_before_a_resumption_makes_nobody_wait_longer(tmp_path: Path) -> None:
    """Nor does an attempt end before it began."""
    group = JobGroup(number=0, name="g", first_id=1, count=2, command=("x",), retries=2, retry=Retry(backoff=10.0))
    table = JobTable()

    def record(job: int, result: int) -> bytes:
        return PACK.pack(job, 1, result, 0, 1, 1, 0, 0, 999.0, 999.0, 1000.0, 0, 0, 0, 0, 0, 0)

    with Journal(str(tmp_path)) as journal:
        table.add_group(group)
        journal.append_group(group, 990.0)
        table.assign(Chunk(0, 0, 2), 1)
        data = record(1, Result.FAILED)
        table.apply(np.frombuffer(data, RECORD), *journal.append_results(data, b"", {}))
        journal.append_started(record(2, 0))
    with open_run(tmp_path) as reader:
        again = resume(reader, 500.0)
    assert [(when, ids.tolist()) for when, ids in again.waits] == [(510.0, [1])]
    assert again.lost["t_finish"].tolist() == again.lost["t_start"].tolist() == [999.0]
