"""How soon MPI programs are up as jobs of a live instance, beside ``mpiexec`` of the same MPI; and instances.

- a job of N tasks with ``mpi: pmi1``: from ``submit`` until its last task has returned from MPI_Init, beside the same
  program from before ``mpiexec -n N``;
- an instance inside a job, of 1 and of 4 ranks: from ``submit`` to the start of its first job;
- an instance of 1, 4 and as many ranks as the largest job has tasks: from before ``mpiexec`` to the start of its first
  job, beside as many ranks of a program that only initialises MPI and ends; and the CPU of both until they have ended.

All are medians, and what is compared takes turns: the load of a machine changes. Where others use the cores and the
kernel makes a group of every session (``sched_autogroup_enabled``), only CPU can be compared: hydra gives each process
a session, and so as large a share as each of the others' sessions has, mpiflux does not.

usage: bench_start.py [REPEATS [TASKS…]]      (default: 3 2 16 64)
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from _common import ROOT, Scratch, launcher, loaded, machine, table, timed

PROGRAM = "import sys, time; from mpi4py import MPI; sys.stdout.write(f'up {time.time()}\\n')"
FIRST = {"jobs": {"first": {"command": "true"}}}

STEER = """
import json, os, resource, subprocess, sys, time
import mpiflux
from mpiflux.store.reader import open_run

program, repeats, sizes, out = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
flux = mpiflux.connect()


def children():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


outside = {name: value for name, value in os.environ.items() if not name.startswith("MPIFLUX_")}
found = {}
for size in sizes:
    for _ in range(repeats):
        begin, before = time.time(), children()
        done = subprocess.run([*json.loads(sys.argv[5]), "-n", str(size), sys.executable, "-c", program],
                              capture_output=True, text=True, check=True, env=outside)
        found.setdefault(f"mpiexec {size}", []).append(max(map(float, done.stdout.split()[1::2])) - begin)
        found.setdefault(f"cpu of mpiexec {size}", []).append(children() - before)
        begin = time.time()
        job = flux.submit([sys.executable, "-c", program], tasks=size, mpi="pmi1")
        result = job.result()
        lines = result.stdout.split()[1::2]
        assert len(lines) == size, (size, lines)
        found.setdefault(f"tasks {size}", []).append(max(map(float, lines)) - begin)
        found.setdefault(f"cpu {size}", []).append(result.utime + result.stime)
for ranks in (1, 4):
    for i in range(repeats):
        begin = time.time()
        name = f"inner-{ranks}-{i}"
        command = [sys.executable, "-m", "mpiflux", "run", "first.yaml", "--run-dir", name, "--progress", "none"]
        job = flux.submit(command, tasks=ranks, mpi="pmi1" if ranks > 1 else "none")
        assert job.result().returncode == 0, job.result().stderr
        with open_run(name) as reader:
            found.setdefault(f"inner {ranks}", []).append(next(iter(reader.jobs()))["t_start"] - begin)
json.dump(found, open(out, "w"))
"""


def first_job(ranks: int, name: str) -> tuple[float, float]:
    """(seconds to the first job, CPU seconds until the end) of an instance, with ``first.yaml`` in the current
    directory."""
    from mpiflux.store.reader import open_run

    begin = time.time()
    used = timed([*launcher(ranks), sys.executable, "-m", "mpiflux", "run", "first.yaml", "--run-dir", name,
                  "--progress", "none"])
    with open_run(name) as reader:
        return next(iter(reader.jobs()))["t_start"] - begin, used.cpu


def beside(ranks: int, name: str) -> tuple[float, float, float, float]:
    """The same, and wall and CPU seconds of a program that only initialises MPI."""
    ours = first_job(ranks, name)
    bare = timed([*launcher(ranks), sys.executable, "-c", "from mpi4py import MPI"])
    return *ours, bare.wall, bare.cpu


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    sizes = [int(word) for word in sys.argv[2:]] or [2, 16, 64]
    os.environ["PYTHONPATH"] = str(ROOT)
    sys.path.insert(0, str(ROOT))
    with Scratch() as scratch:
        os.chdir(scratch)
        Path("first.yaml").write_text(json.dumps(FIRST))
        Path("steer.py").write_text(STEER)
        outer = ["mpiflux", "start", "--run-dir", "outer", "--cores-per-node", str(max(4, *sizes))]
        steer = ["steer.py", PROGRAM, str(repeats), json.dumps(sizes), "found.json", json.dumps(launcher(2)[:-2])]
        subprocess.run([sys.executable, "-m", *outer, "--", sys.executable, *steer],
                       check=True, capture_output=True)
        found = {name: statistics.median(times) for name, times in json.loads(Path("found.json").read_text()).items()}
        rows: list[tuple[object, ...]] = []
        for size in sizes:
            ours, own = found[f"tasks {size}"], found[f"mpiexec {size}"]
            rows.append((f"{size} tasks up", f"{ours:.2f} s", f"{own:.2f} s", f"{ours / own:.2f}",
                         *(f"{1e3 * found[f'{whose} {size}'] / size:.0f} ms" for whose in ("cpu", "cpu of mpiexec"))))
        rows += [(f"instance of {n} in a job, its first job", f"{found[f'inner {n}']:.2f} s", "", "", "", "")
                 for n in (1, 4)]
        for ranks in sorted({1, 4, max(sizes)}):
            runs = [beside(ranks, f"top-{ranks}-{i}") for i in range(repeats)]
            first, cpu, wall, own = (statistics.median(column) for column in zip(*runs, strict=True))
            rows.append((f"instance of {ranks} ranks, its first job", f"{first:.2f} s", f"{wall:.2f} s",
                         f"{first / wall:.2f}", f"{1e3 * cpu / ranks:.0f} ms", f"{1e3 * own / ranks:.0f} ms"))
        print(f"{machine()}, {loaded()}")
        print(table(rows, ("what", "mpiflux", "mpiexec", "ratio", "CPU a rank", "of mpiexec's")))


if __name__ == "__main__":
    main()
