"""What it costs to keep everything and to watch over each other: the CPU of journal and heartbeats, as ratios.

- journal: a run's own records and output are written once more, in the batches and the windows of 50 ms in which they
  came, by nothing but the journal. Its CPU for each job, of mpiflux's own CPU for each job of that run (all processes,
  less the jobs and less a run of one job), gives the ratio with it on to without.
- heartbeats: 4 ranks that run one job which sleeps, with the shortest --rank-timeout, which makes for 6 signs of life a
  second, beside the longest useful one. The difference is divided by their number, and told for the default.

usage: bench_keeping.py [JOBS] [ROUNDS]
"""

from __future__ import annotations

import os
import statistics
import sys
import time

from _common import EXAMPLES, Scratch, machine, run_workflow

RANKS = 4
WINDOW = 0.05
ASLEEP = 12
SHORT, LONG, DEFAULT = 1.0, 3600.0, 60.0


def journal_cpu(run_dir: str, again: str) -> tuple[int, float, float]:
    """(jobs, CPU seconds of the jobs, CPU seconds of writing what that run wrote)."""
    from mpiflux.store.journal import Journal
    from mpiflux.store.reader import open_run

    with open_run(run_dir) as reader:
        records = reader.records
        output = bytes(int(records["out_len"].sum() + records["err_len"].sum()) // max(len(records), 1))
        cpu = float(records["utime"].astype("f8").sum() + records["stime"].astype("f8").sum())
        groups = list(reader.groups)
    window = ((records["t_finish"] - records["t_finish"].min()) / WINDOW).astype("i8")
    parts = [records[window == number] for number in sorted(set(window.tolist()))]
    before = time.process_time()
    with Journal(again) as journal:
        for group in groups:
            journal.append_group(group, 0.0)
        for part in parts:
            part = part.copy()
            part["out_len"], part["err_len"] = len(output), 0
            journal.append_results(part.tobytes(), output * len(part), {})
            journal.wait()
    return len(records), cpu, time.process_time() - before


def journal(scratch: str, jobs: int, number: int) -> tuple[float, float]:
    """(own CPU of a run, CPU of its journal), microseconds a job."""
    stress = EXAMPLES / "stress.yaml"
    stem = os.path.join(scratch, f"journal-{number}")
    cpu = []
    for count in (1, jobs):
        used = run_workflow(stress, f"{stem}-{count}", "--set", f"n={count}", "--hierarchy", "4", ranks=RANKS)
        _, own, written = journal_cpu(f"{stem}-{count}", f"{stem}-{count}-again")
        cpu.append((used.cpu - own, written))
    (one, one_written), (all_, written) = cpu
    return (all_ - one) / (jobs - 1) * 1e6, (written - one_written) / (jobs - 1) * 1e6


def heartbeats(scratch: str, number: int) -> float:
    """CPU seconds of a second of heartbeats with the shortest time-out, all ranks together."""
    workflow = os.path.join(scratch, "sleep.yaml")
    with open(workflow, "w") as file:
        file.write(f"name: sleep\njobs: {{a: {{command: sleep {ASLEEP}}}}}\n")
    used = {}
    for timeout in (LONG, SHORT):
        run_dir = os.path.join(scratch, f"beats-{number}-{timeout:g}")
        used[timeout] = run_workflow(workflow, run_dir, "--rank-timeout", f"{timeout:g}s", "--hierarchy", "4",
                                     ranks=RANKS).cpu
    return (used[SHORT] - used[LONG]) / ASLEEP


def main() -> None:
    jobs, rounds = (int(given or usual) for given, usual in zip([*sys.argv[1:3], "", ""], ("5000", "3"), strict=False))
    print(f"{machine()}\n{RANKS} ranks, {jobs:,} x /bin/true, {rounds} rounds")
    with Scratch() as scratch:
        both = [journal(scratch, jobs, number) for number in range(rounds)]
        beats = [heartbeats(scratch, number) for number in range(rounds)]
    own, written = (statistics.median(column) for column in zip(*both, strict=True))
    print(f"journal: {written:.1f} of {own:.0f} us of CPU a job; with it on to without: {own / (own - written):.3f}")
    second = statistics.median(beats)
    print(f"heartbeats at --rank-timeout {SHORT:g}s: {second:.2%} of a core, all ranks together; "
          f"at the default of {DEFAULT:g}s {second * SHORT / DEFAULT:.4%}, of the machine's CPU "
          f"{1 + max(second, 0.0) * SHORT / DEFAULT / len(os.sched_getaffinity(0)):.6f} to without")


if __name__ == "__main__":
    main()
