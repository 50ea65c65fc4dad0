"""The journal, the reader and resumption together, on real files."""

from __future__ import annotations

import json
import os
import select
import shutil
import sqlite3
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from mpiflux.model.jobspec import Dependency, JobGroup, Request
from mpiflux.model.messages import Chunk, NodeShare, ResourceSet
from mpiflux.model.params import ParamTable, RangeColumn
from mpiflux.model.records import FIELDS, FLAG_NOT_STARTED, FLAG_REASON, FLAG_STREAMED
from mpiflux.model.states import TRANSITIONS, Result, State
from mpiflux.store import journal as journal_module
from mpiflux.store.eventlog import Record
from mpiflux.store.jobtable import RECORD, JobTable
from mpiflux.store.journal import Held, Journal, JournalError, Place
from mpiflux.store.kvs import Delete, Kvs, NoKey, put
from mpiflux.store.reader import RunError, open_run
from mpiflux.store.resume import resume

HOSTS = ["alpha", "beta"]
GROUPS = (
    JobGroup(number=0, name="sim", first_id=1, count=6, command=("sim", "{x}", "{job.attempt}"), retries=1,
             params=ParamTable(("x",), (RangeColumn(10, 10, 6),)), env={"A": "{x}"}),
    JobGroup(number=1, name="fit", first_id=7, count=2, script="echo {job.id}", after=(Dependency("sim"),),
             request=Request(tasks=2, cores=2, nodes=2)),
)


def record(id, attempt=1, result=Result.COMPLETED, **more):
    out = np.zeros(1, RECORD)
    values = {"id": id, "attempt": attempt, "result": result, "tasks": 1, "t_alloc": 101.0, "t_start": 102.0,
              "t_finish": 103.0, "pid": 77, "maxrss": 3, **more}
    for name, value in values.items():
        out[name] = value
    return out.tobytes()


def write(directory, fill, **options):
    with Journal(directory, **options) as journal:
        if journal.run == 0:
            for group in GROUPS:
                journal.append_group(group, 100.0)
        journal.set_meta(nodes=HOSTS, workflow="w", state="running")
        journal.append_rset(3, 1, ResourceSet((NodeShare(1, (0, 1, 4), (0,)),)))
        journal.append_rset(0, 0, ResourceSet((NodeShare(0, (0, 1)), NodeShare(1, (0, 1)))))
        return fill(journal)


def test_record_names_are_the_fields():
    assert Record._fields == tuple(name for name, _ in FIELDS)


