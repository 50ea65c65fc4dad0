"""The paper's figure 3 in simulation: jobs per second of hierarchies of depth 1, 2 and 3, and what saturates.

    python tests/benchmarks/bench_figure3.py [--most 1048576] [--plot figure3.png]
    python tests/benchmarks/bench_figure3.py --scale 1000 9408 [--jobs-per-core 20]

32 nodes of 36 cores run 1 to 1,048,576 jobs that do nothing (fcfs, queue depth 1), with ``sim/costs.json``. The
paper's Flux did 10-16, 370 and 760 jobs/s at depths 1, 2 and 3 on as many cores. ``--scale``: nodes of 56 cores
instead, with the hierarchies that a person would try. Seconds are until rank 0 has recorded the last job.
"""

from __future__ import annotations

import argparse
import time

from mpiflux.model.jobspec import JobGroup, PolicySpec, Workflow
from mpiflux.sim.compare import Variant, simulate
from mpiflux.sim.costs import load_costs
from mpiflux.sim.durations import Durations
from mpiflux.sim.machine import build, parse_cluster
from mpiflux.sim.statistics import Statistics
from mpiflux.spec import load_hierarchy

DEPTHS = {1: "none", 2: "node", 3: "node,core"}
PAPER = {1: (10.0, 16.0), 2: (370.0, 370.0), 3: (760.0, 760.0)}
"""Jobs per second, read from the paper's figure 3."""
CORE_LEVELS = 2000
"""Nodes up to which a scheduler for each core is simulated: more takes tens of GiB."""


def simulated(cluster: str, tree: str, jobs: int) -> tuple[Statistics, float]:
    """The run, and the real seconds that it took."""
    begun = time.perf_counter()
    workflow = Workflow(name="null", groups=(JobGroup(number=0, name="null", first_id=1, count=jobs, duration="0"),))
    policy = PolicySpec("fcfs", {"queue_depth": 1})
    found = simulate(Variant(tree, load_hierarchy(tree), policy), build(parse_cluster(cluster)), workflow,
                     Durations(workflow.groups, {}, 1), load_costs())
    return found, time.perf_counter() - begun


def show(nodes: int, tree: str, jobs: int, found: Statistics, real: float) -> None:
    shares = {f"level {depth}": level.busiest / found.recorded for depth, level in enumerate(found.levels)}
    shares.update(found.parts)
    busiest = max(shares, key=lambda name: shares[name])
    print(f"{nodes:>6,} {tree:>10} {len(found.levels):>6} {jobs:>10,} {found.jobs / found.recorded:>11,.0f} "
          f"{found.recorded:>9.3f} "
          f"{100 * found.parts['rank 0']:>7.1f} % {100 * found.parts['busiest supervisor']:>7.1f} %  "
          f"{busiest} {100 * shares[busiest]:.0f} %  ({real:.0f} s real)", flush=True)


def header() -> None:
    print(f"{'nodes':>6} {'hierarchy':>10} {'depth':>6} {'jobs':>10} {'jobs/s':>11} {'seconds':>9} {'rank 0':>9} "
          f"{'superv.':>9}  busiest part")


def figure(most: int, plot: str) -> None:
    header()
    curves: dict[int, list[tuple[int, float]]] = {}
    for depth, tree in DEPTHS.items():
        jobs = 1
        while jobs <= most:
            found, real = simulated("32x(36c)", tree, jobs)
            show(32, tree, jobs, found, real)
            curves.setdefault(depth, []).append((jobs, found.jobs / found.recorded))
            jobs *= 4
    for depth, points in curves.items():
        low, high = PAPER[depth]
        paper = f"{low:.0f}" if low == high else f"{low:.0f}-{high:.0f}"
        best = max(rate for _, rate in points)
        print(f"depth {depth}: at most {best:,.0f} jobs/s simulated; the paper's Flux ran {paper}")
    if plot:
        draw(curves, plot)


def draw(curves: dict[int, list[tuple[int, float]]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for depth, points in curves.items():
        line, = axes.loglog([jobs for jobs, _ in points], [rate for _, rate in points], marker="o", markersize=4,
                            label=f"mpiflux, depth {depth} (simulated)")
        axes.axhline(PAPER[depth][1], color=line.get_color(), linestyle=":", linewidth=1.2,
                     label=f"Flux in the paper, depth {depth}")
    axes.set_xlabel("jobs")
    axes.set_ylabel("jobs per second")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    print(f"drew {path}")


def scale(sizes: list[int], jobs_per_core: int) -> None:
    header()
    for nodes in sizes:
        for tree in ("none", "node", "32,node", *(["node,core"] if nodes <= CORE_LEVELS else [])):
            jobs = jobs_per_core * 56 * nodes
            found, real = simulated(f"{nodes}x(56c)", tree, jobs)
            show(nodes, tree, jobs, found, real)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=1 << 20)
    parser.add_argument("--plot", default="")
    parser.add_argument("--scale", type=int, nargs="+", metavar="NODES")
    parser.add_argument("--jobs-per-core", type=int, default=20)
    args = parser.parse_args()
    if args.scale:
        scale(args.scale, args.jobs_per_core)
    else:
        figure(args.most, args.plot)


if __name__ == "__main__":
    main()
