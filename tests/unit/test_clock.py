"""Nothing measures time by the wall clock, which can be set while a run goes on."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np

import mpiflux
from mpiflux.model.jobspec import JobGroup, Retry
from mpiflux.model.messages import Chunk
from mpiflux.model.records import PACK
from mpiflux.model.states import Result
from mpiflux.store.jobtable import RECORD, JobTable
from mpiflux.store.journal import Journal
from mpiflux.store.reader import open_run
from mpiflux.store.resume import resume

WALL = re.compile(r"time\.time\b|time_ns\b|CLOCK_REALTIME|datetime\.(now|today|utcnow)|gettimeofday|\bclock=time\b")
READS = {
    # once a process, when it starts: from then on its clock is that offset and the monotonic clock
    "instance/bootstrap.py": 2, "instance/prepare.py": 1,
    # what people are shown of a run directory, and what they ask for
    "cli/top.py": 1, "cli/jobs.py": 1, "cli/parser.py": 1, "instance/nesting.py": 1,
}
"""How many times a module reads it."""


def test_the_wall_clock_is_read_only_where_it_is_meant() -> None:
    root = Path(mpiflux.__file__).parent
    files = [*root.rglob("*.py"), *root.rglob("*.c")]
    found = Counter(str(path.relative_to(root)) for path in files
                    for _ in WALL.findall(path.read_text(encoding="utf-8")))
    assert found == READS


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
