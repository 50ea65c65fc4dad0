"""What rank 0 and the others do about signals that come from outside: nothing starts, nothing is believed too soon."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mpiflux.instance.alarm import HOLD, LISTEN, SUSPICION, suspicion
from mpiflux.instance.master import Master
from mpiflux.instance.rank import Rank
from mpiflux.instance.view import Observer
from mpiflux.model import messages as m
from mpiflux.model.jobspec import Dependency, JobGroup, Workflow
from mpiflux.model.records import PACK
from mpiflux.model.states import Result
from mpiflux.overlay import address
from mpiflux.overlay.transport import LocalTransport
from mpiflux.store.jobtable import JobTable
from mpiflux.store.journal import Journal
from mpiflux.store.reader import open_run
from mpiflux.store.resume import resume

TERM, INT = 15, 2


class Quiet(Observer):
    def progress(self, view: object) -> None:
        return

    def note(self, text: str) -> None:
        return


class Whole:
    """A master without a tree below it. ``a`` has jobs 1 to 4, ``b`` waits for them."""

    def __init__(self, run_dir: Path, **keys: Any) -> None:
        groups = (JobGroup(number=0, name="a", first_id=1, count=4),
                  JobGroup(number=1, name="b", first_id=5, count=2, after=(Dependency("a"),)))
        self.now, self.run_dir = 100.0, run_dir
        self.journal, self.table = Journal(run_dir, durable=False), JobTable()
        for group in groups:
            self.table.add_group(group)
            self.journal.append_group(group, self.now)
        self.master = Master(Workflow(name="w", groups=groups), self.journal, self.table, Quiet(), cores=4, ranks=1,
                             clock=lambda: self.now, t_submit=[self.now] * 2, **keys)
        self.master.begin()
        self.sent()

    def sent(self) -> list[m.Message]:
        self.journal.wait()
        self.master.turn(self.now)
        return [message for _, message in self.master.collect()]

    def end(self, job: int, result: Result, attempt: int = 1) -> None:
        record = PACK.pack(job, attempt, result, 0, int(result is Result.FAILED), 1, 1, 0, 99.0, 99.0, 99.5, 0, 0, 0, 0,
                           0, 1)
        self.master.handle(0, m.Report(record), self.now)

    def warned(self, *doubtful: tuple[int, int], number: int = TERM) -> None:
        self.master.handle(0, m.Warned(number, doubtful), self.now)


@pytest.fixture
def whole(tmp_path: Path) -> Iterator[Whole]:
    made = Whole(tmp_path, suspicion=SUSPICION)
    yield made
    made.journal.close()


def test_what_is_in_doubt_runs_again_with_the_next_instance(whole: Whole) -> None:
    for job, result in ((1, Result.COMPLETED), (2, Result.FAILED), (3, Result.COMPLETED), (4, Result.LOST)):
        whole.end(job, result)
    whole.warned((1, 1), (2, 1), (4, 1), (77, 1), (0, 1), (3, 2))
    whole.master.signalled(TERM, whole.now)
    whole.master.close(whole.now)
    view = whole.master.view
    assert (view.counts.completed, view.counts.failed, view.doubtful, view.failures) == (1, 0, 2, [])
    with open_run(whole.run_dir) as reader:
        assert [job["state"] for job in reader.jobs()] == ["SCHED", "SCHED", "INACTIVE", "SCHED", "DEPEND", "DEPEND"]
        assert reader.job(1)["result"] == "" or reader.job(1)["result"] is None
        assert [event.name for event in reader.eventlog(1)][-2:] == ["rerun", "depend"]
        resumed = resume(reader, 200.0)
    chunks = {(chunk.start, chunk.stop): chunk.attempt for chunk in resumed.table.unfinished(0)}
    assert set(chunks.values()) == {2} and sum(stop - start for start, stop in chunks) == 3
    # and what the next one reports is taken
    with Journal(whole.run_dir, durable=False) as journal:
        record = PACK.pack(1, 2, Result.COMPLETED, 0, 0, 1, 1, 0, 300.0, 300.0, 301.0, 0, 0, 0, 0, 0, 1)
        journal.append_results(record)
    with open_run(whole.run_dir) as reader:
        assert (reader.job(1)["result"], reader.job(1)["attempts"]) == ("COMPLETED", 2)
        assert reader.table.counts().completed == 2


@pytest.mark.parametrize(("number", "listen"), [(INT, 0.0), (TERM, LISTEN), (10, LISTEN)])
def test_supervisors_listen_for_a_signal_that_may_have_come_to_all(whole: Whole, number: int, listen: float) -> None:
    whole.master._suspicion = 0.0
    whole.master.signalled(number, whole.now)
    assert [one.listen for one in whole.sent() if isinstance(one, m.Stop)] == [listen]


def test_below_a_batch_system_int_may_have_come_to_all_too(whole: Whole) -> None:
    """LSF's first signal is INT, and srun passes Ctrl-C on to the processes of jobs."""
    whole.master.signalled(INT, whole.now)
    assert [one.listen for one in whole.sent() if isinstance(one, m.Stop)] == [LISTEN]


