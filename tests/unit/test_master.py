"""What rank 0 keeps of what comes in, without a tree below it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mpiflux.instance.master import Master
from mpiflux.model import messages as m
from mpiflux.model.jobspec import JobGroup, Workflow
from mpiflux.model.records import PACK
from mpiflux.model.states import Result
from mpiflux.store.jobtable import JobTable
from mpiflux.store.journal import Journal


class Quiet:
    def progress(self, view: object) -> None: ...

    def note(self, text: str) -> None: ...


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Master]:
    """Of two groups of four jobs each."""
    groups = tuple(JobGroup(number=n, name="ab"[n], first_id=1 + 4 * n, count=4) for n in range(2))
    table = JobTable()
    with Journal(tmp_path, durable=False) as journal:
        for group in groups:
            table.add_group(group)
            journal.append_group(group, 1.0)
        made = Master(Workflow(name="w", groups=groups), journal, table, Quiet(), cores=4, ranks=1, clock=lambda: 1.0)
        made.begin()
        yield made


def report(*ends: tuple[int, Result]) -> m.Report:
    return m.Report(b"".join(PACK.pack(job, 1, result, 0, 1, 1, 1, 0, 1.0, 1.0, 2.0, 0, 0, 0, 0, 0, 1)
                             for job, result in ends))


def test_the_first_failures_are_kept_once_each(master: Master) -> None:
    """Whatever groups they are of, and in whatever reports they come."""
    master.handle(0, report((1, Result.FAILED), (5, Result.TIMEOUT), (2, Result.COMPLETED)), 1.0)
    assert master.view.failures == [1, 5]
    master.handle(0, report(*((job, Result.FAILED) for job in (3, 4, 6, 7, 8))), 1.0)
    assert master.view.failures == [1, 5, 3, 4, 6], "enough to begin to look"
