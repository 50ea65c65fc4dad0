"""The paper's Pilot2 campaign in simulation: how soon all GPUs are busy, and how long the simulation takes.

    python tests/benchmarks/bench_pilot2.py [NODES …] [--policy fcfs]

``docs/examples/pilot2.yaml`` on so many nodes of 44 cores and 4 GPUs (default 3500), three MD jobs a GPU. To be held
beside the paper's steady state after 1 h 30 min, and MuMMI's more than 98 % of GPUs in use for 83 % of the time.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

from mpiflux.sim.compare import Variant, parse_policy, simulate
from mpiflux.sim.costs import load_costs
from mpiflux.sim.durations import Durations
from mpiflux.sim.machine import build, parse_cluster
from mpiflux.spec import load

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs/examples/pilot2.yaml"


def campaign(nodes: int, policy: str, seed: int = 1) -> None:
    begun = time.perf_counter()
    workflow = load(str(EXAMPLE), overrides={"nodes": str(nodes), "patches": str(12 * nodes)})
    machine = build(parse_cluster(f"{nodes}x(44c,4g,2n)"))
    found = simulate(Variant(policy, workflow.hierarchy, parse_policy(policy)), machine, workflow,
                     Durations(workflow.groups, {}, seed), load_costs())
    real = time.perf_counter() - begun
    print(f"{nodes:,} nodes, {machine.cores:,} cores, {machine.gpus:,} GPUs, {found.jobs:,} jobs, {policy}, "
          f"seed {seed}")
    print(f"  real time             {real:.0f} s, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MB, "
          f"{found.events:,} events")
    print(f"  virtual time          {found.makespan / 3600:.2f} h; {found.completed:,} completed")
    steady = found.steady("gpus")
    if steady is None:
        print("  GPUs                  never 98 % in use")
    else:
        begin, end, mean = steady
        print(f"  98 % of GPUs in use   after {begin / 60:.0f} min, the last time after {end / 3600:.2f} h")
        print(f"  GPU occupancy between {100 * mean:.2f} %; over the whole campaign "
              f"{100 * found.utilisation['gpus']:.1f} %")
    for depth, level in enumerate(found.levels):
        print(f"  level {depth}: {level.schedulers:,} schedulers, the busiest {level.busiest:.2f} s of CPU, "
              f"{100 * level.busiest / found.makespan:.4f} % of the time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("nodes", nargs="*", type=int, default=[3500])
    parser.add_argument("--policy", default="fcfs")
    args = parser.parse_args()
    for nodes in args.nodes:
        campaign(nodes, args.policy)


if __name__ == "__main__":
    main()
