"""Measures on the machine at hand what the simulator charges for the runtime's own work, and writes it as JSON.

All is CPU time, so that a busy machine distorts little, but for ``local``, the shorter of many round trips. Schedulers,
master, journal and messages are the real ones, timed in this process; what a job costs is read off a real run of the
whole program on one core. ``mpiflux simulate --costs FILE`` takes the result.

    python tests/benchmarks/calibrate.py [--output costs.json] [--jobs 6000]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench_breakdown import sample, settled

from mpiflux.instance.master import Master
from mpiflux.instance.rank import ASKING, Rank
from mpiflux.instance.view import View
from mpiflux.model import messages as m
from mpiflux.model.jobspec import JobGroup, PolicySpec, Workflow
from mpiflux.model.records import PACK
from mpiflux.model.resources import NodeResources
from mpiflux.overlay.transport import LocalTransport
from mpiflux.sched.catalog import Catalog
from mpiflux.sched.children import Child
from mpiflux.sched.dealing import Dealing
from mpiflux.sched.leasing import Leasing
from mpiflux.sched.policies import make
from mpiflux.sched.pool import ResourcePool
from mpiflux.sched.scheduler import Scheduler
from mpiflux.store.jobtable import JobTable
from mpiflux.store.journal import Journal
from mpiflux.store.reader import open_run

ROOT = Path(__file__).parents[2]
GROUP = JobGroup(number=0, name="a", first_id=1, count=1 << 30, command=("true",))
UP = 1 << 40


def cpu(action: Callable[[], object]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def best(measure: Callable[[], float], rounds: int = 5) -> float:
    """The least disturbed of several measurements."""
    return min(measure() for _ in range(rounds))


def line(small: tuple[int, float], large: tuple[int, float]) -> tuple[float, float]:
    """(fixed part, part for each) of two measurements of different size."""
    each = max((large[1] - small[1]) / (large[0] - small[0]), 0.0)
    return max(small[1] - each * small[0], 0.0), each


def records(first: int, n: int, sched: int = 0) -> bytes:
    return b"".join(PACK.pack(job, 1, 1, 0, 0, 1, sched, 0, 1.0, 1.0, 1.001, 0, 0, 0, 0, 0, 1)
                    for job in range(first, first + n))


# -- schedulers --------------------------------------------------------------------------------------------------


def leaf() -> Scheduler:
    catalog = Catalog()
    pool = ResourcePool([NodeResources(node=0, cores=tuple(range(32)))])
    below = Leasing(1, UP, pool, lambda node, core: 100, (100,), catalog)
    scheduler = Scheduler(1, UP, make(PolicySpec()), below, catalog)
    scheduler.receive(UP, m.Declare(GROUP), 0.0)
    return scheduler


def granting(cycles: int, jobs: int) -> float:
    """Seconds a cycle of: ``jobs`` cores leased and fed one job each, the jobs reported, the leases ended."""
    scheduler = leaf()
    at, spent = 0, 0.0
    for _ in range(cycles):
        started = time.process_time()
        scheduler.receive(UP, m.Submit((m.Chunk(0, at, at + jobs),)), 1.0)
        actions = scheduler.settle(1.0)
        spent += time.process_time() - started
        grants = [message for _, message in actions if isinstance(message, m.Grant)]
        assert len(grants) == jobs
        # jobs of seconds are never fed ahead: each has a lease of its own
        report = m.Report(records(1 + at, jobs), idle=tuple(grant.lease for grant in grants),
                          done=((grants[0].shape, 0, jobs, jobs * 5.0),))
        started = time.process_time()
        scheduler.receive(100, report, 1.0)
        scheduler.settle(1.0)
        spent += time.process_time() - started
        at += jobs
    return spent / cycles


def feeding(cycles: int, jobs: int, chunks: int) -> float:
    """Seconds a cycle of feeding ``jobs`` in so many ranges to leases that stay, and taking their records."""
    scheduler = leaf()
    scheduler.receive(UP, m.Submit((m.Chunk(0, 0, 32),)), 1.0)
    grants = [message for _, message in scheduler.settle(1.0) if isinstance(message, m.Grant)]
    shape = grants[0].shape
    scheduler.receive(100, m.Report(records(1, 31), done=((shape, 0, 31, 31e-6),)), 1.0)  # short jobs are fed ahead
    at, spent, step = 32, 0.0, jobs // chunks
    for _ in range(cycles):
        work = m.Submit(tuple(m.Chunk(0, first, first + step) for first in range(at, at + jobs, step)))
        done = m.Report(records(1 + at, jobs), done=((shape, 0, jobs, jobs * 1e-6),))
        started = time.process_time()
        scheduler.receive(UP, work, 1.0)
        actions = scheduler.settle(1.0)
        scheduler.receive(100, done, 1.0)
        scheduler.settle(1.0)
        spent += time.process_time() - started
        fed = [len(chunk) for _, message in actions if isinstance(message, m.Feed) for chunk in message.chunks]
        assert (sum(fed), len(fed)) == (jobs, chunks)
        at += jobs
    return spent / cycles


def dealing(cycles: int, jobs: int, chunks: int) -> float:
    """Seconds a cycle of dealing ``jobs`` in so many ranges to one child, and taking their records."""
    catalog = Catalog()
    child = Child(2, ResourcePool([NodeResources(node=0, cores=tuple(range(4096)))]))
    scheduler = Scheduler(1, UP, make(PolicySpec()), Dealing([child], "pull", catalog), catalog)
    scheduler.receive(UP, m.Declare(GROUP), 0.0)
    at, spent, step = 0, 0.0, jobs // chunks
    for _ in range(cycles):
        work = m.Submit(tuple(m.Chunk(0, first, first + step) for first in range(at, at + jobs, step)))
        done = m.Report(records(1 + at, jobs))
        started = time.process_time()
        scheduler.receive(UP, work, 1.0)
        scheduler.settle(1.0)
        scheduler.receive(2, done, 1.0)
        scheduler.settle(1.0)
        spent += time.process_time() - started
        at += jobs
    return spent / cycles


def scheduler_costs(measure: Callable[[int, int, int], float]) -> tuple[float, float, float]:
    """(a decision, a range of jobs, a job) of a cycle that has two decisions."""
    few, many = best(lambda: measure(200, 10, 1)), best(lambda: measure(30, 2000, 1))
    ranges = best(lambda: measure(30, 2000, 200))
    job = max((many - few) / 1990, 0.0)
    chunk = max((ranges - many) / 199, 0.0)
    return max(few - 10 * job - chunk, 0.0) / 2, chunk, job


# -- messages ----------------------------------------------------------------------------------------------------


class _Nobody:
    """A scheduler that decides nothing."""

    due = math.inf

    def receive(self, src: int, message: m.Message, now: float) -> None: ...

    def settle(self, now: float) -> list[tuple[int, m.Message]]:
        return []

    def patrol(self, now: float) -> list[tuple[int, m.Message]]:
        return []


def turn_cost() -> float:
    """A turn of a rank's loop that passes one message on."""
    rank = Rank(LocalTransport(), {1: _Nobody()}, lambda endpoint: 0, time.monotonic)  # type: ignore[dict-item]
    note = m.Cancel((1,))

    def many() -> None:
        for _ in range(2000):
            rank.deliver(1, 0, note)
            rank.turn()

    return best(lambda: cpu(many)) / 2000


