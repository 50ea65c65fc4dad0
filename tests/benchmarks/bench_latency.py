"""From ``submit()`` in Python to the start of the process, on one rank and through a tree of three levels.

The instance is idle but for one job at a time, as under a steering program that waits for each answer. The start is the
time in the job's record, taken just before its process is made.

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
    found = []
    for _ in range(int(sys.argv[1])):
        begin = time.time()
        found.append(flux.submit(["true"]).result().t_start - begin)
        time.sleep(0.005)
    with open(sys.argv[2], "w") as file:
        json.dump(found, file)
"""
ARRANGEMENTS = (("one rank", 1, "none"), ("4 ranks, each a node of 4 cores: root, node, core", 4, "node,core"))


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
    _, ranks, hierarchy = ARRANGEMENTS[number]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    out = os.path.join(scratch, f"{number}.json")
    timed(launch(ranks, [
        sys.executable, "-m", "mpiflux", "start", "--hierarchy", hierarchy, "--run-dir",
        os.path.join(scratch, f"run-{number}"), "--cores-per-node", "4", "--", sys.executable, "-c", STEER,
        str(jobs), out]))
    with open(out) as file:
        return sorted(1e3 * seconds for seconds in json.load(file))


def main() -> None:
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    print(machine())
    rows: list[tuple[object, ...]] = []
    with Scratch() as scratch:
        for number, (name, _, _) in enumerate(ARRANGEMENTS):
            found = measure(scratch, jobs, number)
            rows.append((name, *(f"{found[int(len(found) * part)]:.2f}" for part in (0.5, 0.9, 0.99))))
    print(table(rows, ("submit() to the start of the process", "p50, ms", "p90", "p99")))


if __name__ == "__main__":
    main()