def test_a_finished_run(tmp_path):
    def fill(journal):
        out = b"one\xff" + b"err" + b"two"
        assert journal.append_results(
            record(2, r_sched=3, r_id=1, out_len=4, err_len=3) + record(1, r_sched=3, r_id=1, out_len=3), out) == (0, 0)
        assert journal.append_results(record(3, result=Result.FAILED, returncode=-9, flags=FLAG_REASON),
                                      reasons={3: "out of memory"}) == Place(0, 2)
        journal.wait()
        assert journal.append_results(record(3, 2, returncode=0, t_start=110.0, t_finish=111.0)) == (1, 0)
        journal.append_event(3, 109.0, "urgency", {"urgency": 31})
        journal.append_results(record(7, tasks=2, r_sched=0, r_id=0, t_alloc=120.0, t_start=121.0, t_finish=130.0))
        journal.append_results(record(8, 0, Result.CANCELED, flags=FLAG_NOT_STARTED | FLAG_REASON, t_alloc=0.0,
                                      t_start=0.0), reasons={8: "by user"})
        journal.set_meta(state="finished", t_end=140.0)
    write(tmp_path, fill)
    assert sorted(os.listdir(tmp_path)) == ["run.db", "run.db-lock"]
    with open_run(tmp_path) as run:
        assert run.state == "finished" and run.meta["workflow"] == "w" and run.total == 8
        assert run.groups == list(GROUPS)
        two = run.job(2, with_output=True)
        assert two == {
            "id": 2, "name": "sim", "index": 1, "params": {"x": 20}, "state": "INACTIVE", "result": "COMPLETED",
            "returncode": 0, "attempts": 1, "tasks": 1, "nodes": ["beta"], "cores": "0-1,4", "gpus": "0",
            "t_submit": 100.0, "t_start": 102.0, "t_finish": 103.0, "utime": 0.0, "stime": 0.0, "maxrss": 3072,
            "reason": "", "truncated": [], "stdout": "one\udcff", "stderr": "err"}
        json.dumps(two)
        assert run.job(7)["cores"] == ["0-1", "0-1"] and run.job(7)["nodes"] == HOSTS
        assert run.job(8)["reason"] == "by user" and run.job(8)["attempts"] == 0 and run.job(8)["t_start"] is None
        assert (run.job(5)["state"], run.job(5)["result"], run.job(5)["returncode"]) == ("SCHED", None, None)
        everything = list(run.jobs(with_output=True))
        assert everything == [run.job(i, with_output=True) for i in range(1, 9)]
        assert [j["id"] for j in run.jobs(name="fit")] == [7, 8]
        assert [j["id"] for j in run.jobs(states=[State.SCHED])] == [4, 5, 6]
        assert [j["id"] for j in run.jobs(results=[Result.CANCELED, Result.FAILED])] == [8]
        assert [j["id"] for j in run.jobs(ids=[3, 1])] == [1, 3]
        assert run.output(1, 1) == b"two" and run.output(1, 2) == b"" and run.output(6, 1) == b""
        assert [(e.name, e.timestamp) for e in run.eventlog(3)] == [
            ("submit", 100.0), ("depend", 100.0), ("alloc", 101.0), ("start", 102.0), ("finish", 103.0),
            ("release", 103.0), ("retry", 103.0), ("alloc", 101.0), ("urgency", 109.0), ("start", 110.0),
            ("finish", 111.0), ("release", 111.0), ("clean", 111.0)]
        assert [e.name for e in run.eventlog(8)] == ["submit", "exception", "clean"]
        assert run.eventlog(8)[1].context == {"type": "cancel", "severity": 0, "note": "by user"}
        assert run.R(2)["execution"]["R_lite"] == [{"rank": "1", "children": {"core": "0-1,4", "gpu": "0"}}]
        assert run.R(7)["execution"]["R_lite"] == [{"rank": "0-1", "children": {"core": "0-1"}}]
        assert run.R(7)["execution"]["nodelist"] == HOSTS and run.R(8) is None
        assert run.jobspec(3)["command"] == ["sim", "30", "2"] and run.jobspec(3)["env"] == {"A": "30"}
        assert run.jobspec(8)["script"] == "echo 8" and run.jobspec(8)["after"] == [{"group": "sim", "kind": "ok"}]


def test_a_name_that_was_submitted_again_means_all_of_its_jobs(tmp_path):
    more = [JobGroup(number=n, name="sim", first_id=first, count=count, command=("true",))
            for n, first, count in ((2, 9, 1), (3, 10, 2))]
    def fill(journal):
        for group in more:
            journal.append_group(group, 101.0)
    write(tmp_path, fill)
    with open_run(tmp_path) as run:
        ids = [1, 2, 3, 4, 5, 6, 9, 10, 11]
        assert run.resolve("sim") == ids and [job["id"] for job in run.jobs("sim")] == ids
        assert [job["id"] for job in run.jobs("sim", ids=[2, 7, 10])] == [2, 10]
        assert run.resolve("sim[5-7]") == (6, 9, 10) and run.one("sim.8") == 11 and run.resolve("fit") == range(7, 9)
        assert run.kvs_ls("job.sim")[-1] == "job.sim.8."
        with pytest.raises(RunError, match="9 jobs"):
            run.resolve("sim.9")


