"""What it costs to keep everything and to watch over each other: CPU with the journal or the heartbeats, to without.

The same workload runs in turn with all on, with a --rank-timeout that gives no sign of life while it runs, with the
run directory in memory (/dev/shm), and with a journal that writes nothing (`_without_journal.py`, a seam that no option
offers). Nothing is started (--exec null): all CPU is mpiflux's own, of which a run of one job is taken away. Medians
over the rounds; the ratios are of each round's pair.

One job that sleeps is run without heartbeats and with a --rank-timeout of 3s, for their cost to idle ranks; and
/bin/true is run, for what a job with a process costs altogether.

usage: bench_keeping.py [JOBS] [ROUNDS]
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence

from _common import EXAMPLES, HERE, Scratch, launcher, machine, run_workflow, timed

RANKS = 4
ASLEEP = 12
NEVER, SHORT, DEFAULT = 1_000_000.0, 3.0, 60.0
FEWER = 300
"""So many jobs less where each is a process."""
STRESS = str(EXAMPLES / "stress.yaml")


def cpu(jobs: int, run_dir: str, *options: str, journal: bool = True) -> float:
    """CPU seconds of a run of so many jobs, and of one that has only one, taken away."""
    seconds = []
    for count in (jobs, 1):
        words = ["run", STRESS, "--run-dir", run_dir, "--set", f"n={count}", "--hierarchy", "4", "--progress", "none",
                 *options]
        command = ["-m", "mpiflux"] if journal else [str(HERE / "_without_journal.py")]
        seconds.append(timed([*launcher(RANKS), sys.executable, *command, *words]).cpu)
        shutil.rmtree(run_dir)
    return seconds[0] - seconds[1]


def round_of(scratch: str, memory: str, jobs: int) -> dict[str, float]:
    """Microseconds of CPU a job, by what is on."""
    on_disk, null = os.path.join(scratch, "run"), ("--exec", "null")
    used = {
        "all on": cpu(jobs, on_disk, *null),
        "no heartbeats": cpu(jobs, on_disk, *null, "--rank-timeout", f"{NEVER:.0f}s"),
        "no journal": cpu(jobs, on_disk, *null, journal=False),
        "journal in memory": cpu(jobs, os.path.join(memory, "run"), *null)}
    each = {what: seconds / jobs * 1e6 for what, seconds in used.items()}
    few = jobs // FEWER
    each["a job that is /bin/true, with its own CPU"] = cpu(few, on_disk) / few * 1e6
    return each


def asleep(scratch: str) -> float:
    """CPU seconds of a second of heartbeats with a time-out of 3 s, all ranks together, while nothing happens."""
    workflow = os.path.join(scratch, "sleep.yaml")
    with open(workflow, "w") as file:
        file.write(f"name: sleep\njobs: {{a: {{command: sleep {ASLEEP}}}}}\n")
    used = {}
    for timeout in (NEVER, SHORT):
        run_dir = os.path.join(scratch, "sleeping")
        used[timeout] = run_workflow(workflow, run_dir, "--rank-timeout", f"{timeout:.0f}s", "--hierarchy", "4",
                                     ranks=RANKS).cpu
        shutil.rmtree(run_dir)
    return (used[SHORT] - used[NEVER]) / ASLEEP


def ratio(rounds: Sequence[dict[str, float]], without: str) -> str:
    """All on to ``without``: the median, and the extremes."""
    found = [one["all on"] / one[without] for one in rounds]
    return f"{statistics.median(found):.3f} ({min(found):.3f}-{max(found):.3f})"


def main() -> None:
    jobs, rounds = (int(given or usual) for given, usual in zip([*sys.argv[1:3], "", ""], ("1000000", "3"),
                                                                strict=False))
    print(f"{machine()}\n{RANKS} ranks, {jobs:,} jobs that start nothing, {rounds} rounds")
    memory = tempfile.mkdtemp(prefix="mpiflux-bench-", dir="/dev/shm")
    try:
        with Scratch() as scratch:
            done = [round_of(scratch, memory, jobs) for _ in range(rounds)]
            beats = statistics.median(asleep(scratch) for _ in range(rounds))
    finally:
        shutil.rmtree(memory, ignore_errors=True)
    middle = {what: statistics.median(one[what] for one in done) for what in done[0]}
    for what, each in middle.items():
        print(f"{what}: {each:.2f} us of CPU a job")
    for without in ("no journal", "journal in memory", "no heartbeats"):
        print(f"all on, to {without}: {ratio(done, without)}")
    process = middle["a job that is /bin/true, with its own CPU"]
    without_it = process - middle["all on"] + middle["no journal"]
    print(f"of a job that is /bin/true, all CPU with the journal to without: {process / without_it:.4f}")
    print(f"heartbeats of idle ranks at --rank-timeout {SHORT:g}s: {beats:.2%} of a core, all ranks together; "
          f"at the default of {DEFAULT:g}s that is {beats * SHORT / DEFAULT:.4%}")


if __name__ == "__main__":
    main()
