"""A million jobs through the tree with no process started: what rank 0 costs for each, and whether that stays flat.

``--exec null`` schedules, distributes, reports and journals every job as always; only the processes are missing. Rank
0's CPU time is its own, from reading the workflow file to the first commit and from the beginning of its loop to its
end, less the same of a run of ten jobs. Importing Python's modules and MPI's start are not in it: they cost ten times
as much as 10,000 jobs, and never twice the same. jobs/s is of the whole arrangement on this machine's cores.

usage: bench_million.py [RANKS] [COUNTS...]
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys

from _common import EXAMPLES, Scratch, launcher, machine, table, timed

WRAPPER = """
import json, os, resource, sys, time
out = sys.argv.pop(1)
rank = int(os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "0")))
marks = []

def marked(function, *where):
    def call(*args, **kwargs):
        if "before" in where:
            marks.append(time.process_time())
        done = function(*args, **kwargs)
        if "after" in where:
            marks.append(time.process_time())
        return done
    return call

from mpiflux.cli.main import main
if rank == 0:
    from mpiflux.instance import prepare, rank as loop
    prepare.prepare = marked(prepare.prepare, "before", "after")
    loop.Rank.run = marked(loop.Rank.run, "before")
status = main(sys.argv[1:])
if rank == 0:
    read, planned, begun = marks
    with open(out, "w") as file:
        json.dump({"cpu": planned - read + time.process_time() - begun,
                   "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}, file)
sys.exit(status)
"""


def run(scratch: str, ranks: int, count: int) -> dict[str, float]:
    shutil.rmtree(os.path.join(scratch, f"run-{count}"), ignore_errors=True)
    run_dir, out = os.path.join(scratch, f"run-{count}"), os.path.join(scratch, f"{count}.json")
    wrapper = os.path.join(scratch, "wrapper.py")
    with open(wrapper, "w") as file:
        file.write(WRAPPER)
    # one leaf scheduler and executor for each rank but the root's, as on a machine of that many nodes
    cores = max(4 * (ranks - 1), 4)
    timed([*launcher(ranks), sys.executable, wrapper, out, "run", str(EXAMPLES / "stress.yaml"), "--set", f"n={count}",
           "--run-dir", run_dir, "--exec", "null", "--progress", "none", "--cores-per-node", str(cores),
           "--hierarchy", str(max(ranks - 1, 1))])
    with open(out) as file:
        found = json.load(file)
    from mpiflux.store.reader import open_run

    with open_run(run_dir) as reader:
        records = reader.records
        assert len(records) == count
        found["span"] = float(records["t_finish"].max()) - float(reader.meta["t_start"])
    found["db"] = os.path.getsize(os.path.join(run_dir, "run.db"))
    return found


def middle(scratch: str, ranks: int, count: int) -> dict[str, float]:
    """Medians over five runs where there are few jobs."""
    runs = [run(scratch, ranks, count) for _ in range(5 if count <= 10_000 else 1)]
    return {key: statistics.median(found[key] for found in runs) for key in runs[0]}


def main() -> None:
    ranks = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    counts = [int(n) for n in sys.argv[2:]] or [10_000, 100_000, 1_000_000]
    print(f"{machine()}, {ranks} ranks")
    rows: list[tuple[object, ...]] = []
    with Scratch() as scratch:
        base = middle(scratch, ranks, 10)
        for count in counts:
            found = middle(scratch, ranks, count)
            rows.append((f"{count:,}", f"{count / found['span']:,.0f}",
                         f"{(found['cpu'] - base['cpu']) / count * 1e6:.2f}",
                         f"{found['rss'] / 1e6:.0f}", f"{(found['rss'] - base['rss']) / count:.0f}",
                         f"{found['db'] / count:.0f}"))
    print(table(rows, ("jobs", "jobs/s", "rank 0 CPU, us/job", "its peak, MB", "more, bytes/job", "run.db, bytes/job")))


if __name__ == "__main__":
    main()