def test_every_eventlog_follows_the_transition_table(tmp_path):
    cases = [
        record(1, out_len=1), record(1, result=Result.TIMEOUT) + record(1, 2, Result.TIMEOUT),
        record(1, result=Result.LOST) + record(1, 2, Result.FAILED) + record(1, 3, Result.CANCELED),
        record(1, result=Result.FAILED, flags=FLAG_NOT_STARTED) + record(1, 2, Result.FAILED, flags=FLAG_NOT_STARTED),
        record(1, 0, Result.CANCELED, flags=FLAG_NOT_STARTED, t_alloc=0),
        record(1, result=Result.LOST, flags=FLAG_NOT_STARTED, t_alloc=0) + record(1, 2),
        record(1) + record(1, result=Result.FAILED) + record(1, 2),
    ]
    for i, case in enumerate(cases):
        directory = tmp_path / str(i)
        write(directory, lambda j, case=case: j.append_results(case, b"x" if case is cases[0] else b""))
        with open_run(directory) as run:
            log = run.eventlog(1)
            state = State.DEPEND
            assert log[0].name == "submit"
            for event in log[1:]:
                assert (state, event.name) in TRANSITIONS, log
                state = TRANSITIONS[state, event.name]
            assert state == run.table.state[0] == State.INACTIVE and run.job(1) == next(run.jobs(name="sim"))


def test_references(tmp_path):
    write(tmp_path, lambda j: None)
    with open_run(tmp_path) as run:
        assert run.resolve("sim") == range(1, 7) and run.resolve("7") == (7,) and run.resolve(3) == (3,)
        assert run.resolve("sim.3") == run.resolve("sim[3]") == (4,) and run.resolve("sim[0-1,5]") == (1, 2, 6)
        assert run.one("fit[1]") == 8
        for ref in ("0", "9", "sim.6", "sin", "sim[", "sim[2-1]", "sim.-1", "", "sim[]"):
            with pytest.raises(RunError, match="no job"):
                run.resolve(ref)
        with pytest.raises(RunError, match="6 jobs"):
            run.one("sim")
        with pytest.raises(RunError, match="no group 'x'"):
            list(run.jobs(name="x"))


def test_kvs_keys_and_job_keys(tmp_path):
    kvs = Kvs()

    def fill(journal):
        journal.put_kvs(kvs.apply([put("a.b", {"x": 1}), put("a.c", b"\x00\xff"), put("gone", 1)]))
        journal.put_kvs(kvs.apply([Delete("gone"), put("a.b", 2)]))
        journal.append_results(record(2, out_len=2, r_sched=3, r_id=1), b"hi")
    write(tmp_path, fill)
    with open_run(tmp_path) as run:
        assert run.kvs_get("a.b") == 2 and run.kvs_get("a.c") == b"\x00\xff"
        assert run.kvs_ls() == ["a.", "job."] and run.kvs_ls("a") == ["a.b", "a.c"]
        assert run.kvs().items() == kvs.items() and run.kvs().version == kvs.version
        assert run.kvs_get("job.2.stdout") == run.kvs_get("job.sim.1.stdout") == b"hi"
        assert run.kvs_get("job.2.result") == run.job(2) and run.kvs_get("job.2.R") == run.R(2)
        assert [e["name"] for e in run.kvs_get("job.sim.1.eventlog")][-1] == "clean"
        assert "job.fit.0.R" in run.kvs_ls("job.fit.0") and run.kvs_ls("job.fit") == ["job.fit.0.", "job.fit.1."]
        assert run.kvs_ls("job.2.R") == ["job.2.R"] and "job.8." in run.kvs_ls("job")
        for key in ("gone", "a", "job.99.R", "job.sim.stdout", "job.1.x", "job.1"):
            with pytest.raises(NoKey):
                run.kvs_get(key)


