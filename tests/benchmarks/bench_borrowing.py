"""Idle time that jobs larger than a share cost: a large job every minute beside an endless stream of small ones.

In simulation: one scheduler a node, which small jobs of 1 to 10 seconds keep full. A job that wants several whole nodes
borrows them: nothing new starts there until the last small job has ended. Their idle core-seconds are those of the
``borrow`` events of a run, here by the number of nodes that the large job wants.

    python tests/benchmarks/bench_borrowing.py [--nodes 16] [--cores 12] [--jobs 5]
"""

from __future__ import annotations

import argparse
import random

from mpiflux.model import messages as m
from mpiflux.model.jobspec import HierarchySpec, JobGroup, LevelSpec, PolicySpec, Request, Workflow
from mpiflux.sim.cluster import START, Cluster
from mpiflux.sim.executor import Outcome
from mpiflux.sim.machine import build, parse_cluster

EVERY, LARGE = 60.0, 30.0
"""Seconds between large jobs, and how long each runs."""
SHORTEST, LONGEST = 1.0, 10.0


class Seconds:
    """Small jobs of all lengths, the same in every run."""

    def __init__(self, count: int) -> None:
        draw = random.Random(1)
        self.small = [draw.uniform(SHORTEST, LONGEST) for _ in range(count)]

    def outcome(self, group: JobGroup, index: int, attempt: int) -> Outcome:
        return Outcome(LARGE if group.number else self.small[index])


def borrowed(nodes: int, cores: int, jobs: int, wanted: int) -> list[tuple[m.Borrowed, float]]:
    """(what it cost, when it came) of each of ``jobs`` large jobs on ``wanted`` nodes."""
    count = int(nodes * cores * (jobs + 1) * EVERY / ((SHORTEST + LONGEST) / 2))
    small = JobGroup(number=0, name="small", first_id=1, count=count, command=("x",))
    large = JobGroup(number=1, name="large", first_id=count + 1, count=jobs, command=("x",),
                     request=Request(nodes=wanted, tasks=wanted, exclusive=True))
    workflow = Workflow(name="borrow", hierarchy=HierarchySpec(levels=(LevelSpec(by="node"),)), groups=(small, large),
                        policy=PolicySpec("fcfs"))
    arrivals = [(0.0, m.Chunk(0, 0, count)), *((EVERY * (i + 1), m.Chunk(1, i, i + 1)) for i in range(jobs))]
    cluster = Cluster(build(parse_cluster(f"{nodes}x({cores}c)")), workflow, Seconds(count), arrivals=arrivals)
    found: list[tuple[m.Borrowed, float]] = []
    handle = cluster.master.handle

    def listen(src: int, message: m.Message, now: float) -> None:
        if isinstance(message, m.Borrowed):
            found.append((message, now - START))
        handle(src, message, now)

    cluster.master.handle = listen  # type: ignore[method-assign]
    cluster.run()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--cores", type=int, default=12)
    parser.add_argument("--jobs", type=int, default=5)
    args = parser.parse_args()
    print(f"{args.nodes} nodes of {args.cores} cores, {args.jobs} large jobs of {LARGE:g} s, small ones of "
          f"{SHORTEST:g} to {LONGEST:g} s")
    print("nodes wanted   waited s: mean, most   idle core-s a job   of the job's own   of the machine's")
    for wanted in sorted({2, 4, 8, 16, args.nodes}):
        found = [one for one, _ in borrowed(args.nodes, args.cores, args.jobs, wanted)]
        waited, idle = [one.waited for one in found], sum(one.idle for one in found) / len(found)
        own = wanted * args.cores * LARGE
        print(f"{wanted:12d} {sum(waited) / len(waited):14.1f} {max(waited):7.1f} {idle:17.0f} {idle / own:17.1%} "
              f"{idle / (EVERY * args.nodes * args.cores):18.2%}")


if __name__ == "__main__":
    main()