def test_who_is_warned_has_nothing_started_for_a_while(whole: Whole) -> None:
    whole.warned((3, 1))
    assert m.Pause(True) in whole.sent()
    whole.end(1, Result.LOST)
    assert whole.master.view.signalled == 1 and not whole.master.view.lost
    whole.now += HOLD / 2
    whole.warned()
    whole.now += HOLD - 1
    assert m.Pause(False) not in whole.sent()
    whole.now += 1.1
    assert m.Pause(False) in whole.sent(), "the signal was for one node alone"
    assert not whole.master.alarm.doubtful
    whole.end(1, Result.LOST, 2)
    assert whole.master.view.lost == 1


def test_nothing_is_cancelled_for_a_failure_that_a_signal_may_be_behind(whole: Whole) -> None:
    for job in range(1, 5):
        whole.end(job, Result.COMPLETED if job > 1 else Result.FAILED)
    whole.sent()
    assert not whole.table.over
    assert whole.master.next_wake() <= whole.now + SUSPICION
    whole.now += SUSPICION
    whole.sent()
    assert whole.table.over and whole.table.counts().canceled == 2


def test_a_signal_comes_before_that(whole: Whole) -> None:
    for job in range(1, 5):
        whole.end(job, Result.COMPLETED if job > 1 else Result.FAILED)
    whole.warned((1, 1))
    whole.master.signalled(TERM, whole.now)
    whole.now += 1.0
    whole.sent()
    whole.master.close(whole.now)
    with open_run(whole.run_dir) as reader:
        assert (reader.table.counts().canceled, reader.table.counts().completed) == (0, 3)


@pytest.mark.parametrize("signal_first", [True, False])
def test_failing_fast_waits_as_long(tmp_path: Path, signal_first: bool) -> None:
    whole = Whole(tmp_path, suspicion=SUSPICION, fail_fast=True)
    whole.end(1, Result.FAILED)
    assert not any(isinstance(one, m.Cancel) for one in whole.sent())
    if signal_first:
        whole.master.signalled(TERM, whole.now)
    whole.now += SUSPICION
    assert any(isinstance(one, m.Cancel) for one in whole.sent()) is not signal_first
    whole.journal.close()


@pytest.mark.parametrize(("environ", "seconds"), [
    ({}, 0.0), ({"SLURM_JOB_ID": "1"}, SUSPICION), ({"LSB_JOBID": "1"}, SUSPICION),
    ({"MPIFLUX_JOB_ID": "1"}, SUSPICION),
])
def test_only_below_a_batch_system(environ: Mapping[str, str], seconds: float) -> None:
    assert suspicion(environ) == seconds


class Leaf:
    """A scheduler that keeps what it gets."""

    due = float("inf")

    def __init__(self) -> None:
        self.got: list[m.Message] = []

    def receive(self, src: int, message: m.Message, now: float) -> None:
        self.got.append(message)

    def settle(self, now: float) -> list[tuple[int, m.Message]]:
        return []

    patrol = settle


class Transport(LocalTransport):
    rank, size = 1, 2

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[int, int, m.Message]] = []

    def send(self, scheduler: int, rank: int, data: bytes) -> None:
        self.sent += m.decode(data)


def test_a_rank_that_gets_a_signal_starts_nothing_and_tells_rank_0() -> None:
    leaf, transport = Leaf(), Transport()
    rank = Rank(transport, {3: leaf}, lambda endpoint: 1 if endpoint == 3 else 0,  # type: ignore[dict-item]
                lambda: 100.0)
    rank._signals_out.send(bytes([TERM]))
    rank.turn()
    assert leaf.got == [m.Pause(True)]
    assert transport.sent == [(address.MASTER, address.control(1), m.Warned(TERM))]
    rank._epoll.close()
    rank._signals_in.close()
    rank._signals_out.close()
