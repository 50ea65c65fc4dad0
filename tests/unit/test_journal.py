"""The journal against kill -9 and against files cut anywhere."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mpiflux.model.jobspec import Dependency, JobGroup
from mpiflux.model.messages import NodeShare, ResourceSet
from mpiflux.model.states import Result
from mpiflux.store import journal as journal_module
from mpiflux.store.jobtable import RECORD
from mpiflux.store.journal import Held, Journal, JournalError
from mpiflux.store.kvs import Kvs, put
from mpiflux.store.reader import RunError, open_run
from mpiflux.store.resume import chosen, outdated, resume, with_dependants

ROOT = Path(__file__).resolve().parents[2]
COUNT = 200_000

WRITER = """
import os, sys, random, signal, time
import numpy as np
from mpiflux.model.jobspec import JobGroup
from mpiflux.store.jobtable import RECORD
from mpiflux.store.journal import Journal
from mpiflux.store import journal as module
directory, mode, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
if mode == "TRUNCATE":
    module._filesystem = lambda path: "nfs"
rng = random.Random(seed)
with Journal(directory, sync_window=0.002) as journal:
    assert journal.mode == mode
    journal.append_group(JobGroup(number=0, name="g", first_id=1, count=200000), 1.0)
    at, said = 1, {}
    while at < 150000:
        n = rng.choice((1, 3, 50, 400))
        records = np.zeros(n, RECORD)
        records["id"] = np.arange(at, at + n)
        records["attempt"], records["result"], records["out_len"] = 1, 1, 7
        output = b"".join(b"%07d" % i for i in range(at, at + n))
        if rng.random() < 0.3:
            started = np.zeros(1, RECORD)
            started["id"], started["attempt"] = at + n + rng.randrange(500), 1
            journal.append_started(started.tobytes())
        journal.append_results(records.tobytes(), output)
        at += n
        said[journal.seq] = at - 1
        if rng.random() < 0.05:
            journal.wait()
        done = max((seq for seq in said if seq <= journal.committed_seq), default=0)
        if done:
            os.write(1, b"%d\\n" % said[done])
            said = {seq: top for seq, top in said.items() if seq > done}
        time.sleep(rng.random() * 0.0003)
    signal.pause()
