"""System calls of a job besides its program's own: mpiflux with its C part and without, and the C ``posix_spawn`` loop.

Counted by ``strace -f -c`` over everything that runs: a run of many jobs less one of few, so that start and end cancel
out, less what ``/bin/true`` calls by itself. Wants ``strace``. Counts do not depend on how busy the machine is, but for
those of waiting.

usage: bench_syscalls.py [JOBS]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter

from _common import EXAMPLES, Scratch, machine, spawn_loop, table

FEW = 200
PROGRAM = "/bin/true"


def counted(argv: list[str], summary: str, **variables: str) -> Counter[str]:
    """System calls of a command and of all that it starts, by name."""
    subprocess.run(["strace", "-f", "-qq", "-c", "-U", "name,calls", "-o", summary, *argv], check=True, timeout=600,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **variables})
    with open(summary) as file:
        rows = [line.split() for line in file]
    return Counter({row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit() and row[0] != "total"})


def difference(few: Counter[str], many: Counter[str], jobs: int, own: Counter[str]) -> dict[str, float]:
    """Calls a job."""
    return {name: (many[name] - few[name]) / jobs - own[name] for name in many}


def main() -> None:
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    if not shutil.which("strace"):
        raise SystemExit("no strace: install it")
    print(f"{machine()}\n{jobs:,} x {PROGRAM}", flush=True)
    rows: list[tuple[object, ...]] = []
    with Scratch() as scratch:
        summary = os.path.join(scratch, "summary")
        own = counted([PROGRAM], summary)
        loop = spawn_loop(scratch)
        width = str(len(os.sched_getaffinity(0)))
        parts = [counted([loop, str(n), width, PROGRAM], summary) for n in (FEW, FEW + jobs)]
        found = {"the C loop": difference(*parts, jobs, own)}
        for name, native in (("mpiflux", "1"), ("without its C part", "0")):
            parts = [counted([sys.executable, "-m", "mpiflux", "run", str(EXAMPLES / "stress.yaml"), "--run-dir",
                              os.path.join(scratch, f"{native}-{n}"), "--progress", "none", "--set", f"n={n}"], summary,
                             MPIFLUX_NATIVE=native) for n in (FEW, FEW + jobs)]
            found[name] = difference(*parts, jobs, own)
    for name, calls in found.items():
        most = sorted(calls.items(), key=lambda call: -call[1])[:6]
        rows.append((name, f"{sum(calls.values()):.0f}", ", ".join(f"{call} {n:.1f}" for call, n in most)))
    print(table(rows, ("", "calls a job", "most of them")))


if __name__ == "__main__":
    main()