def message_costs() -> tuple[float, float, str]:
    """(batch, message) for each of the two sides, and by what: encode, send, receive, decode."""
    try:
        import mpi4py

        mpi4py.rc.thread_level = "funneled"
        from mpi4py import MPI

        comm, status, how = MPI.COMM_SELF, MPI.Status(), f"MPI to itself: {MPI.Get_library_version().split(chr(0))[0]}"
    except (ImportError, RuntimeError):
        MPI, how = None, "no MPI: encoding only"
    chunk = m.Submit((m.Chunk(0, 1, 100),))

    def cycle(items: list[tuple[int, int, m.Message]]) -> None:
        for _ in range(500):
            data = m.encode(items)
            if MPI is not None:
                request = comm.Isend([data, MPI.BYTE], 0, 7)
                comm.Iprobe(0, 7, status)
                buffer = bytearray(status.Get_count(MPI.BYTE))
                comm.Recv([buffer, MPI.BYTE], 0, 7)
                request.Wait()
                data = bytes(buffer)
            m.decode(data)

    small = best(lambda: cpu(lambda: cycle([(1, 0, chunk)]))) / 500
    large = best(lambda: cpu(lambda: cycle([(1, 0, chunk)] * 101))) / 500
    batch, message = line((1, small), (101, large))
    return batch / 2, message / 2, how.split("\n")[0][:60]


