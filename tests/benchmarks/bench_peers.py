"""Processes that exit at once, by mpiflux and by its peers, each as its users would, on the same machine in one run.

Each peer that is not there is named and left out: GNU Parallel, HyperQueue (``hq``) and Flux (``flux``) go by their
commands, Parsl, mpi4py and HyperQueue's Python package by import (``pip install parsl hyperqueue`` into the
interpreter that runs this), Slurm's steps are run inside an allocation only. Who is slow gets fewer jobs. Commands
(xargs, GNU Parallel, ``hq submit``, Flux) are timed whole, programs of ours around a pool from its first job on. What
the others keep of a job is less: mpiflux has its output, events and resource usage in a journal on disk.

usage: bench_peers.py [JOBS [NAME...]]        (names as the table has them, or how they begin)
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable

from _common import EXAMPLES, Scratch, launcher, machine, run_workflow, spawn_loop, table, timed

CPUS = len(os.sched_getaffinity(0))
LIMIT = 120
"""Seconds after which a peer has failed."""

PARSL = """
import logging, sys, time
import parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

logging.disable(logging.CRITICAL)

@parsl.bash_app
def true(stdout="/dev/null", stderr="/dev/null"):
    return "/bin/true"

config = Config([HighThroughputExecutor(max_workers_per_node=int(sys.argv[2]), provider=LocalProvider())],
                run_dir=sys.argv[3], strategy="none", usage_tracking=0)
with parsl.load(config):
    true().result()
    begin = time.monotonic()
    for future in [true() for _ in range(int(sys.argv[1]))]:
        future.result()
    print(time.monotonic() - begin)
"""

HYPERQUEUE = """
import sys, time
from hyperqueue import Job, LocalCluster
from hyperqueue.cluster import WorkerConfig

with LocalCluster(server_dir=sys.argv[3]) as cluster:
    cluster.start_worker(WorkerConfig(cores=int(sys.argv[2])))
    client, job = cluster.client(), Job()
    for _ in range(int(sys.argv[1])):
        job.program(["/bin/true"], stdout=None, stderr=None)
    begin = time.monotonic()
    client.wait_for_jobs([client.submit(job)])
    print(time.monotonic() - begin)
"""

FUTURES = """
import subprocess, sys, time
from mpi4py.futures import MPICommExecutor

with MPICommExecutor() as pool:
    if pool is not None:
        begin = time.monotonic()
        for _ in pool.map(subprocess.call, [["/bin/true"]] * int(sys.argv[1]), chunksize=16):
            pass
        print(time.monotonic() - begin)
"""

THREADS = """
import subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor

def run(_):
    return subprocess.run(["/bin/true"], capture_output=True).returncode

with ThreadPoolExecutor(int(sys.argv[2])) as pool:
    begin = time.monotonic()
    for _ in pool.map(run, range(int(sys.argv[1]))):
        pass
    print(time.monotonic() - begin)