def test_streamed_output_is_put_together(tmp_path):
    with Journal(tmp_path) as journal:
        journal.append_group(GROUPS[0], 1.0)
        journal.append_started(record(2, result=0, t_finish=0))
        journal.append_output(2, 1, 1, 0, b"abc")
        journal.append_output(2, 1, 2, 0, b"E")
        journal.append_output(2, 1, 1, 3, b"def")
        journal.append_output(2, 1, 1, 3, b"def")
        journal.wait()
        with open_run(tmp_path) as run:
            assert run.state == "running" and run.output(2, 1) == b"abcdef"
            live = run.job(2, with_output=True)
            assert (live["state"], live["t_start"], live["stdout"]) == ("RUN", 102.0, "abcdef")
            assert [e.name for e in run.eventlog(2)] == ["submit", "depend", "alloc", "start"]
            assert list(run.jobs(states=[State.RUN], with_output=True)) == [live]
            journal.append_results(record(2, flags=FLAG_STREAMED, out_len=2, err_len=1), b"ghF")
            journal.append_results(record(3, out_len=1), b"3")
            journal.wait()
            run.refresh()
            assert (run.output(2, 1), run.output(2, 2), run.output(3, 1)) == (b"abcdefgh", b"EF", b"3")
            assert not list(run.jobs(states=[State.RUN]))


def test_output_larger_than_a_part(tmp_path, monkeypatch):
    monkeypatch.setattr("mpiflux.store.schema.OUTPUT_PART", 10)
    data = bytes(range(97))
    write(tmp_path, lambda j: j.append_results(record(1, out_len=25) + record(2, out_len=40, err_len=32), data))
    with open_run(tmp_path) as run:
        assert run.output(1, 1) == data[:25] and run.output(2, 1) == data[25:65] and run.output(2, 2) == data[65:]


def test_an_interrupted_run_is_resumed(tmp_path):
    live = JobTable()
    kvs = Kvs()

    def fill(journal):
        for group in GROUPS:
            live.add_group(group)
        live.assign(Chunk(0, 0, 6), 1)
        for data in (record(1), record(2, result=Result.FAILED), record(4, result=Result.LOST)):
            live.apply(np.frombuffer(data, RECORD), *journal.append_results(data))
        journal.append_started(record(2, 2, 0) + record(3, 1, 0))
        journal.put_kvs(kvs.apply([put("k", 1)]))
    write(tmp_path, fill)
    with open_run(tmp_path) as run:
        assert run.state == "interrupted" and run.job(3)["state"] == "RUN" and "--resume" in run.job(3)["reason"]
        assert run.job(2)["attempts"] == 2 and run.job(4)["attempts"] == 1
        again = resume(run, 500.0)
    assert again.lost["id"].tolist() == [2, 3] and again.lost["attempt"].tolist() == [2, 1]
    table = again.table
    with Journal(tmp_path) as journal:
        assert journal.run == 1
        applied = table.apply(again.lost, *journal.append_results(again.lost.tobytes()))
        assert applied.again.tolist() == [2, 3]
        journal.append_rset(3, 1, ResourceSet((NodeShare(0, (7,)),)))
        journal.set_meta(nodes=["gamma"])
        assert table.unfinished(0) == [Chunk(0, 4, 6), Chunk(0, 2, 4, 1, 2), Chunk(0, 1, 2, 1, 3)]
        assert table.retries_used[:4].tolist() == [0, 1, 0, 0]
        for chunk in table.unfinished(0):
            table.assign(chunk, 5)
        data = record(2, 3, r_sched=3, r_id=1)
        assert not table.apply(np.frombuffer(data, RECORD), *journal.append_results(data)).late.any()
        journal.set_meta(state="finished")
    with open_run(tmp_path) as run:
        assert run.runs == 2 and run.table.counts().run == 0 and not run.running
        assert run.job(2)["nodes"] == ["gamma"] and run.job(2)["cores"] == "7" and run.job(2)["attempts"] == 3
        assert run.table.counts() == table.counts() and run.kvs().items() == kvs.items()
        assert [e.name for e in run.eventlog(2)].count("retry") == 2


def test_satisfied_dependencies_are_seen(tmp_path):
    write(tmp_path / "a", lambda j: j.append_group_event(1, 150.0, "depend"))
    write(tmp_path / "b", lambda j: j.append_event(8, 150.0, "depend"))
    write(tmp_path / "c", lambda j: None)
    for name, expected in (("a", ["SCHED", "SCHED"]), ("b", ["DEPEND", "SCHED"]), ("c", ["DEPEND", "DEPEND"])):
        with open_run(tmp_path / name) as run:
            assert [j["state"] for j in run.jobs(name="fit")] == expected
            assert [run.job(i)["state"] for i in (7, 8)] == expected
            assert [e.name for e in run.eventlog(8)] == ["submit", "depend"][:1 + (expected[1] == "SCHED")]