"""


def check(directory, at_least=0):
    """Whatever is there must be a prefix of what was written; returns how many jobs ended."""
    with open_run(directory) as run:
        table = run.table
        ended = table.counts().completed
        assert ended >= at_least, f"{at_least} jobs were reported committed, {ended} are there"
        assert table.result[:ended].all() and not table.result[ended:].any()
        for id in {1, ended // 2, ended} - {0}:
            assert run.output(id, 1) == b"%07d" % id
        again = resume(run, 5.0)
        applied = again.table.apply(again.lost, 10**6)
        assert applied.again.tolist() == again.lost["id"].tolist()
        if run.groups:
            assert sum(len(c) for c in again.table.unfinished(0)) == COUNT - ended
    return ended


@pytest.mark.parametrize("mode", ["WAL", "TRUNCATE"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_kill_at_any_moment_keeps_what_was_reported_committed(tmp_path, mode, seed):
    directory = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(directory), mode, str(seed)], cwd=ROOT,
                          stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}) as writer:
        said = [writer.stdout.readline()]
        with pytest.raises(Held, match="process"):
            Journal(directory)
        time.sleep(random.Random(seed).random() * 0.15)
        writer.send_signal(signal.SIGKILL)
        said += writer.stdout.read().split(b"\n")[:-1]
    ended = check(directory, int([line for line in said if line.strip()][-1]))
    with open_run(directory) as run:
        assert run.state == "interrupted"
    with Journal(directory) as journal:
        records = np.zeros(1, RECORD)
        records["id"], records["attempt"], records["result"] = ended + 1, 1, Result.COMPLETED
        records["out_len"] = 7
        journal.append_results(records.tobytes(), b"%07d" % (ended + 1))
    assert check(directory) == ended + 1


def snapshot(directory):
    """A run directory as a killed writer leaves it: a database that was checkpointed and a log with more."""
    source = directory / "source"
    with Journal(source, sync_window=0.0) as journal:
        journal.append_group(JobGroup(number=0, name="g", first_id=1, count=COUNT), 1.0)
        at = 1
        for step in range(40):
            records = np.zeros(100, RECORD)
            records["id"] = np.arange(at, at + 100)
            records["attempt"], records["result"], records["out_len"] = 1, 1, 7
            journal.append_results(records.tobytes(), b"".join(b"%07d" % i for i in range(at, at + 100)))
            at += 100
            assert journal.wait()
            if step == 20:
                journal._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        killed = directory / "killed"
        killed.mkdir()
        for name in ("run.db", "run.db-wal"):
            shutil.copy(source / name, killed / name)
    return killed


def tried(directory):
    """The number of jobs that a reader finds, or None when it says that the file is damaged."""
    try:
        return check(directory)
    except RunError as error:
        assert "run.db" in str(error)
        return None


def test_files_cut_anywhere_give_a_prefix_or_a_clear_error(tmp_path):
    killed = snapshot(tmp_path)
    assert check(killed) == 4000
    rng = random.Random(5)
    found = {"run.db": [], "run.db-wal": []}
    for name in found:
        size = (killed / name).stat().st_size
        for _ in range(20):
            cut = tmp_path / "cut"
            shutil.copytree(killed, cut)
            os.truncate(cut / name, rng.randrange(size))
            found[name].append(tried(cut))
            try:
                Journal(cut).close(timeout=0.1)
            except JournalError as error:
                assert "run.db" in str(error)
            shutil.rmtree(cut)
    # A log is a list of transactions, each with a checksum: cutting it is always survived.
    assert None not in found["run.db-wal"] and min(found["run.db-wal"]) >= 2100
    assert len(set(found["run.db-wal"])) > 3


def test_bytes_changed_anywhere_never_give_a_traceback(tmp_path):
    killed = snapshot(tmp_path)
    rng = random.Random(6)
    for _ in range(40):
        bad = tmp_path / "bad"
        shutil.copytree(killed, bad)
        name = rng.choice(["run.db", "run.db-wal"])
        with open(bad / name, "r+b") as file:
            file.seek(rng.randrange((bad / name).stat().st_size))
            file.write(rng.randbytes(rng.choice((1, 16, 400))))
        try:
            with open_run(bad) as run:
                list(run.jobs(with_output=True, ids=range(1, 4000, 50)))
                run.eventlog(1), run.kvs().items(), run.events()
                resume(run, 1.0)
        except RunError as error:
            assert "run.db" in str(error)
        shutil.rmtree(bad)


def everything(directory, mode):
    """A run directory with something in every table, as a writer that is killed in a transaction leaves it."""
    source = directory / "source"
    groups = [JobGroup(number=0, name="a", first_id=1, count=60, command=("x", "{job.id}"), retries=1),
              JobGroup(number=1, name="b", first_id=61, count=60, after=(Dependency("a", "each"),), command=("y",))]
    with Journal(source, sync_window=0.0) as journal:
        assert journal.mode == mode
        for group in groups:
            journal.append_group(group, 1.0)
        journal.set_meta(nodes=["n1"], state="running")
        journal.append_rset(0, 0, ResourceSet((NodeShare(0, (0, 1)),)))
        journal.put_kvs(Kvs().apply([put("k.v", [1, "x"])]))
        for at in range(1, 41, 10):
            records = np.zeros(10, RECORD)
            records["id"], records["attempt"] = np.arange(at, at + 10), 1
            records["result"], records["out_len"], records["t_alloc"] = 1 + (records["id"] % 3 == 0), 7, 5.0
            journal.append_results(records.tobytes(), b"".join(b"%07d" % i for i in range(at, at + 10)), {at: "why"})
            assert journal.wait()
        journal.append_event(0, 2.0, "redefine", {"group": 1, "what": ["command"], "batch": 2, "judged": True,
                                                  "was": msgspec.msgpack.encode(groups[1])})
        journal.append_event(0, 2.0, "rerun", {"group": 0, "batch": 4, "ranges": [(0, 4, 1)]})
        journal.append_group_event(1, 3.0, "depend", {"elements": [(0, 9, 2)]})
        journal.append_started(records[:1].tobytes().replace(b"\x1f", b"\x20"))
        journal.append_output(41, 1, 1, 0, b"early")
        assert journal.wait()
        db = journal._db
        db.execute("PRAGMA cache_size=4")
        db.execute("BEGIN IMMEDIATE")
        db.executemany("INSERT INTO chunks VALUES (?,?,?,?,?,?)",
                       [(90 + i, 42, 1, 1, i, b"z" * 900) for i in range(90)])
        files = {name: (source / name).read_bytes() for name in ("run.db", "run.db-wal", "run.db-journal")
                 if (source / name).exists()}
        db.execute("ROLLBACK")
    assert len(files) == 2
    return files


def read_all(directory):
    with open_run(directory) as run:
        jobs = list(run.jobs(with_output=True))
        for id in {1, 3, 41, 61, run.total} & set(range(1, run.total + 1)):
            run.eventlog(id), run.job(id), run.jobspec(id), run.R(id)
        run.kvs().items(), run.events(), run.kvs_ls(recursive=True), run.widths()
        ids = with_dependants(run, run.groups, chosen(run, ["failed"]))
        outdated(run, []), resume(run, 1.0)
        return len(jobs), ids


@pytest.mark.parametrize("mode", ["WAL", "TRUNCATE"])
def test_any_damage_after_a_kill_is_read_or_told_in_a_sentence(tmp_path_factory, monkeypatch, mode):
    if mode == "TRUNCATE":
        monkeypatch.setattr(journal_module, "_filesystem", lambda path: "nfs")
    top = tmp_path_factory.mktemp(mode)
    files = everything(top, mode)
    other = next(name for name in files if name != "run.db")

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(["run.db", other]), st.one_of(
        st.tuples(st.just("cut"), st.floats(0, 1), st.just(b"")),
        st.tuples(st.just("change"), st.floats(0, 1), st.binary(min_size=1, max_size=40))))
    @example("run.db-journal", ("change", 0.8506402171340195, b"\x00\x00\x80")).via("SQLite's message quotes the file")
    def damaged(name, damage):
        directory = top / "bad"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        kind, where, what = damage
        for one, data in files.items():
            at = int(where * max(len(data) - 1, 0))
            changed = data[:at] if kind == "cut" else data[:at] + what + data[at + len(what):]
            (directory / one).write_bytes(changed if one == name else data)
        try:
            read_all(directory)
        except RunError as error:
            assert "run.db" in str(error) or "--rerun" in str(error)
        try:
            Journal(directory).close(timeout=0.1)
        except JournalError as error:
            assert "run.db" in str(error)

    whole = top / "whole"
    whole.mkdir()
    for name, data in files.items():
        (whole / name).write_bytes(data)
    assert read_all(whole)[0] == 120, "what was half done is undone"
    damaged()
