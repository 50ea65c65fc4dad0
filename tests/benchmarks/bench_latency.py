"""From ``submit()`` in Python to the start of the process, on one rank and through a tree of three levels.

The instance is idle but for one job at a time, as under a steering program that waits for each answer; once with 5 ms
between the jobs, once with 2 s of silence before each of a tenth as many. In the tree the cores of rank 0 are taken, so
that each job starts on another rank, and each rank takes itself for a node, so that nobody can ring another: messages
are found by looking. The start is the time in the job's record, taken just before its process is made.

usage: bench_latency.py [JOBS]
"""

from __future__ import annotations

import json
import os
import sys

from _common import ROOT, Scratch, launcher, machine, table, timed

STEER = """
import json, sys, time
import mpiflux
with mpiflux.connect() as flux:
    # the first child is given the first job
    taken = [flux.submit(["sleep", "1000"], cores=int(sys.argv[3]))] if int(sys.argv[3]) else []
    time.sleep(2 if taken else 0)
    found = []
    for _ in range(int(sys.argv[1])):
        time.sleep(float(sys.argv[4]))
        begin = time.time()
        ended = flux.submit(["true"]).result()
        assert not taken or ended.nodes != ["node0"], ended
        found.append(ended.t_start - begin)
    for job in taken:
        job.cancel()
    with open(sys.argv[2], "w") as file:
        json.dump(found, file)
"""
CORES = 4
ARRANGEMENTS = (
    ("one rank", 1, "none", 0.005),
    ("one rank, after 2 s of silence", 1, "none", 2.0),
    ("root, node, core on 4 ranks, from rank 0 to another", 4, "node,core", 0.005),
    ("the same, after 2 s of silence", 4, "node,core", 2.0),
)


def launch(ranks: int, command: list[str]) -> list[str]:
    """``command`` on that many ranks, each of which takes itself for a node."""
    if ranks == 1:
        return command
    argv = launcher(ranks)[:1]
    for rank in range(ranks):
        argv += [":"] * bool(rank) + ["-n", "1", "env", f"SLURMD_NODENAME=node{rank}", "SLURM_STEP_ID=0",
                                      f"SLURM_PROCID={rank}", *command]
    return argv


def measure(scratch: str, jobs: int, number: int) -> list[float]:
    """Milliseconds from ``submit()`` to the start, ascending, for an arrangement."""
    _, ranks, hierarchy, silence = ARRANGEMENTS[number]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    out = os.path.join(scratch, f"{number}.json")
    timed(launch(ranks, [
        sys.executable, "-m", "mpiflux", "start", "--hierarchy", hierarchy, "--run-dir",
        os.path.join(scratch, f"run-{number}"), "--cores-per-node", str(CORES), "--", sys.executable, "-c", STEER,
        str(jobs if silence < 1 else max(jobs // 10, 1)), out, str(CORES if ranks > 1 else 0), str(silence)]))
    with open(out) as file:
        return sorted(1e3 * seconds for seconds in json.load(file))


def main() -> None:
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    print(machine())
    rows: list[tuple[object, ...]] = []
    with Scratch() as scratch:
        for number, (name, *_) in enumerate(ARRANGEMENTS):
            found = measure(scratch, jobs, number)
            rows.append((name, *(f"{found[int(len(found) * part)]:.2f}" for part in (0.5, 0.9)), f"{found[-1]:.2f}"))
    print(table(rows, ("submit() to the start of the process", "p50, ms", "p90", "most")))


if __name__ == "__main__":
    main()
