"""What jobs that are submitted one by one cost rank 0: its memory while a program submits, waits, and submits more.

One rank. Every job is a submission of its own, with arguments of its own and none of what groups share; some hundreds
are under way at once. Told are the bytes of resident memory that each job added, in several parts of the same run: a
part that costs as much as the one before is what an instance of days pays.

usage: bench_memory.py [JOBS] [PARTS]
"""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from itertools import pairwise

from _common import Scratch, machine, table, timed

WINDOW = 8
"""Requests that are under way at once, of :data:`EACH` submissions."""
EACH = 250


def resident(pid: int) -> int:
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmRSS"))


def steer(jobs: int, parts: int, out: str) -> None:
    import mpiflux
    from mpiflux.client import plans, submission

    with open(os.path.join(os.environ["MPIFLUX_RUN_DIR"], "instance.json"), encoding="utf-8") as file:
        rank = int(json.load(file)["pid"])
    told = []
    with mpiflux.connect() as flux:
        done = 0
        while done <= jobs:
            told.append((done, resident(rank)))
            under_way: deque[list[int]] = deque()
            for _ in range(max(1, jobs // parts // EACH)):
                groups = tuple(submission.new_group(["true", str(done + k)], {}) for k in range(EACH))
                under_way.append([job for job, _ in flux._connection.do(plans.submit(groups))])
                done += EACH
                if len(under_way) >= WINDOW:
                    flux.wait(under_way.popleft())
            while under_way:
                flux.wait(under_way.popleft())
    with open(out, "w", encoding="utf-8") as file:
        json.dump(told, file)


def main() -> None:
    if sys.argv[1:2] == ["--steer"]:
        steer(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
        return
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    parts = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with Scratch() as scratch:
        out = os.path.join(scratch, "told.json")
        timed([sys.executable, "-m", "mpiflux", "start", "--run-dir", os.path.join(scratch, "run"), "--",
               sys.executable, os.path.abspath(__file__), "--steer", str(jobs), str(parts), out])
        with open(out, encoding="utf-8") as file:
            told = json.load(file)
    print(machine(), flush=True)
    rows = [(f"{stop:,}", f"{rss / 1e6:.0f}", f"{(rss - before) / (stop - start):,.0f}")
            for (start, before), (stop, rss) in pairwise(told)]
    print(table(rows, ("jobs so far", "rank 0, MB", "more, bytes/job")))


if __name__ == "__main__":
    main()
