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

import numpy as np
import pytest

from mpiflux.model.jobspec import JobGroup
from mpiflux.model.states import Result
from mpiflux.store.jobtable import RECORD
from mpiflux.store.journal import Held, Journal, JournalError
from mpiflux.store.reader import RunError, open_run
from mpiflux.store.resume import resume

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