def test_only_one_writer(tmp_path):
    with Journal(tmp_path), pytest.raises(Held, match="already writes"):
        Journal(tmp_path)
    Journal(tmp_path).close()


def test_wake_up_and_sequence(tmp_path):
    with Journal(tmp_path, sync_window=5.0) as journal:
        journal.wait()
        journal.acknowledge()
        journal.append_event(0, 1.0, "x")
        seq = journal.flush()
        assert select.select([journal.wake_fd], [], [], 10)[0], "no wake-up after a commit"
        assert journal.committed_seq == seq == journal.seq and journal.backlog_bytes == 0
        journal.acknowledge()
        journal.acknowledge()
        assert not select.select([journal.wake_fd], [], [], 0)[0]


def test_a_short_window_commits_unasked_and_wakes_nobody(tmp_path):
    with Journal(tmp_path, sync_window=0.01) as journal:
        journal.wait()
        journal.acknowledge()
        journal.append_event(0, 1.0, "x")
        deadline = time.monotonic() + 30
        while journal.committed_seq < journal.seq:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with journal.together():
            assert not select.select([journal.wake_fd], [], [], 0)[0]


def test_what_came_during_a_commit_has_waited_since_then(tmp_path, monkeypatch):
    clock, held, go_on = [100.0], threading.Event(), threading.Event()
    monkeypatch.setattr(journal_module, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=time.sleep))
    persist = Journal._persist

    def slowly(*args):
        held.set()
        assert go_on.wait(60)
        return persist(*args)

    monkeypatch.setattr(Journal, "_persist", slowly)
    with Journal(tmp_path, sync_window=1000.0) as journal:
        try:
            journal.flush()
            assert held.wait(60), "what was asked for is not committed"
            journal.append_event(0, 1.0, "x")
            clock[0] += 1000.0
        finally:
            go_on.set()
        deadline = time.monotonic() + 30
        while journal.committed_seq < journal.seq:
            assert time.monotonic() < deadline, "the window began anew after the commit"
            time.sleep(0.01)


def test_who_asked_for_a_commit_hears_of_it_though_another_has_asked_for_the_next(tmp_path, monkeypatch):
    with Journal(tmp_path, sync_window=1000.0) as journal:
        journal.wait()
        journal.acknowledge()
        held, go_on, persist = threading.Semaphore(0), threading.Semaphore(0), Journal._persist

        def slowly(*args):
            held.release()
            assert go_on.acquire(timeout=60)
            return persist(*args)

        monkeypatch.setattr(Journal, "_persist", slowly)
        try:
            for _ in range(2):
                journal.append_event(0, 1.0, "x")
                journal.flush()
                assert held.acquire(timeout=60)
                journal.append_event(0, 1.0, "meanwhile")
                journal.flush()
                go_on.release()
                assert select.select([journal.wake_fd], [], [], 10)[0], "nobody was told"
                assert held.acquire(timeout=60)
                journal.acknowledge()
                go_on.release()
                assert select.select([journal.wake_fd], [], [], 10)[0], "nobody was told of the second"
                journal.acknowledge()
        finally:
            for _ in range(9):
                go_on.release()


def test_malformed_batches_are_refused(tmp_path):
    with Journal(tmp_path) as journal:
        before = journal.seq
        for data, output in ((b"x" * 71, b""), (record(1, out_len=3), b"xx"), (record(1) * 20, b"x")):
            with pytest.raises(ValueError, match="bytes"):
                journal.append_results(data, output)
        assert journal.seq == before
    with pytest.raises(JournalError, match="closed"):
        journal.append_event(0, 0, "x")


