"""Gangs: one record from many parts, one barrier over all, one end for all, and R free only when nothing runs."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mpiflux.model import messages as m
from mpiflux.model.jobspec import JobGroup, Request
from mpiflux.model.records import FIELDS, FLAG_NOT_STARTED, FLAG_REASON, FLAG_STDOUT_TRUNCATED, FLAG_STREAMED, PACK
from mpiflux.model.resources import NodeResources
from mpiflux.model.states import Result
from mpiflux.sched.catalog import Catalog
from mpiflux.sched.gang import Gang, Gangs
from mpiflux.sched.leasing import Leasing
from mpiflux.sched.pool import ResourcePool
from mpiflux.sched.queue import WorkQueue

PARENT, SCHED, JOB = 7, 3, 41
NAMES = [name for name, _ in FIELDS]


def gang(tasks: tuple[int, ...] = (2, 2, 1), *, limit: int = 1000, in_turn: bool = False, attempt: int = 1) -> Gang:
    parts = [(100 + i, f"n{i}", m.Part(JOB, attempt, 0, 5, i, tasks, m.NodeShare(i, tasks=n), "n[0-2]"))
             for i, n in enumerate(tasks)]
    return Gang(1, parts, sched=SCHED, r_id=9, parent=PARENT, limit=limit, in_turn=in_turn, now=10.0)


def sent(one: Gang | list[tuple[int, m.Message]]) -> list[tuple[int, m.Message]]:
    if isinstance(one, Gang):
        out, one.out = one.out, []
        return out
    return one


def record(part: int, result: Result = Result.COMPLETED, code: int = 0, *, out: int = 0, err: int = 0,
           end: float = 12.0, rss: int = 100, flags: int = 0) -> bytes:
    return PACK.pack(JOB, 1, result, flags, code, 1, SCHED, 0, 11.0, 11.0, end, 1.5, 0.5, rss, out, err, 1000 + part)


def start(one: Gang, n: int = 3) -> None:
    for i in range(n):
        one.started(100 + i, m.PartStarted(JOB, 1, i, 11.0 + i, 1000 + i))


def final(actions: list[tuple[int, m.Message]]) -> tuple[dict[str, float], m.Report]:
    ((where, report),) = [(dst, one) for dst, one in actions if isinstance(one, m.Report) and one.records]
    assert where == PARENT and isinstance(report, m.Report)
    return dict(zip(NAMES, PACK.unpack(report.records), strict=True)), report


def test_one_record_for_all_parts() -> None:
    one = gang()
    assert [dst for dst, part in sent(one) if isinstance(part, m.Part)] == [100, 101, 102]
    start(one, 2)
    assert not sent(one), "it runs once all of it does"
    one.started(102, m.PartStarted(JOB, 1, 2, 10.5, 1002))
    ((_, up),) = sent(one)
    assert isinstance(up, m.Report)
    running = dict(zip(NAMES, PACK.unpack(up.started), strict=True))
    assert running["t_start"] == 10.5 and running["tasks"] == 5 and running["pid"] == 1000
    for i in (2, 0, 1):
        assert not one.over
        one.ended(100 + i, m.PartEnded(JOB, 1, i, record(i, out=2, err=1, end=20.0 - i, rss=i), b"o%de" % i), 30.0)
    assert one.over
    got, report = final(sent(one))
    assert (got["result"], got["returncode"], got["tasks"], got["r_sched"], got["r_id"]) == (1, 0, 5, SCHED, 9)
    assert (got["t_alloc"], got["t_start"], got["t_finish"]) == (10.0, 10.5, 20.0)
    assert (got["utime"], got["stime"], got["maxrss"]) == (4.5, 1.5, 2)
    assert report.output == b"o0o1o2eee" and (got["out_len"], got["err_len"]) == (6, 3)
    assert not report.reasons and not got["flags"]


def test_what_is_odd_about_every_part_is_the_reason_of_a_job_that_has_completed() -> None:
    for odd in (3, 2):
        one = gang()
        start(one)
        for i in range(3):
            reason = "none of its 5 tasks asked" if i < odd else ""
            one.ended(100 + i, m.PartEnded(JOB, 1, i, record(i), b"", reason), 30.0)
        got, report = final(sent(one))
        assert got["result"] == Result.COMPLETED and bool(got["flags"] & FLAG_REASON) is (odd == 3)
        assert report.reasons == ({JOB: "none of its 5 tasks asked"} if odd == 3 else {})


def test_the_first_failure_ends_the_others_and_names_the_job_s_end() -> None:
    one = gang()
    start(one)
    sent(one)
    one.failed(101, m.PartFailed(JOB, 1, 1, Result.FAILED, -11, "task 2 on n1 was killed by signal 11"))
    cancels = sent(one)
    assert [dst for dst, _ in cancels] == [100, 102], "the failed part is ended by its own executor"
    assert all(isinstance(c, m.Cancel) and c.ids == (JOB,) and c.result == Result.FAILED for _, c in cancels)
    one.failed(102, m.PartFailed(JOB, 1, 2, Result.FAILED, 1, "task 4 lost its neighbour"))
    assert not sent(one)
    for i in range(3):
        one.ended(100 + i, m.PartEnded(JOB, 1, i, record(i, Result.FAILED, -15), b"", "ended"), 30.0)
    got, report = final(sent(one))
    assert got["returncode"] == -11 and got["result"] == Result.FAILED
    assert report.reasons == {JOB: "task 2 on n1 was killed by signal 11"}


def test_a_lost_supervisor_is_nobody_s_fault_even_when_others_fail_first() -> None:
    one = gang()
    start(one)
    one.failed(100, m.PartFailed(JOB, 1, 0, Result.FAILED, 1, "connection reset"))
    one.lost(101, 20.0)
    assert not one.over, "the others still run"
    one.ended(101, m.PartEnded(JOB, 1, 1, record(1)), 20.0)
    for i in (0, 2):
        one.ended(100 + i, m.PartEnded(JOB, 1, i, record(i, Result.FAILED, -15)), 30.0)
    got, report = final(sent(one))
    assert got["result"] == Result.LOST and "n1" in report.reasons[JOB]


def test_a_cancelled_job_is_cancelled_whatever_its_parts_say() -> None:
    one = gang()
    start(one)
    one.cancelled(m.Cancel((JOB,), "not needed"), 15.0)
    one.failed(100, m.PartFailed(JOB, 1, 0, Result.FAILED, -15, "task 0 was killed"))
    for i in range(3):
        one.ended(100 + i, m.PartEnded(JOB, 1, i, record(i, Result.CANCELED, -15), b"", "not needed"), 30.0)
    got, report = final(sent(one))
    assert got["result"] == Result.CANCELED and report.reasons == {JOB: "not needed"}


def test_files_are_made_by_the_first_part_before_others_append() -> None:
    one = gang(in_turn=True)
    assert [dst for dst, _ in sent(one)] == [100]
    one.started(100, m.PartStarted(JOB, 1, 0, 11.0, 1))
    assert [dst for dst, _ in sent(one)] == [101, 102]


def test_what_was_not_sent_yet_never_is_once_the_first_part_failed() -> None:
    one = gang(in_turn=True)
    sent(one)
    gone = record(0, Result.FAILED, 127, flags=FLAG_NOT_STARTED)
    one.ended(100, m.PartEnded(JOB, 1, 0, gone, b"", "nosuch: command not found"), 12.0)
    actions = sent(one)
    assert one.over and len(actions) == 1
    got, report = final(actions)
    assert got["returncode"] == 127 and got["flags"] & FLAG_NOT_STARTED and not got["tasks"]
    assert report.reasons == {JOB: "nosuch: command not found"}


def test_pieces_of_streams_do_not_clash_and_are_bounded_together() -> None:
    one = gang(limit=10)
    start(one)
    sent(one)
    for piece in (m.Output(JOB, 1, 1, 0, b"aaaa"), m.Output(JOB, 1, 1, 0, b"bbb"), m.Output(JOB, 1, 2, 0, b"err")):
        one.output(piece)
    pieces = [piece for _, piece in sent(one) if isinstance(piece, m.Output)]
    assert [(p.stream, p.offset, p.data) for p in pieces] == [(1, 0, b"aaaa"), (1, 4, b"bbb"), (2, 0, b"err")]
    for i in range(3):
        one.ended(100 + i, m.PartEnded(JOB, 1, i, record(i, out=2), b"%d%d" % (i, i)), 30.0)
    got, report = final(sent(one))
    assert report.output == b"001" and got["out_len"] == 3, "7 of 10 bytes had gone before"
    assert got["flags"] == FLAG_STREAMED | FLAG_STDOUT_TRUNCATED


def test_a_barrier_waits_for_all_and_gives_everybody_everything() -> None:
    one = gang()
    start(one)
    sent(one)
    for round_ in range(2):
        for i in range(3):
            assert not sent(one)
            one.barrier(100 + i, m.Barrier(JOB, 1, i, {b"k%d" % i: b"%d" % round_}))
        done = sent(one)
        assert [dst for dst, _ in done] == [100, 101, 102]
        assert all(d.puts == {b"k0": b"%d" % round_, b"k1": b"%d" % round_, b"k2": b"%d" % round_}
                   for _, d in done if isinstance(d, m.BarrierDone))


def test_tasks_that_end_by_themselves_when_asked_still_meet_in_mpi_finalize() -> None:
    for ask in (lambda one: one.cancelled(m.Cancel((JOB,), "enough"), 15.0), lambda one: one.stopped(),
                lambda one: one.failed(101, m.PartFailed(JOB, 1, 1, Result.FAILED, 1, "one of its tasks failed"))):
        one = gang()
        start(one)
        one.barrier(100, m.Barrier(JOB, 1, 0, {b"k": b"v"}))
        ask(one)
        sent(one)
        for i in (1, 2):
            one.barrier(100 + i, m.Barrier(JOB, 1, i, {}))
        done = sent(one)
        assert [dst for dst, _ in done] == [100, 101, 102]
        assert all(isinstance(message, m.BarrierDone) and message.puts == {b"k": b"v"} for _, message in done)


def test_tasks_that_wait_for_a_part_that_has_left_do_not_wait_for_ever() -> None:
    for first_barrier in (True, False):
        one = gang()
        start(one)
        sent(one)
        steps = [lambda one=one: one.barrier(100, m.Barrier(JOB, 1, 0, {})),
                 lambda one=one: one.ended(101, m.PartEnded(JOB, 1, 1, record(1)), 20.0)]
        for step in steps if first_barrier else reversed(steps):
            step()
        assert sorted(dst for dst, c in sent(one) if isinstance(c, m.Cancel)) == [100, 102]


def test_late_parts_of_an_earlier_attempt_change_nothing() -> None:
    gangs = Gangs()
    gangs.add(gang(attempt=2))
    assert gangs.receive(100, m.PartEnded(JOB, 1, 0, record(0)), 20.0) == []
    assert gangs.receive(100, m.Output(JOB, 1, 1, 0, b"x"), 20.0) is None
    assert gangs.receive(100, m.Barrier(JOB + 1, 1, 0, {}), 20.0) == []
    assert gangs.receive(101, m.PartFailed(JOB, 2, 0, 2, 1, "not its part"), 20.0) == []
    assert not gangs.over() and len(gangs) == 1


class GangModel(RuleBasedStateMachine):
    """Executors that answer in any order and at any time, die, and are told to end things."""

    def __init__(self) -> None:
        super().__init__()
        self.gangs = Gangs()
        self.running: set[int] = set()
        """Parts that their executors run."""
        self.waiting: set[int] = set()
        self.told: set[int] = set()
        self.started: set[int] = set()
        self.left: set[int] = set()
        """Parts that ended by themselves."""
        self.reports: list[m.Report] = []
        self.freed = 0
        self.failures = 0
        self.n = 4
        tasks = (1,) * self.n
        parts = [(100 + i, f"n{i}", m.Part(JOB, 1, 0, 0, i, tasks, m.NodeShare(i), "n[0-3]")) for i in range(self.n)]
        self.act(self.gangs.add(Gang(5, parts, sched=SCHED, r_id=0, parent=PARENT, limit=50, in_turn=True, now=1.0)))

    def act(self, actions: list[tuple[int, m.Message]] | None) -> None:
        for dst, message in actions or ():
            if isinstance(message, m.Part):
                assert dst == 100 + message.part and message.part not in self.running
                self.running.add(message.part)
            elif isinstance(message, m.BarrierDone):
                assert dst - 100 in self.waiting, "let go although it does not wait"
                self.waiting.discard(dst - 100)
            elif isinstance(message, m.Cancel):
                self.told.add(dst - 100)
            elif isinstance(message, m.Report) and message.records:
                self.reports.append(message)
        for over in self.gangs.over():
            assert over.token == 5
            self.freed += 1
            assert not self.running, "resources are free while something runs on them"

    def end(self, part: int, result: Result) -> None:
        self.running.discard(part)
        self.waiting.discard(part)
        self.left.add(part)
        self.failures += result is not Result.COMPLETED or bool(self.waiting)
        self.act(self.gangs.receive(100 + part, m.PartEnded(JOB, 1, part, record(part, result, int(result) - 1),
                                                            b"", "why"), 20.0))

    @precondition(lambda self: self.running - self.started)
    @rule(data=st.data())
    def starts(self, data: st.DataObject) -> None:
        part = data.draw(st.sampled_from(sorted(self.running - self.started)))
        self.started.add(part)
        self.act(self.gangs.receive(100 + part, m.PartStarted(JOB, 1, part, 11.0, 5), 11.0))

    @precondition(lambda self: (self.running & self.started) - self.waiting)
    @rule(data=st.data())
    def waits(self, data: st.DataObject) -> None:
        part = data.draw(st.sampled_from(sorted((self.running & self.started) - self.waiting)))
        self.waiting.add(part)
        self.failures += bool(self.left)
        self.act(self.gangs.receive(100 + part, m.Barrier(JOB, 1, part, {b"%d" % part: b""}), 12.0))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), result=st.sampled_from([Result.COMPLETED, Result.FAILED, Result.TIMEOUT]))
    def ends(self, data: st.DataObject, result: Result) -> None:
        part = data.draw(st.sampled_from(sorted(self.running)))
        self.end(part, result if part in self.started else Result.FAILED)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def supervisor_dies(self, data: st.DataObject) -> None:
        part = data.draw(st.sampled_from(sorted(self.running)))
        self.running.discard(part)
        self.waiting.discard(part)
        self.failures += 1
        self.act(self.gangs.lost(100 + part, 20.0))

    @precondition(lambda self: len(self.gangs))
    @rule()
    def somebody_cancels(self) -> None:
        executors, actions = self.gangs.cancel(m.Cancel((JOB,), "enough"), 20.0)
        assert executors == {100 + part for part in self.running}
        self.told |= self.running
        self.failures += 1
        self.act(actions)

    @rule()
    def all_that_were_told_end(self) -> None:
        for part in sorted(self.running & self.told):
            self.end(part, Result.FAILED)

    @invariant()
    def one_end(self) -> None:
        assert len(self.reports) == self.freed <= 1
        if self.reports:
            assert not self.running
            result = PACK.unpack(self.reports[0].records)[2]
            assert (result == Result.COMPLETED) is (not self.failures)
        if self.failures and self.running:
            assert self.running <= self.told, "something failed, and this part may run for ever"

    @invariant()
    def nobody_waits_for_ever(self) -> None:
        if self.waiting == self.running and len(self.running) == self.n:
            assert self.waiting <= self.told, "all are in, and none was let go"
        if self.left and self.waiting:
            assert self.waiting <= self.told, "it waits for one that has left"

    def teardown(self) -> None:
        while self.running:
            part = min(self.running)
            if part not in self.started:
                self.started.add(part)
                self.act(self.gangs.receive(100 + part, m.PartStarted(JOB, 1, part, 11.0, 5), 11.0))
            self.end(part, Result.COMPLETED)
        assert self.freed == len(self.reports) == 1, "it never ended"


GangModel.TestCase.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
TestGangModel = GangModel.TestCase


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.integers(2, 4), st.integers(1, 5))
@settings(deadline=None, max_examples=60)
def test_leasing_never_gives_a_core_twice(order: list[int], nodes: int, tasks: int) -> None:
    """Jobs over several nodes and small ones, started and ended in any order."""
    catalog = Catalog()
    pool = ResourcePool([NodeResources(node=i, cores=(0, 1, 2, 3)) for i in range(4)])
    below = Leasing(SCHED, PARENT, pool, lambda node, core: 100 + node, tuple(range(100, 104)), catalog)
    queue = WorkQueue(catalog.priority)
    wide = JobGroup(number=0, name="w", first_id=1, count=50, request=Request(nodes=nodes, tasks=max(tasks, nodes)))
    small = JobGroup(number=1, name="s", first_id=51, count=50)
    for group in (wide, small):
        catalog.add(m.Declare(group))
        queue.push(m.Chunk(group.number, 0, 50))
    used: dict[tuple[int, int], int] = {}
    parts: dict[int, list[tuple[int, m.Part]]] = {}

    def settle() -> None:
        for entry in list(queue):
            queue.take(entry, below.start(entry))
        for dst, message in below.collect(0.0):
            shares = ([message.share] if isinstance(message, m.Part)
                      else message.r.shares if isinstance(message, m.Grant) else ())
            for share in shares:
                for core in share.cores:
                    assert (share.node, core) not in used, "given twice"
                    used[share.node, core] = getattr(message, "id", -1)
            if isinstance(message, m.Part):
                assert dst == 100 + message.share.node
                parts.setdefault(message.id, []).append((dst, message))

    settle()
    assert parts, "no wide job was started on an empty machine"
    for step in order:
        if not parts:
            break
        job = sorted(parts)[step % len(parts)]
        for at, (dst, part) in enumerate(parts[job]):
            before = pool.free_cores
            below.part(dst, m.PartEnded(job, 1, part.part, record(part.part)), 5.0)
            last = at == len(parts[job]) - 1
            assert (pool.free_cores > before) is last, "R is free when all parts have ended, and not before"
        for key in [key for key, owner in used.items() if owner == job]:
            del used[key]
        del parts[job]
        settle()