"""


def printed(argv: list[str]) -> float:
    """Seconds that a program says its jobs took."""
    # Parsl looks for its worker pool beside other commands
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT, check=True, stdin=subprocess.DEVNULL,
                          env={**os.environ, "PATH": path})
    return float(done.stdout.split()[-1])


def fed(argv: list[str], jobs: int) -> float:
    """Seconds of a program that reads a line a job."""
    begin = time.monotonic()
    subprocess.run(argv, input=b"x\n" * jobs, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=LIMIT,
                   check=True)
    return time.monotonic() - begin


def hyperqueue(jobs: int, scratch: str) -> float:
    """One task array on a server and a worker of its own."""
    hq = ["hq", "--server-dir", os.path.join(scratch, "hq")]
    server = subprocess.Popen([*hq, "server", "start"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    worker = None
    try:
        subprocess.run([*hq, "server", "wait", "--timeout", "20s"], check=True, stdout=subprocess.DEVNULL)
        worker = subprocess.Popen([*hq, "worker", "start", "--cpus", str(CPUS)], stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL)
        subprocess.run([*hq, "submit", "--wait", "/bin/true"], check=True, stdout=subprocess.DEVNULL, cwd=scratch)
        return timed([*hq, "submit", "--wait", "--stdout", "none", "--stderr", "none", f"--array=1-{jobs}",
                      "/bin/true"], cwd=scratch).wall
    finally:
        subprocess.run([*hq, "server", "stop"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for process in (worker, server):
            if process is not None:
                process.wait(20)


def slurm(jobs: int) -> float:
    """Seconds of one step a job, as many at a time as there are CPUs."""
    return fed(["xargs", f"-P{CPUS}", "-n1", "srun", "--overlap", "--quiet", "-N1", "-n1", "/bin/true"], jobs)


def flux(jobs: int) -> float:
    return printed(["flux", "start", "sh", "-c", f"begin=$(date +%s.%N); flux submit --quiet --wait --cc=1-{jobs} "
                    "/bin/true; end=$(date +%s.%N); echo \"$end - $begin\" | bc"])


def mpiflux(jobs: int, scratch: str, whole: bool = False) -> float:
    """From the first start to the last end, as for peers with a server; with ``whole``, the command as it is typed."""
    from mpiflux.store.reader import open_run

    run_dir = os.path.join(scratch, f"mpiflux-{whole}")
    used = run_workflow(EXAMPLES / "stress.yaml", run_dir, "--set", f"n={jobs}")
    if whole:
        return used.wall
    with open_run(run_dir) as reader:
        return float(reader.records["t_finish"].max() - reader.records["t_start"].min())


def main() -> None:
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000
    wanted = sys.argv[2:]
    print(f"{machine()}\n{jobs:,} x /bin/true", flush=True)
    with Scratch() as scratch:
        loop = spawn_loop(scratch)
        n, python = str(jobs), sys.executable
        peers: list[tuple[str, bool, Callable[[], float]]] = [
            ("mpiflux, 1 rank", True, lambda: mpiflux(jobs, scratch)),
            ("mpiflux, the whole command", True, lambda: mpiflux(jobs, scratch, whole=True)),
            ("xargs -P", shutil.which("xargs") is not None,
             lambda: fed(["xargs", f"-P{CPUS}", "-n1", "/bin/true"], jobs)),
            ("ThreadPoolExecutor + subprocess", True, lambda: printed([python, "-c", THREADS, n, str(CPUS)])),
            ("mpi4py.futures + subprocess", importlib.util.find_spec("mpi4py") is not None,
             lambda: printed([*launcher(CPUS + 1), python, "-c", FUTURES, n])),
            ("GNU Parallel", shutil.which("parallel") is not None,
             lambda: fed(["parallel", f"-j{CPUS}", "/bin/true"], jobs)),
            ("HyperQueue", shutil.which("hq") is not None, lambda: hyperqueue(jobs, scratch)),
            ("HyperQueue, its Python package", importlib.util.find_spec("hyperqueue") is not None,
             lambda: printed([python, "-c", HYPERQUEUE, n, str(CPUS), os.path.join(scratch, "hyperqueue")])),
            ("Parsl bash_app", importlib.util.find_spec("parsl") is not None,
             lambda: printed([python, "-c", PARSL, str(jobs // 5), str(CPUS), os.path.join(scratch, "parsl")]) * 5),
            ("Slurm steps", shutil.which("srun") is not None and "SLURM_JOB_ID" in os.environ,
             lambda: slurm(jobs // 50) * 50),
            ("Flux", shutil.which("flux") is not None, lambda: flux(jobs // 10) * 10),
        ]
        rows: list[tuple[object, ...]] = []
        for name, there, seconds in peers:
            if wanted and not any(name.startswith(word) for word in wanted):
                continue
            if not there:
                rows.append((name, "not there", ""))
                continue
            print(f"  {name} ...", flush=True)
            bare = jobs / timed([loop, n, str(CPUS), "/bin/true"]).wall
            try:
                rate = jobs / seconds()
            except (subprocess.SubprocessError, OSError, ValueError) as error:
                rows.append((name, f"failed: {type(error).__name__}", ""))
                continue
            rows.append((name, f"{rate:,.0f}", f"{rate / bare:.2f}"))
    print(table(rows, ("what", "jobs/s", "of the C loop just before")))


if __name__ == "__main__":
    main()
