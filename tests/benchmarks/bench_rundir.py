"""A million jobs from a workflow of six lines: how soon the first starts, and how soon its directory answers.

The jobs are given to executors and reported, not started (``--exec null``). The time to the first job is from before
the command to the start in its record, beside that of ten jobs; then the commands that read the directory, and
``--resume`` of the finished run.

usage: bench_rundir.py [JOBS]
"""

from __future__ import annotations

import os
import sys
import time

from _common import EXAMPLES, Scratch, machine, table, timed


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "mpiflux", *words]


def first_start(scratch: str, jobs: int) -> float:
    from mpiflux.store.reader import open_run

    run_dir = os.path.join(scratch, f"run-{jobs}")
    begin = time.time()
    timed(command("run", str(EXAMPLES / "stress.yaml"), "--set", f"n={jobs}", "--run-dir", run_dir, "--exec", "null",
                  "--progress", "none"))
    with open_run(run_dir) as reader:
        return float(reader.records["t_start"].min()) - begin


def main() -> None:
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    print(machine())
    with Scratch() as scratch:
        few, many = first_start(scratch, 10), first_start(scratch, jobs)
        run_dir = os.path.join(scratch, f"run-{jobs}")
        size = os.path.getsize(os.path.join(run_dir, "run.db"))
        rows: list[tuple[object, ...]] = [
            ("first job of ten", f"{few:.2f} s"), (f"first job of {jobs:,}", f"{many:.2f} s"),
            ("run.db", f"{size / jobs:.0f} bytes a job")]
        for name, words in (("jobs", ["jobs", run_dir]), ("jobs -a", ["jobs", "-a", run_dir]),
                            ("job show of the last one", ["job", "show", str(jobs), run_dir]),
                            ("report", ["report", run_dir]),
                            ("export --format csv", ["export", run_dir, "--format", "csv", "--output",
                                                     os.path.join(scratch, "out.csv")]),
                            ("run --resume of the finished run",
                             ["run", str(EXAMPLES / "stress.yaml"), "--set", f"n={jobs}", "--run-dir", run_dir,
                              "--resume", "--exec", "null", "--progress", "none"])):
            used = timed(command(*words))
            rows.append((name, f"{used.wall:.2f} s, {used.cpu:.2f} s of CPU"))
    print(table(rows, ("", "")))


if __name__ == "__main__":
    main()
