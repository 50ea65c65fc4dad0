"""How soon MPI programs are up as jobs of a live instance, beside ``mpiexec`` of the same MPI; and instances.

- a job of N tasks with ``mpi: pmi1``: from ``submit`` until its last task has returned from MPI_Init, beside the same
  program from before ``mpiexec -n N``;
- an instance inside a job, of 1 and of 4 ranks: from ``submit`` to the start of its first job;
- an instance of as many ranks as the largest job has tasks: from before ``mpiexec`` to the start of its first job.

All are medians. usage: bench_start.py [REPEATS [TASKS…]]      (default: 3 2 16 64)
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from _common import ROOT, Scratch, launcher, machine, table

PROGRAM = "import sys, time; from mpi4py import MPI; sys.stdout.write(f'up {time.time()}\\n')"
FIRST = {"jobs": {"first": {"command": "true"}}}

STEER = """
import json, sys, time
import mpiflux
from mpiflux.store.reader import open_run

program, repeats, sizes, out = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
flux = mpiflux.connect()
found = {}
for size in sizes:
    for _ in range(repeats):
        begin = time.time()
        job = flux.submit([sys.executable, "-c", program], tasks=size, mpi="pmi1")
        lines = job.result().stdout.split()[1::2]
        assert len(lines) == size, (size, lines)
        found.setdefault(f"tasks {size}", []).append(max(map(float, lines)) - begin)
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


def up_by_mpiexec(size: int) -> float:
    begin = time.time()
    done = subprocess.run([*launcher(size), sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    return max(map(float, done.stdout.split()[1::2])) - begin


def first_job(ranks: int, name: str) -> float:
    sys.path.insert(0, str(ROOT))
    from mpiflux.store.reader import open_run

    begin = time.time()
    subprocess.run([*launcher(ranks), sys.executable, "-m", "mpiflux", "run", "first.yaml", "--run-dir", name,
                    "--progress", "none"], check=True, capture_output=True)
    with open_run(name) as reader:
        return next(iter(reader.jobs()))["t_start"] - begin


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    sizes = [int(word) for word in sys.argv[2:]] or [2, 16, 64]
    os.environ["PYTHONPATH"] = str(ROOT)
    print(machine())
    with Scratch() as scratch:
        os.chdir(scratch)
        Path("first.yaml").write_text(json.dumps(FIRST))
        Path("steer.py").write_text(STEER)
        outer = ["mpiflux", "start", "--run-dir", "outer", "--cores-per-node", str(max(sizes))]
        steer = ["steer.py", PROGRAM, str(repeats), json.dumps(sizes), "found.json"]
        subprocess.run([sys.executable, "-m", *outer, "--", sys.executable, *steer],
                       check=True, capture_output=True)
        found = {name: statistics.median(times) for name, times in json.loads(Path("found.json").read_text()).items()}
        rows: list[tuple[object, ...]] = []
        for size in sizes:
            own = statistics.median(up_by_mpiexec(size) for _ in range(repeats))
            rows.append((f"{size} tasks up", f"{found[f'tasks {size}']:.2f} s", f"{own:.2f} s"))
        rows += [(f"instance of {n} in a job, its first job", f"{found[f'inner {n}']:.2f} s", "") for n in (1, 4)]
        top = max(sizes)
        whole = statistics.median(first_job(top, f"top-{i}") for i in range(repeats))
        rows.append((f"instance of {top} ranks, its first job", f"{whole:.2f} s", ""))
        print(table(rows, ("what", "mpiflux", "mpiexec")))


if __name__ == "__main__":
    main()
