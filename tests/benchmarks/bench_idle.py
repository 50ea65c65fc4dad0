"""What mpiflux costs while nothing happens, and how soon the first job starts.

Four ranks run one job that sleeps; CPU time and resident memory of every rank and of its helpers are read from /proc
meanwhile, over ten seconds that begin some seconds after the job has started: once with all ranks on one node, where
they ring each other, and once with each rank taking itself for a node. The time to the first job is taken from before
``mpiexec`` to the start of the job's process, as its record says, beside an ``mpiexec`` of as many ranks that only
import mpi4py.

usage: bench_idle.py [RANKS]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

from _common import Scratch, launcher, loaded, machine, table, timed

SECONDS, SETTLE = 10.0, 12.0


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def below(pid: int) -> list[int]:
    found = children(pid)
    return found + [grandchild for child in found for grandchild in below(child)]


def cpu_seconds(pid: int) -> float:
    """Of all its threads, as the scheduler has counted."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/schedstat") as file:
            total += int(file.read().split()[0])
    return total / 1e9


def resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


def command_line(pid: int) -> list[bytes]:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().split(b"\0")


def is_python(pid: int) -> bool:
    """A rank or one of its helpers, not a launcher and not a job."""
    words = command_line(pid)
    return b"mpiflux" in words and b"-m" in words and b"mpiexec" not in words[0]


def first_start(run_dir: str) -> float:
    from mpiflux.store.reader import open_run

    with open_run(run_dir) as reader:
        return next(iter(reader.jobs()))["t_start"]


def start_times(scratch: str, ranks: int) -> tuple[float, float]:
    """(seconds to the first job, seconds of an MPI program that does nothing), medians of five."""
    workflow = os.path.join(scratch, "one.yaml")
    with open(workflow, "w") as file:
        file.write("name: one\njobs: {one: {command: /bin/true}}\n")
    ours, bare = [], []
    for n in range(5):
        run_dir = os.path.join(scratch, f"start-{n}")
        begin = time.time()
        timed([*launcher(ranks), sys.executable, "-m", "mpiflux", workflow, "--run-dir", run_dir])
        ours.append(first_start(run_dir) - begin)
        bare.append(timed([*launcher(ranks), sys.executable, "-c", "from mpi4py import MPI"]).wall)
    return statistics.median(ours), statistics.median(bare)


def elsewhere(ranks: int, command: list[str]) -> list[str]:
    """Each rank takes itself for a node: nobody can ring it, and it asks MPI."""
    argv = launcher(ranks)[:1]
    for rank in range(ranks):
        argv += [":"] * bool(rank) + ["-n", "1", "env", f"SLURMD_NODENAME=node{rank}", "SLURM_STEP_ID=0",
                                      f"SLURM_PROCID={rank}", *command, "--cores-per-node", "4"]
    return argv


def watch_idle(scratch: str, ranks: int, nodes: int) -> list[tuple[object, ...]]:
    workflow = os.path.join(scratch, "sleep.yaml")
    with open(workflow, "w") as file:
        file.write(f"name: idle\njobs: {{sleep: {{command: sleep {SETTLE + SECONDS + 3}}}}}\n")
    command = [sys.executable, "-m", "mpiflux", workflow, "--run-dir", os.path.join(scratch, f"idle-{nodes}"),
               "--progress", "none"]
    argv = [*launcher(ranks), *command] if nodes == 1 else elsewhere(ranks, command)
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(SETTLE)
        pids = [pid for pid in [process.pid, *below(process.pid)] if is_python(pid)]
        helpers_of = {pid: [p for p in below(pid) if is_python(p)] for pid in pids}
        heads = [pid for pid in pids if not any(pid in found for found in helpers_of.values())]
        families = {rank: [pid, *helpers_of[pid]] for rank, pid in enumerate(sorted(heads))}
        before = {pid: cpu_seconds(pid) for family in families.values() for pid in family}
        time.sleep(SECONDS)
        rows: list[tuple[object, ...]] = []
        for rank, family in families.items():
            rank_cpu = (cpu_seconds(family[0]) - before[family[0]]) / SECONDS * 100
            helpers = sum(cpu_seconds(pid) - before[pid] for pid in family[1:]) / SECONDS * 100
            rows.append((f"{rank}, of {nodes} node{'s' * (nodes > 1)}", f"{rank_cpu:.2f}", f"{helpers:.2f}",
                         resident(family[0]),
                         " + ".join(str(resident(pid)) for pid in family[1:]) or "-"))
        return rows
    finally:
        process.wait(timeout=60)


def main() -> None:
    ranks = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    print(f"{machine()}, {loaded()}")
    with Scratch() as scratch:
        ours, bare = start_times(scratch, ranks)
        print(f"{ranks} ranks: first job after {ours:.2f} s; mpiexec of as many idle MPI programs {bare:.2f} s")
        # an instance that starts looks for doors that others of this user have left behind, and so wakes them
        os.environ["TMPDIR"] = scratch
        print(table(watch_idle(scratch, ranks, 1) + watch_idle(scratch, ranks, ranks),
                    ("rank", "CPU of a core, %", "its helpers', %", "resident, MB", "its helpers', MB")))


if __name__ == "__main__":
    main()
