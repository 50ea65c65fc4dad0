"""Decisions per second of one scheduler's placement, on 1, 100 and 4,000 nodes of 44 cores and 4 GPUs.

Claim: a decision costs the same on 4,000 nodes as on one, within a small factor. Each row first fills the machine
with jobs of a shape, then frees a job and places one again, on a machine that is otherwise full: the steady state
of a long run. ``refused`` is asking for a place when there is none, what a scheduler with a queue does most.

    python tests/benchmarks/bench_placement.py [--seconds 0.3]
"""

from __future__ import annotations

import argparse
import random
import time

from mpiflux.model.jobspec import Request
from mpiflux.model.messages import ResourceSet
from mpiflux.model.resources import NodeResources
from mpiflux.sched.pool import ResourcePool

CORES, GPUS, DOMAINS = 44, 4, 2
SHAPES: tuple[tuple[str, Request], ...] = (
    ("1 core", Request()),
    ("1 GPU + 3 cores", Request(cores=3, gpus=1)),
    ("22 cores (a socket)", Request(cores=22)),
    ("44 tasks of 1 core", Request(tasks=44)),
    ("1 core, spread", Request(layout="spread")),
    ("2 nodes exclusive", Request(nodes=2, exclusive=True)),
    ("100 nodes exclusive", Request(nodes=100, exclusive=True)),
)
PILOT2 = (Request(cores=3, gpus=1), Request(), Request(cores=2), Request(cores=24))


def machine(count: int) -> ResourcePool:
    return ResourcePool([NodeResources(
        node=i, cores=tuple(range(CORES)), numa=tuple(c * DOMAINS // CORES for c in range(CORES)),
        gpus=tuple(range(GPUS)), gpu_numa=tuple(g * DOMAINS // GPUS for g in range(GPUS)), memory=256 << 30)
        for i in range(count)])


def fill(pool: ResourcePool, request: Request) -> list[ResourceSet]:
    held = []
    while (rset := pool.alloc(request)) is not None:
        held.append(rset)
    return held


def steady(pool: ResourcePool, request: Request, seconds: float) -> tuple[float, float, float]:
    """Rates per second: filling the empty machine, free and place again, refusals."""
    start = time.perf_counter()
    held = fill(pool, request)
    filling = len(held) / (time.perf_counter() - start)
    order = random.Random(1).choices(range(len(held)), k=1000)
    done, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        for i in order[done % 1000:done % 1000 + 100]:
            pool.free(held[i], request)
            rset = pool.alloc(request)
            assert rset is not None
            held[i] = rset
        done += 100
    again = done / spent
    done, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds / 3:
        for _ in range(100):
            assert pool.alloc(request) is None
        done += 100
    return filling, again, done / spent


def mixed(pool: ResourcePool, seconds: float) -> float:
    """Free and place again per second with Pilot2's four shapes beside each other."""
    rng = random.Random(2)
    held = []
    short = set[int]()
    while len(short) < len(PILOT2):
        kind = rng.randrange(len(PILOT2))
        rset = pool.alloc(PILOT2[kind])
        if rset is None:
            short.add(kind)
        else:
            held.append((rset, kind))
    done, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        for _ in range(100):
            i = rng.randrange(len(held))
            rset, kind = held[i]
            pool.free(rset, PILOT2[kind])
            again = pool.alloc(PILOT2[kind])
            assert again is not None
            held[i] = (again, kind)
        done += 100
    return done / spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.3, help="time for each figure")
    seconds = parser.parse_args().seconds
    print(f"{'shape':22} {'nodes':>6} {'fill /s':>12} {'free+place /s':>14} {'us a pair':>10} {'refused /s':>12}")
    for name, request in SHAPES:
        for count in (1, 100, 4000):
            pool = machine(count)
            if pool.can_ever(request) is None:
                filling, again, refused = steady(pool, request, seconds)
                print(f"{name:22} {count:6} {filling:12,.0f} {again:14,.0f} {1e6 / again:10.2f} {refused:12,.0f}")
    for count in (1, 100, 4000):
        again = mixed(machine(count), seconds)
        print(f"{'Pilot2 mix':22} {count:6} {'':12} {again:14,.0f} {1e6 / again:10.2f}")


if __name__ == "__main__":
    main()
