"""After which failures a job runs again, and when."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpiflux.model.jobspec import JobGroup
from mpiflux.model.messages import Chunk
from mpiflux.model.records import PACK
from mpiflux.model.retry import Retry, retry_on
from mpiflux.model.states import Result, State
from mpiflux.sched.agenda import Agenda
from mpiflux.spec import WorkflowError, load
from mpiflux.store.attempts import was_end
from mpiflux.store.eventlog import Record
from mpiflux.store.jobtable import RECORD, JobTable
from mpiflux.store.journal import Journal
from mpiflux.store.reader import open_run
from mpiflux.store.resume import resume


def test_words_become_codes() -> None:
    assert retry_on(["3", "10-12", "SIGKILL", "term", "timeout"]) == Retry(
        every=False, codes=((3, 3), (10, 12), (-9, -9), (-15, -15)), timeout=True)
    assert retry_on(["any"]).every and not retry_on([]).every


@pytest.mark.parametrize("word", ["0", "256", "5-1", "SIGNOPE", "-9", "1,2", ""])
def test_other_words_are_refused(word: str) -> None:
    with pytest.raises(ValueError, match=word or "''"):
        retry_on([word])


def test_each_wait_is_longer_up_to_a_bound() -> None:
    retry = Retry(backoff=1.0, factor=3.0, max=10.0)
    assert [retry.delay(n) for n in (1, 2, 3, 4, 1000)] == [1.0, 3.0, 9.0, 10.0, 10.0]
    assert Retry().delay(5) == 0.0 and Retry(backoff=1.0).delay(10_000) < float("inf")


def group_of(text: str) -> JobGroup:
    return load("w.yaml", text=f"jobs:\n  a: {{command: x, {text}}}".encode()).groups[0]


def test_the_file_says_it_short_or_in_full() -> None:
    assert group_of("retries: 3").retries == 3
    full = group_of("retries: {limit: 3, backoff: 1s, factor: 2, max: 1m}, retry_on: [7, SIGSEGV, timeout]")
    assert full.retries == 3
    assert full.retry == Retry(backoff=1.0, factor=2.0, max=60.0, every=False, codes=((7, 7), (-11, -11)), timeout=True)
    assert group_of("retries: 1, retry_on: 1-5").retry.codes == ((1, 5),)


@pytest.mark.parametrize(("text", "word"), [
    ("retries: {backoff: 1s}", "limit"), ("retries: {limit: 1, factor: 0.5}", "factor"),
    ("retry_on: [1]", "no retries"), ("retries: 1, retry_on: [300]", "255"), ("retries: 1, retry_on: []", "empty"),
    ("retries: {limit: 1, x: 2}", "'x'")])
def test_mistakes_in_the_file_are_named(text: str, word: str) -> None:
    with pytest.raises(WorkflowError, match=word):
        group_of(text)


rules = st.builds(
    Retry, every=st.booleans(), timeout=st.booleans(), backoff=st.sampled_from([0.0, 1.0]),
    codes=st.lists(st.tuples(st.integers(-20, 5), st.integers(0, 20)), max_size=3).map(tuple))
endings = st.lists(st.tuples(st.sampled_from([Result.COMPLETED, Result.FAILED, Result.TIMEOUT, Result.LOST]),
                             st.integers(-20, 20)), min_size=1, max_size=8)


@settings(max_examples=300)
@given(rules, st.integers(0, 3), st.lists(endings, min_size=1, max_size=4))
def test_table_and_reader_agree_with_a_job_by_job_model(rule: Retry, limit: int, jobs: list[list[tuple[Result, int]]],
                                                        ) -> None:
    group = JobGroup(number=0, name="g", first_id=1, count=len(jobs), retries=limit, retry=rule)
    table = JobTable()
    table.add_group(group)
    table.assign(Chunk(0, 0, len(jobs)), 0)
    told: list[list[object]] = [[] for _ in jobs]
    for turn in range(8):
        batch = [(i, *endings[turn]) for i, endings in enumerate(jobs)
                 if turn < len(endings) and table.state[i] != State.INACTIVE]
        records = np.zeros(len(batch), RECORD)
        for record, (i, result, code) in zip(records, batch, strict=True):
            record["id"], record["attempt"], record["result"], record["returncode"] = i + 1, turn + 1, result, code
        before = table.retries_used[:len(jobs)].tolist()
        applied = table.apply(records, turn)
        again = set(applied.again.tolist())
        for i, result, code in batch:
            failed = result in (Result.FAILED, Result.TIMEOUT)
            retried = failed and before[i] < limit and rule.wants(result == Result.TIMEOUT, code)
            assert (i + 1 in again) == (retried or result == Result.LOST)
            assert table.retries_used[i] == before[i] + retried
            told[i].append(Record(i + 1, turn + 1, result, 0, code, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0))
            attempts = [describe_attempt(record) for record in told[i]]
            assert was_end(group, attempts) == (table.state[i] == State.INACTIVE)
        delays = table.delays(applied.again)
        assert sorted(job for _, ids in delays for job in ids.tolist()) == sorted(again)
        for seconds, ids in delays:
            assert all(rule.delay(int(table.retries_used[job - 1])) == seconds for job in ids.tolist()
                       if table.retries_used[job - 1])
        for chunk in table.chunks(applied.again):
            table.assign(chunk, 0)


class describe_attempt:
    def __init__(self, record: object) -> None:
        self.record = record


def test_an_agenda_gives_what_is_due_in_order() -> None:
    agenda: Agenda[str] = Agenda()
    assert agenda.next == float("inf") and agenda.due(1e9) == []
    for when, what in ((2.0, "b"), (1.0, "a"), (2.0, "c"), (5.0, "d")):
        agenda.add(when, what)
    assert agenda.due(0.9) == [] and agenda.next == 1.0
    assert agenda.due(2.0) == ["a", "b", "c"] and len(agenda) == 1
    agenda.clear()
    assert agenda.due(9.0) == []


def test_what_waits_is_known_after_a_resumption(tmp_path: Path) -> None:
    """Failed once or twice: the wait is from the end of the last attempt. Lost, ended, or without a back-off: none."""
    group = JobGroup(number=0, name="g", first_id=1, count=7, command=("x",), retries=2,
                     retry=Retry(backoff=10.0, factor=3.0))
    other = JobGroup(number=1, name="h", first_id=8, count=1, command=("x",), retries=2)
    table = JobTable()

    def record(job: int, attempt: int, result: Result, end: float) -> bytes:
        return PACK.pack(job, attempt, result, 0, 1, 1, 0, 0, end, end - 1, end, 0, 0, 0, 0, 0, 0)

    with Journal(str(tmp_path)) as journal:
        for one in (group, other):
            table.add_group(one)
            journal.append_group(one, 1.0)
        table.assign(Chunk(0, 0, 7), 1)
        table.assign(Chunk(1, 0, 1), 1)
        for data in (record(1, 1, Result.FAILED, 100.0), record(2, 1, Result.FAILED, 101.0),
                     record(3, 1, Result.COMPLETED, 102.0), record(4, 1, Result.LOST, 103.0),
                     record(6, 1, Result.TIMEOUT, 100.0), record(8, 1, Result.FAILED, 104.0)):
            table.apply(np.frombuffer(data, RECORD), *journal.append_results(data, b"", {}))
        table.assign(Chunk(0, 1, 2, 1, 2), 1)
        data = record(2, 2, Result.FAILED, 200.0)
        table.apply(np.frombuffer(data, RECORD), *journal.append_results(data, b"", {}))
    with open_run(tmp_path) as reader:
        waits = resume(reader, 500.0).waits
    assert [(when, ids.tolist()) for when, ids in waits] == [(110.0, [1, 6]), (230.0, [2])]
