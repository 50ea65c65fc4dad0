"""Jobs that take down what runs them are not tried for ever."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpiflux.model.jobspec import JobGroup
from mpiflux.model.messages import Chunk
from mpiflux.model.records import FLAG_ALONE, FLAG_CRASHED, FLAG_NOT_STARTED, FLAG_REASON
from mpiflux.model.states import Result, State
from mpiflux.store.crashes import LIMIT, MOST, SUSPECT, Crashes
from mpiflux.store.jobtable import RECORD, JobTable
from mpiflux.store.journal import Journal
from mpiflux.store.reader import open_run
from mpiflux.store.resume import resume

Array = np.ndarray


def lost(*jobs: int, flags: int = FLAG_NOT_STARTED | FLAG_REASON, tasks: int = 0) -> Array:
    """What a scheduler says of attempts whose supervisor is gone."""
    records = np.zeros(len(jobs), RECORD)
    records["id"], records["result"], records["flags"], records["tasks"] = jobs, Result.LOST, flags, tasks
    return records


def all_run(records: Array) -> Array:
    return np.ones(len(records), bool)


@pytest.mark.parametrize(("limit", "flag", "why"), [(LIMIT, FLAG_ALONE, "it was alone"), (MOST, 0, "it may be")])
def test_the_last_allowed_loss_is_a_failure_with_its_reason(limit: int, flag: int, why: str) -> None:
    crashes = Crashes()
    for _ in range(limit - 1):
        records, reasons = crashes.judge(lost(7), np.ones(1, bool), {7: "its supervisor was killed"})
        assert records["result"].tolist() == [Result.LOST]
        assert records["flags"][0] & FLAG_CRASHED and reasons == {7: "its supervisor was killed"}
    given_records = lost(7, 8, flags=FLAG_NOT_STARTED | FLAG_REASON | flag)
    records, reasons = crashes.judge(given_records, np.ones(2, bool), {7: "its supervisor was killed", 8: "so was its"})
    assert records["result"].tolist() == [Result.FAILED, Result.LOST] and records["returncode"].tolist() == [-9, 0]
    assert f"died {limit} times, the last time: its supervisor was killed; {why}" in reasons[7]
    assert reasons[8] == "so was its"
    assert given_records["result"].tolist() == [Result.LOST] * 2


@pytest.mark.parametrize(("records", "running"), [
    (lost(1), False), (lost(1, flags=FLAG_REASON, tasks=1), True)], ids=["waited", "ended as the run was interrupted"])
def test_what_does_not_count(records: Array, running: bool) -> None:
    crashes = Crashes()
    for _ in range(2 * MOST):
        kept, _ = crashes.judge(records, np.full(1, running), {})
        assert kept["result"].tolist() == [Result.LOST] and not kept["flags"][0] & FLAG_CRASHED


def test_a_job_on_several_tasks_counts_though_its_record_is_of_one_that_ran() -> None:
    kept, _ = Crashes().judge(lost(1, flags=FLAG_REASON, tasks=4), np.ones(1, bool), {})
    assert kept["flags"][0] & FLAG_CRASHED


def test_an_instance_that_dies_with_a_job_counts(tmp_path: Path) -> None:
    """A job that takes rank 0 along is not tried again with every resumption."""
    group = JobGroup(number=0, name="a", first_id=1, count=2, command=("true",), retries=3)
    table, crashes = JobTable(), Crashes()
    with Journal(str(tmp_path)) as journal:
        table.add_group(group)
        journal.append_group(group, 1.0)
        for attempt in range(1, MOST):
            for chunk in table.unfinished(0):
                table.assign(chunk, 0)
            record = lost(1)
            record["attempt"] = attempt
            record, reasons = crashes.judge(record, all_run(record), {1: "its supervisor was killed"})
            table.apply(record, *journal.append_results(record.tobytes(), b"", reasons))
        started = lost(1, 2, flags=0)
        started["attempt"], started["result"] = (MOST, 1), Result.NONE
        journal.append_started(started.tobytes())
    with open_run(tmp_path) as reader:
        again = resume(reader, 5.0)
    assert again.lost["id"].tolist() == [1, 2]
    assert again.lost["result"].tolist() == [Result.FAILED, Result.LOST]
    assert f"died {MOST} times, the last time: the instance was killed" in again.reasons[1]
    applied = again.table.apply(again.lost, 0)
    assert applied.ended.tolist() == [1] and applied.again.tolist() == [2]


@given(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=3, unique=True), max_size=25), st.data())
def test_a_resumed_run_counts_on(losses: list[list[int]], data: st.DataObject) -> None:
    """Wherever the instance is replaced by another, which has only the records: the outcome is the same."""
    through, parts, history = Crashes(), Crashes(), np.zeros(0, RECORD)
    for jobs in losses:
        if data.draw(st.booleans()):
            parts = Crashes(history)
        records = lost(*jobs, flags=FLAG_NOT_STARTED | data.draw(st.sampled_from((0, FLAG_ALONE))))
        expected, _ = through.judge(records, all_run(records), {})
        found, _ = parts.judge(records, all_run(records), {})
        assert (found == expected).all() and parts.suspects == through.suspects
        history = np.concatenate([history, found])


def test_a_suspect_is_handed_out_by_itself() -> None:
    table, crashes = JobTable(), Crashes()
    table.add_group(JobGroup(number=0, name="a", first_id=1, count=5, command=("true",)))
    ids = np.arange(1, 6)
    for _ in range(SUSPECT):
        assert crashes.chunks(table, ids) == [Chunk(0, 0, 5)]
        crashes.judge(lost(3), np.ones(1, bool), {})
    handed = crashes.chunks(table, ids)
    assert [chunk for chunk in handed if chunk.alone] == [Chunk(0, 2, 3, alone=True)]
    assert sum(map(len, handed)) == 5


def test_no_retries_are_left_to_such_a_job() -> None:
    group = JobGroup(number=0, name="a", first_id=1, count=1, command=("true",), retries=3)
    for flag, state in ((0, State.SCHED), (FLAG_CRASHED, State.INACTIVE)):
        table = JobTable()
        table.add_group(group)
        for chunk in table.unfinished(0):
            table.assign(chunk, 0)
        record = lost(1, flags=FLAG_NOT_STARTED | flag)
        record["attempt"], record["result"] = table.attempt[0], Result.FAILED
        applied = table.apply(record, 0)
        assert not applied.late.any() and table.state[0] == state
