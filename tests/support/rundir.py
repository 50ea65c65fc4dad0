"""A run directory with a little of everything, written by the journal itself."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mpiflux.model.jobspec import Dependency, JobGroup, Request
from mpiflux.model.messages import NodeShare, ResourceSet
from mpiflux.model.params import LinspaceColumn, ListColumn, ParamTable
from mpiflux.model.records import FLAG_NOT_STARTED, FLAG_REASON, FLAG_STREAMED
from mpiflux.model.states import Result
from mpiflux.store.jobtable import RECORD
from mpiflux.store.journal import Journal
from mpiflux.store.kvs import Kvs, put

GROUPS = (
    JobGroup(number=0, name="sim", first_id=1, count=6, command=("sim", "--x", "{x}"), retries=0,
             params=ParamTable(("x", "mode"), (LinspaceColumn(0.0, 1.0, 3), ListColumn(("fast", "slow"))))),
    JobGroup(number=1, name="train", first_id=7, count=1, script="#!/bin/sh\necho train\n",
             after=(Dependency("sim"),), request=Request(tasks=2, cores=2, nodes=2)),
    JobGroup(number=2, name="late", first_id=8, count=3, command=("echo", "a b"), after=(Dependency("train"),)),
)
PLAN = "1 scheduler, depth 1\nroot: node[1-2] cores 0-3 · policy fcfs · rank 0"
META = {
    "workflow": "demo", "nodes": ["node1", "node2"], "cores": 8, "gpus": 2, "ranks": 2, "schedulers": 1,
    "plan": PLAN, "t_start": 99.0, "state": "running",
    "resources": [{"node": name, "cores": "0-3", "gpus": "0", "memory": 1 << 30} for name in ("node1", "node2")],
}
STDOUT = b"x is 0.0\nbytes \xff\x00, \"quoted\"\n"
STDERR = b"first\nValueError: mass \x1b[31m2\n\n"


def record(id: int, result: Result = Result.COMPLETED, attempt: int = 1, **more: float) -> bytes:
    out = np.zeros(1, RECORD)
    values = {"id": id, "attempt": attempt, "result": result, "tasks": 1, "r_sched": 0, "r_id": 1, "t_alloc": 101.0,
              "t_start": 102.0, "t_finish": 103.5, "utime": 0.25, "stime": 0.5, "maxrss": 2048, "pid": 77, **more}
    for name, value in values.items():
        out[name] = value
    return out.tobytes()


def fill(journal: Journal) -> None:
    """Jobs 1 to 7 have ended: completed, failed, by a signal, over time, canceled, completed, on two nodes."""
    for group in GROUPS:
        journal.append_group(group, 100.0)
    journal.set_meta(**META)
    journal.append_rset(0, 1, ResourceSet((NodeShare(0, (0, 1)),)))
    journal.append_rset(0, 2, ResourceSet((NodeShare(0, (0, 1), (0,)), NodeShare(1, (2, 3), (0,)))))
    journal.append_results(
        record(1, out_len=len(STDOUT), err_len=0) + record(2, Result.FAILED, returncode=3, err_len=len(STDERR))
        + record(3, Result.FAILED, returncode=-11)
        + record(4, Result.TIMEOUT, returncode=-15, flags=FLAG_REASON)
        + record(5, Result.CANCELED, attempt=0, flags=FLAG_NOT_STARTED, t_alloc=0.0, t_start=0.0) + record(6),
        STDOUT + STDERR, {4: "exceeded its time limit of 2 s"})
    journal.append_results(record(7, tasks=2, r_id=2, t_start=110.0, t_finish=190.0))
    journal.put_kvs(Kvs().apply([put("a.b", {"n": [1, 2]}), put("a.text", "hello"), put("raw", b"\x00\xff")]))


def finished(directory: Path) -> Path:
    """A run that has ended (though jobs 8 to 10 never ran)."""
    with Journal(directory, durable=False) as journal:
        fill(journal)
        journal.set_meta(state="finished", t_end=200.0)
    return directory


@contextmanager
def live(directory: Path):
    """A run that goes on: job 8 runs and has written something. Yields its journal."""
    with Journal(directory, durable=False) as journal:
        fill(journal)
        journal.append_group_event(2, 190.0, "depend")
        journal.append_started(record(8, Result.NONE, t_start=191.0, t_finish=0.0))
        journal.append_output(8, 1, 1, 0, b"begin\n")
        journal.wait()
        yield journal


def end_job_8(journal: Journal) -> None:
    journal.append_output(8, 1, 1, 6, b"middle\n")
    journal.append_results(record(8, Result.FAILED, returncode=5, t_start=191.0, t_finish=195.0, flags=FLAG_STREAMED,
                                  out_len=4, err_len=2), b"end\ne\n")
    journal.wait()