def test_a_full_disk_is_told_and_outlived(tmp_path):
    journal = Journal(tmp_path, sync_window=0.01)
    try:
        assert journal.wait()
        journal.acknowledge()
        pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
        journal._db.execute(f"PRAGMA max_page_count={pages + 2}")
        journal.append_group(GROUPS[0], 1.0)
        journal.append_output(1, 1, 1, 0, b"x" * 100_000)
        while journal.error is None:
            assert select.select([journal.wake_fd], [], [], 10)[0], "a failure woke nobody"
            journal.acknowledge()
        assert "full" in journal.error and journal.backlog_bytes >= 100_000
        assert journal.committed_seq < journal.seq
        journal._db.execute("PRAGMA max_page_count=1000000")
        assert journal.wait() and journal.error is None
    finally:
        journal.close()
    with open_run(tmp_path) as run:
        assert len(run._written.streamed(1, 1, 1)) == 100_000


def test_closing_with_a_full_disk_says_what_is_missing(tmp_path):
    journal = Journal(tmp_path)
    journal.wait()
    journal._db.execute(f"PRAGMA max_page_count={journal._db.execute('PRAGMA page_count').fetchone()[0]}")
    journal.append_output(1, 1, 1, 0, b"x" * 100_000)
    with pytest.raises(JournalError, match=r"full.* last 1 entries"):
        journal.close(timeout=0.2)
    Journal(tmp_path).close()


def test_without_wal(tmp_path, monkeypatch):
    monkeypatch.setattr("mpiflux.store.journal._filesystem", lambda path: "lustre")
    with Journal(tmp_path) as journal:
        assert journal.mode == "TRUNCATE" and not (tmp_path / "run.db-shm").exists()
        journal.append_group(GROUPS[0], 1.0)
        journal.append_results(record(1))
        assert journal.wait()
        with open_run(tmp_path) as run:
            assert run.job(1)["result"] == "COMPLETED" and run.state == "running"


def test_directories_that_are_no_runs(tmp_path):
    with pytest.raises(RunError, match="no such directory"):
        open_run(tmp_path / "no")
    with pytest.raises(RunError, match="no run directory"):
        open_run(tmp_path)
    (tmp_path / "run.db").write_bytes(b"")
    with pytest.raises(RunError, match="empty"):
        open_run(tmp_path)
    (tmp_path / "run.db").write_bytes(b"hello" * 1000)
    with pytest.raises(RunError, match="cannot be read"):
        open_run(tmp_path)
    with pytest.raises(JournalError, match="cannot be opened"):
        Journal(tmp_path)
    (tmp_path / "run.db").unlink()
    with sqlite3.connect(tmp_path / "run.db") as db:
        db.execute("CREATE TABLE t (x)")
    db.close()
    with pytest.raises(JournalError, match="another program"):
        Journal(tmp_path)
    with pytest.raises(JournalError, match="cannot be used"):
        Journal(tmp_path / "run.db" / "x")


def test_a_run_in_a_directory_that_may_not_be_written(tmp_path):
    write(tmp_path / "a", lambda j: j.append_results(record(1)))
    os.remove(tmp_path / "a" / "run.db-lock")
    os.chmod(tmp_path / "a" / "run.db", 0o400)
    os.chmod(tmp_path / "a", 0o500)
    try:
        with open_run(tmp_path / "a") as run:
            assert run.job(1)["result"] == "COMPLETED" and run.state == "interrupted"
        assert os.listdir(tmp_path / "a") == ["run.db"]
    finally:
        os.chmod(tmp_path / "a", 0o700)


def test_a_missing_batch_is_noticed(tmp_path):
    def fill(journal):
        for i in range(1, 4):
            journal.append_results(record(i))
            journal.wait()
    write(tmp_path, fill)
    shutil.copytree(tmp_path, tmp_path / "copy", ignore=shutil.ignore_patterns("copy"))
    db = sqlite3.connect(tmp_path / "copy" / "run.db")
    db.execute("DELETE FROM jobs WHERE batch=1")
    db.commit()
    db.close()
    with open_run(tmp_path / "copy") as run, pytest.raises(RunError, match="batch 1"):
        list(run.jobs())
