"""Real work: the fusion ensemble of the examples by mpiflux, beside ``xargs -P`` with the same program and inputs.

Both run the same command lines, from the first start to the last end; xargs keeps the output of all jobs in one file,
mpiflux in its journal. Rounds alternate, so that a machine whose speed drifts changes both.

usage: bench_icf.py [SAMPLES] [ROUNDS]
"""

from __future__ import annotations

import os
import shlex
import statistics
import subprocess
import sys
import time

from _common import EXAMPLES, Scratch, machine, run_workflow, table

WORKFLOW = EXAMPLES / "icf_uq" / "workflow.yaml"


def commands(run_dir: str) -> str:
    """The samples' arguments of ``python`` as the run had them, a line each."""
    from mpiflux.store.reader import open_run

    with open_run(run_dir) as reader:
        jobs = [job["id"] for job in reader.jobs() if job["name"] == "sim"]
        return "".join(f"{shlex.join(reader.jobspec(job)['command'][1:])}\n" for job in jobs)


def seconds(run_dir: str) -> float:
    from mpiflux.store.reader import open_run

    with open_run(run_dir) as reader:
        sims = [job for job in reader.jobs() if job["name"] == "sim"]
        return float(max(job["t_finish"] for job in sims) - min(job["t_start"] for job in sims))


def xargs(lines: str, output: str) -> float:
    cpus = len(os.sched_getaffinity(0))
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    with open(output, "wb") as file:
        begin = time.monotonic()
        subprocess.run(["xargs", f"-P{cpus}", "-L1", "python"], input=lines.encode(), stdout=file, check=True,
                       env={**os.environ, "OMP_NUM_THREADS": "1", "PATH": path})
        return time.monotonic() - begin


def measure(scratch: str, samples: str, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each round, mpiflux's and xargs's."""
    os.environ["PATH"] = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    ours, theirs = [], []
    for n in range(rounds):
        run_dir = os.path.join(scratch, f"icf-{n}")
        run_workflow(WORKFLOW, run_dir, "--set", f"samples={samples}")
        ours.append(seconds(run_dir))
        theirs.append(xargs(commands(run_dir), os.path.join(scratch, "out")))
    return ours, theirs


def main() -> None:
    samples = sys.argv[1] if len(sys.argv) > 1 else "200"
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    print(f"{machine()}\n{samples} samples of docs/examples/icf_uq, {rounds} rounds", flush=True)
    with Scratch() as scratch:
        ours, theirs = measure(scratch, samples, rounds)
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    print(table([(f"{statistics.median(ours):.2f}", f"{statistics.median(theirs):.2f}",
                  f"{statistics.median(ratios):.3f}", f"{min(ratios):.3f}-{max(ratios):.3f}")],
                ("mpiflux, s", "xargs -P, s", "throughput beside xargs", "range")))


if __name__ == "__main__":
    main()
