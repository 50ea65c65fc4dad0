"""Jobs that are not all alike: output of 1 kB and of 1 MB, 200 environment variables, 2 s and 2 ms run times mixed.

Each kind is run beside the bare C ``posix_spawn`` loop with the same program, environment and output (to a file), in
turn with it. Where run times are mixed the other side is the sum of the run times over the cores: what is missing to 1
is idle cores, such as behind a long job in an executor's backlog. Memory and descriptors of all processes of mpiflux
are looked at ten times a second throughout.

usage: bench_mixed.py [RANKS] [ROUNDS] [HIERARCHY]        (default: 4 1 none)
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from _common import Scratch, launcher, machine, spawn_loop, table
from bench_breakdown import family

CPUS = len(os.sched_getaffinity(0))
ZEROS = ["head", "-c", "{bytes}", "/dev/zero"]
LONG, SHORT = 2.0, 0.002


@dataclass
class Kind:
    """One kind of jobs. ``loop``: the program as the C loop starts it; empty: run times are known."""

    name: str
    jobs: dict[str, Any]
    count: int
    loop: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)


def kinds() -> list[Kind]:
    variables = {f"BENCH_VARIABLE_{k}": f"value-{k}" * 4 for k in range(200)}
    times = ([LONG] + [SHORT] * 249) * 6
    sizes = [("1 kB of output", 1000, 4000), ("1 MB of output", 1_000_000, 300)]
    return [
        Kind("plain", {"command": ["true"], "parameters": {"i": {"range": 4000}}}, 4000, ["true"]),
        *(Kind(name, {"command": [word.format(bytes=size) for word in ZEROS], "parameters": {"i": {"range": count}}},
               count, [word.format(bytes=size) for word in ZEROS]) for name, size, count in sizes),
        Kind("200 variables", {"command": ["true"], "parameters": {"i": {"range": 4000}}, "env": variables}, 4000,
             ["true"], variables),
        Kind("2 s and 2 ms", {"command": ["sleep", "{seconds}"], "parameters": {"seconds": times}}, len(times)),
    ]


@dataclass
class Peaks:
    """The most that any process of a kind had: resident bytes, descriptors."""

    rss: dict[str, int] = field(default_factory=dict)
    fds: dict[str, int] = field(default_factory=dict)

    def look(self, root: int, command: str) -> None:
        for pid, kind in family(root, command).items():
            try:
                with open(f"/proc/{pid}/statm") as file:
                    rss = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
                fds = len(os.listdir(f"/proc/{pid}/fd"))
            except OSError:
                continue
            self.rss[kind] = max(self.rss.get(kind, 0), rss)
            self.fds[kind] = max(self.fds.get(kind, 0), fds)

    def told(self, found: dict[str, int], unit: int) -> str:
        return ", ".join(f"{found.get(kind, 0) // unit}" for kind in ("rank 0", "other ranks", "supervisors"))


def ours(kind: Kind, run_dir: str, ranks: int, peaks: Peaks, hierarchy: str) -> tuple[float, float]:
    """(seconds from the first start to the last end, seconds of all run times)."""
    from mpiflux.store.reader import open_run

    workflow = f"{run_dir}.json"
    with open(workflow, "w") as file:
        json.dump({"name": "mixed", "jobs": {"job": kind.jobs}}, file)
    argv = [*launcher(ranks), sys.executable, "-m", "mpiflux", "run", workflow, "--run-dir", run_dir, "--progress",
            "none", "--hierarchy", hierarchy]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peaks.look(process.pid, run_dir)
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{kind.name}: mpiflux ended with status {process.returncode}")
    with open_run(run_dir) as reader:
        records = reader.records
        assert len(records) == kind.count
        busy = float((records["t_finish"] - records["t_start"]).sum())
        return float(records["t_finish"].max() - records["t_start"].min()), busy


def loop(program: str, kind: Kind, scratch: str) -> float:
    """Seconds of the C loop."""
    path = shutil.which(kind.loop[0])
    assert path
    with open(os.path.join(scratch, "output"), "wb") as file, open(os.devnull, "wb") as null:
        begin = time.monotonic()
        subprocess.run([program, str(kind.count), str(CPUS), path, *kind.loop[1:]], check=True,
                       stdout=file if len(kind.loop) > 1 else null, env={**os.environ, **kind.env})
        return time.monotonic() - begin


def main() -> None:
    ranks = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    hierarchy = sys.argv[3] if len(sys.argv) > 3 else "none"
    print(f"{machine()}, {ranks} ranks, hierarchy {hierarchy}", flush=True)
    rows: list[tuple[object, ...]] = []
    with Scratch() as scratch:
        program = spawn_loop(scratch)
        for number, kind in enumerate(kinds()):
            peaks, ratios = Peaks(), []
            for n in range(rounds):
                bare = loop(program, kind, scratch) if kind.loop else 0.0
                span, busy = ours(kind, os.path.join(scratch, f"{number}-{n}"), ranks, peaks, hierarchy)
                ratios.append((bare or busy / CPUS) / span)
            rows.append((kind.name, f"{kind.count:,}", f"{statistics.median(ratios):.2f}",
                         peaks.told(peaks.rss, 1 << 20), peaks.told(peaks.fds, 1)))
    print(table(rows, ("jobs", "", "of the C loop, or of all cores busy", "MB: rank 0, other rank, supervisor",
                       "descriptors")))


if __name__ == "__main__":
    main()