def socket_delay() -> float:
    """Half a round trip between two processes over a socket, in seconds of wall-clock."""
    here, there = socket.socketpair()
    pid = os.fork()
    if not pid:
        here.close()
        while data := there.recv(100):
            there.send(data)
        os._exit(0)
    there.close()
    times = []
    for _ in range(2000):
        started = time.perf_counter()
        here.send(b"x" * 64)
        here.recv(100)
        times.append(time.perf_counter() - started)
    here.close()
    os.waitpid(pid, 0)
    # what else the machine does makes the longer ones longer
    return sorted(times)[len(times) // 10] / 2


# -- rank 0 ------------------------------------------------------------------------------------------------------


class _Silent:
    def progress(self, view: View) -> None: ...

    def note(self, text: str) -> None: ...


def master_cost(reports: int, jobs: int) -> float:
    """Seconds a report of ``jobs`` records, the journal's own thread included."""
    count = reports * jobs
    group = JobGroup(number=0, name="a", first_id=1, count=count + 1, command=("true",))
    data = [records(1 + i * jobs, jobs) for i in range(reports)]
    with tempfile.TemporaryDirectory() as directory:
        journal = Journal(os.path.join(directory, "run"))
        table = JobTable()
        table.add_group(group)
        journal.append_group(group, 1.0)
        workflow = Workflow(name="x", groups=(group,))
        master = Master(workflow, journal, table, _Silent(), cores=1, ranks=1, clock=time.time)
        master.begin()
        master.collect()
        started = time.process_time()
        for one in data:
            master.handle(1, m.Report(one), 1.0)
            master.turn(1.0)
        journal.close()
        return (time.process_time() - started) / reports


# -- processes ---------------------------------------------------------------------------------------------------


def process_costs(jobs: int) -> tuple[float, float, float]:
    """(spawn, process, reap) of a program that does nothing, from runs of the whole program on one core: the CPU of the
    supervisor and of the processes, a job each. The least disturbed of three. The supervisor's is half before the
    process runs and half after it has ended, as is near enough: it is in the kernel for most of both."""
    rounds = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as directory:
            workflow = Path(directory, "w.yaml")
            workflow.write_text(f"jobs: {{a: {{command: /bin/true, parameters: {{i: {{range: {jobs}}}}}}}}}\n")
            rounds.append(watched(str(workflow), os.path.join(directory, "run")))
    own, process = (min(part) for part in zip(*rounds, strict=True))
    return own / 2, process, own / 2


def watched(workflow: str, run_dir: str) -> tuple[float, float]:
    """CPU seconds of the supervisor, and of the process, for each job of a run on one core."""
    running = subprocess.Popen([sys.executable, "-m", "mpiflux", "run", workflow, "--run-dir", run_dir,
                                "--cores-per-node", "1", "--progress", "none"],
                               env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    pids = [pid for pid, kind in settled(running, run_dir).items() if kind == "supervisors"]
    begin, before = time.time(), sample(pids)
    end, after = begin, before
    while running.poll() is None:
        time.sleep(0.05)
        now = sample(pids)
        if not now:
            break
        after, end = now, time.time()
    running.wait(timeout=120)
    with open_run(run_dir) as reader:
        records = reader.records
        ended = records[(records["t_finish"] > begin) & (records["t_finish"] <= end)]
    if len(ended) < 100:
        raise SystemExit("the run was over too soon to be watched; ask for more with --jobs")
    own = sum(after.values()) - sum(before.values())
    used = ended["utime"].astype("f8").sum() + ended["stime"].astype("f8").sum()
    return own * 1e-9 / len(ended), float(used) / len(ended)


def calibrate(jobs: int) -> dict[str, object]:
    decision, feed_chunk, feed_job = scheduler_costs(feeding)
    other, deal_chunk, deal_job = scheduler_costs(dealing)
    one, all_cores = best(lambda: granting(300, 1)), best(lambda: granting(60, 32))
    grant = max((all_cores - one) / 31 - feed_job, 0.0)
    master_report, master_record = line((10, best(lambda: master_cost(300, 10), 3)),
                                        (2000, best(lambda: master_cost(50, 2000), 3)))
    batch, message, how = message_costs()
    spawn, process, reap = process_costs(jobs)
    delay = socket_delay()
    costs = {
        "turn": turn_cost(), "batch": batch, "message": message, "settle": (decision + other) / 2,
        # charged twice: where the range comes in, and where it goes out
        "deal_chunk": deal_chunk / 2, "deal_job": deal_job, "grant": grant,
        "feed_chunk": max(feed_chunk - deal_chunk / 2, 0.0), "feed_job": feed_job,
        "master_report": master_report, "master_record": master_record,
        "spawn": spawn, "reap": reap, "process": process, "commit": 0.05,
        "local": delay, "remote": delay, "poll": ASKING.shortest, "poll_longest": ASKING.longest,
    }
    return {
        "costs": {name: float(f"{value:.3g}") for name, value in costs.items()},
        "measured": {"python": platform.python_version(), "machine": platform.machine(), "messages": how,
                     "note": "remote is taken as local: no network was measured"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", help="where to write (default: print)")
    parser.add_argument("--jobs", type=int, default=6000, help="processes to start, three times")
    args = parser.parse_args()
    text = json.dumps(calibrate(args.jobs), indent=1) + "\n"
    if args.output:
        Path(args.output).write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
