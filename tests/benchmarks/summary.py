"""What mpiflux is to reach, and what it reaches on this machine: one table, in about ten minutes on two idle cores.

Each row is a figure of a script beside this one, taken in a run that is as short as its noise allows; run the script
for more rounds and more detail. Figures of CPU rise, and all others mean little, while the machine does something else.

usage: summary.py [PART...]        parts: node root million scale start latency work; default: all
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import bench_figure3
import bench_icf
import bench_idle
import bench_latency
import bench_million
import bench_modules
import bench_rundir
import bench_start
import bench_throughput
from _common import EXAMPLES, Scratch, machine, spawn_loop, table, timed


class Row(NamedTuple):
    what: str
    goal: str
    measured: str
    reached: bool | None
    """None: there is no number to reach."""


def at_most(what: str, value: float, goal: float, unit: str, digits: int = 0) -> Row:
    return Row(what, f"<= {goal:g} {unit}", f"{value:,.{digits}f} {unit}", value <= goal)


def at_least(what: str, value: float, goal: float, unit: str, digits: int = 2) -> Row:
    return Row(what, f">= {goal:g} {unit}", f"{value:,.{digits}f} {unit}", value >= goal)


def told(what: str, value: str) -> Row:
    return Row(what, "", value, None)


def node(scratch: str) -> Iterator[Row]:
    """Processes that exit at once."""
    loop = spawn_loop(scratch)
    for ranks, hierarchy in bench_throughput.ARRANGEMENTS:
        found = bench_throughput.measure(scratch, loop, ranks, hierarchy, 20_000, 1)
        name = f"{ranks} rank{'s' * (ranks > 1)}, {hierarchy}"
        yield at_least(f"jobs/s beside the C loop, {name}", found.ratio, 0.9, "of it", 3)
        yield told("the same with start and end", f"{found.whole:.3f} of it")
        yield told("the loop's own CPU then", f"{found.loop:.1f} us a job")
        yield at_most(f"its own CPU, {name}", found.own, 60, "us a job", 1)


def root(scratch: str) -> Iterator[Row]:
    """Rank 0 with no process started."""
    base = bench_million.middle(scratch, 4, 10)
    for count in (10_000, 100_000, 1_000_000):
        found = bench_million.middle(scratch, 4, count)
        yield at_most(f"rank 0, {count:,} jobs: CPU", (found["cpu"] - base["cpu"]) / count * 1e6, 4, "us a job", 2)
    yield at_most("rank 0's memory in that run", (found["rss"] - base["rss"]) / count, 400, "bytes a job")
    yield told("run.db of that run", f"{found['db'] / count:.0f} bytes a job")


def million(scratch: str) -> Iterator[Row]:
    """A million jobs from six lines of YAML."""
    few, many = bench_rundir.first_start(scratch, 10), bench_rundir.first_start(scratch, 1_000_000)
    yield at_most("first job of a million, later than that of ten", many - few, 1, "s", 2)
    run_dir = os.path.join(scratch, "run-1000000")
    again = ["run", str(EXAMPLES / "stress.yaml"), "--set", "n=1000000", "--run-dir", run_dir, "--resume", "--exec",
             "null", "--progress", "none"]
    for name, words in (("jobs", ["jobs", run_dir]), ("report", ["report", run_dir]), ("run --resume", again)):
        yield at_most(f"{name} of a million", timed(bench_rundir.command(*words)).wall, 10, "s", 1)


def scale(scratch: str) -> Iterator[Row]:
    """In simulation, with the costs of ``mpiflux/sim/costs.json``."""
    for depth, tree in bench_figure3.DEPTHS.items():
        found, _ = bench_figure3.simulated("32x(36c)", tree, 1 << 16)
        low, high = bench_figure3.PAPER[depth]
        yield at_least(f"32 nodes x 36 cores, depth {depth}, simulated", found.jobs / found.recorded, high,
                       f"jobs/s (the paper's Flux: {low:g}-{high:g})", 0)
    found, _ = bench_figure3.simulated("1000x(56c)", "node", 56_000)
    yield told("1,000 nodes x 56 cores, level of nodes, simulated", f"{found.jobs / found.recorded:,.0f} jobs/s")


def start(scratch: str) -> Iterator[Row]:
    """Starting, and what it reads."""
    names = bench_modules.modules(scratch)
    own = sum(name.partition(".")[0] == "mpiflux" for name in names["1"])
    yield told("modules of a leaf rank", f"{len(names['1'])}, {own} of them mpiflux's")
    with open(os.path.join(scratch, "first.yaml"), "w") as file:
        file.write("jobs: {first: {command: 'true'}}\n")
    before = os.getcwd()
    os.chdir(scratch)
    try:
        yield told("mpiexec -n 64 to the first job", f"{bench_start.first_job(64, 'many')[0]:.1f} s")
    finally:
        os.chdir(before)


def latency(scratch: str) -> Iterator[Row]:
    """From submit() to the start, and the price of being there for it."""
    for number, (name, goal) in enumerate((("one rank", 2.0), ("one rank, after 2 s of silence", 2.0),
                                         ("three levels, to another rank", 10.0),
                                         ("three levels, to another rank, after silence", 10.0))):
        found = bench_latency.measure(scratch, 100, number)
        yield at_most(f"submit() to start, p50, {name}", statistics.median(found), goal, "ms", 1)
    for nodes, name in ((1, "ranks of one node"), (4, "each rank a node")):
        rows = bench_idle.watch_idle(scratch, 4, nodes)
        yield at_most(f"an idle rank, the busiest; {name}", max(float(str(row[1])) for row in rows), 0.5, "% of a core",
                      2)
        yield told("the busiest helpers of a rank meanwhile", f"{max(float(str(row[2])) for row in rows):.2f} %")


def work(scratch: str) -> Iterator[Row]:
    """Real work."""
    ours, theirs = bench_icf.measure(scratch, "200", 2)
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    yield at_least("fusion ensemble beside xargs -P", statistics.median(ratios), 0.98, "of its throughput", 3)


PARTS: dict[str, Callable[[str], Iterator[Row]]] = {
    one.__name__: one for one in (node, root, million, scale, start, latency, work)}


def measured(name: str, number: int) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    begin = time.monotonic()
    with Scratch() as scratch:
        try:
            for row in PARTS[name](scratch):
                verdict = "" if row.reached is None else "yes" if row.reached else "NO"
                rows.append((number, row.what, row.goal, row.measured, verdict))
        except (subprocess.SubprocessError, OSError, ValueError, AssertionError) as error:
            rows.append((number, f"{name}: {type(error).__name__}: {error}"[:80], "", "failed", "NO"))
    print(f"  {name}: {time.monotonic() - begin:.0f} s, load average {os.getloadavg()[0]:.1f}", flush=True)
    return rows


def main() -> int:
    names = sys.argv[1:] or list(PARTS)
    for name in names:
        if name not in PARTS:
            print(f"no part {name!r}: {' '.join(PARTS)}", file=sys.stderr)
            return 2
    print(f"{machine()}, load average {os.getloadavg()[0]:.1f}", flush=True)
    rows = [row for name in names for row in measured(name, list(PARTS).index(name) + 1)]
    print(table(rows, ("", "what", "goal", "measured", "reached")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
