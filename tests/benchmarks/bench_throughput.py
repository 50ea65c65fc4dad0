"""Processes that exit at once: mpiflux beside a bare C posix_spawn loop on the same cores, in the same minute.

Full capture, KVS and journal are on, as for any user. Each round runs the loop, then mpiflux, so that a machine whose
speed drifts changes both. Figures for each arrangement, medians over the rounds:

- ratio: mpiflux's jobs/s from its own first to its last job, over the loop's processes/s;
- whole: the same for the whole command, with what it takes to start Python and MPI, and to end;
- own CPU: user and system time of all mpiflux processes, less that of the jobs (from their records), less that of a
  run of one job (start and end, imports, MPI; the median of three), for each job. What the child of a clone does until
  its execve the kernel counts for the job, here and in the loop;
- the loop's own CPU, for starting and waiting and nothing else: a virtual machine whose host is busy makes both larger.

All are comparable on an otherwise idle machine only: each session has its share of a busy one, and mpiflux has several.

usage: bench_throughput.py [JOBS] [ROUNDS]
"""

from __future__ import annotations

import os
import statistics
import sys
from typing import NamedTuple

from _common import EXAMPLES, Scratch, machine, run_workflow, spawn_loop, table, timed

ARRANGEMENTS = ((1, "none"), (1, "node"), (1, "node,core"), (4, "none"), (4, "node"), (4, "node,core"))


def job_figures(run_dir: str) -> tuple[float, float]:
    """(jobs/s from the first start to the last end, CPU seconds of all jobs)."""
    from mpiflux.store.reader import open_run

    with open_run(run_dir) as reader:
        records = reader.records
        span = float(records["t_finish"].max() - records["t_start"].min())
        cpu = float(records["utime"].astype("f8").sum() + records["stime"].astype("f8").sum())
        return len(records) / max(span, 1e-9), cpu


class Figures(NamedTuple):
    """Medians over the rounds."""

    rate: float
    """Jobs a second."""
    ratio: float
    """Of the loop's."""
    whole: float
    """The ratio with start and end."""
    lowest: float
    highest: float
    own: float
    """Microseconds of CPU a job."""
    loop: float
    """The same of the loop."""


def measure(scratch: str, loop: str, ranks: int, hierarchy: str, jobs: int, rounds: int) -> Figures:
    ratios, wholes, own, rates, loops = [], [], [], [], []
    for n in range(rounds):
        bare = timed([loop, str(jobs), str(len(os.sched_getaffinity(0))), "/bin/true"])
        stem = os.path.join(scratch, f"{ranks}-{hierarchy}-{n}")
        stress = EXAMPLES / "stress.yaml"
        idle = statistics.median(
            run_workflow(stress, f"{stem}-one-{k}", "--set", "n=1", "--hierarchy", hierarchy, ranks=ranks).cpu
            for k in range(3))
        full = run_workflow(stress, f"{stem}-all", "--set", f"n={jobs}", "--hierarchy", hierarchy, ranks=ranks)
        rate, job_cpu = job_figures(f"{stem}-all")
        _, one_cpu = job_figures(f"{stem}-one-0")
        rates.append(rate)
        ratios.append(rate / (jobs / bare.wall))
        wholes.append(bare.wall / full.wall)
        loops.append(float(bare.output.split()[0]))
        own.append((full.cpu - job_cpu - (idle - one_cpu)) / (jobs - 1) * 1e6)
    middle = statistics.median
    return Figures(middle(rates), middle(ratios), middle(wholes), min(ratios), max(ratios), middle(own),
                   middle(loops))


def main() -> None:
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    print(f"{machine()}\n{jobs:,} x /bin/true, {rounds} rounds")
    with Scratch() as scratch:
        loop = spawn_loop(scratch)
        rows: list[tuple[object, ...]] = []
        for ranks, hierarchy in ARRANGEMENTS:
            found = measure(scratch, loop, ranks, hierarchy, jobs, rounds)
            rows.append((ranks, hierarchy, f"{found.rate:,.0f}", f"{found.ratio:.2f}",
                         f"{found.lowest:.2f}-{found.highest:.2f}", f"{found.whole:.2f}", f"{found.own:.0f}",
                         f"{found.loop:.0f}"))
    print(table(rows, ("ranks", "hierarchy", "jobs/s", "of the C loop", "range", "with start and end",
                       "own CPU, us/job", "the loop's")))


if __name__ == "__main__":
    main()
