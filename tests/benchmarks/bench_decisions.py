"""Decisions per second of one scheduler: by policy, length of the queue, and size of the machine.

Claim: the rate does not fall with the queue, and at most logarithmically with the machine. The machine (nodes of
44 cores and 4 GPUs) is full of jobs of the five kinds of the paper's Pilot2 mix. Then a job that runs ends, at random,
before its time limit, again and again. A decision is everything that follows for the scheduler: it frees what the job
had, lets the policy look at the queue, and starts what fits. In the queue are that many entries, 10,000 say, of jobs
of all kinds in random order, each of them a group of its own; a job that ends is queued again.

    python tests/benchmarks/bench_decisions.py [--seconds 1] [--policies fcfs,easy] [--large]

``--large``: every tenth entry is a job that wants all of a node, so that reservations are held all the time.
"""

from __future__ import annotations

import argparse
import random
import time

from mpiflux.model import messages as m
from mpiflux.model.jobspec import JobGroup, PolicySpec, Request
from mpiflux.model.records import PACK
from mpiflux.model.resources import NodeResources
from mpiflux.model.states import Result
from mpiflux.sched.catalog import Catalog
from mpiflux.sched.leasing import Leasing
from mpiflux.sched.policies import KNOWN, make
from mpiflux.sched.pool import ResourcePool
from mpiflux.sched.scheduler import Scheduler

CORES, GPUS, DOMAINS = 44, 4, 2
EXECUTORS = 1 << 20
CORES_AN_EXECUTOR = 4
MIX = (Request(cores=3, gpus=1), Request(cores=3, gpus=1), Request(cores=3), Request(), Request(cores=24))
WHOLE = Request(nodes=1, exclusive=True)


class Bench:
    """A full machine with a queue."""

    def __init__(self, policy: str, queued: int, nodes: int, large: bool) -> None:
        draw = self.draw = random.Random(7)
        self.catalog = Catalog()
        executors = tuple(EXECUTORS + i for i in range(nodes * CORES // CORES_AN_EXECUTOR))
        below = Leasing(0, -1, ResourcePool([NodeResources(
            node=i, cores=tuple(range(CORES)), numa=tuple(c * DOMAINS // CORES for c in range(CORES)),
            gpus=tuple(range(GPUS)), gpu_numa=tuple(g * DOMAINS // GPUS for g in range(GPUS)))
            for i in range(nodes)]),
            lambda node, core: EXECUTORS + (node * CORES + core) // CORES_AN_EXECUTOR, executors, self.catalog)
        self.scheduler = Scheduler(0, -1, make(PolicySpec(policy)), below, self.catalog)
        self.now, self.groups = 0.0, 0
        self.running: list[tuple[int, m.Grant, m.Chunk]] = []
        self._grants: dict[tuple[int, int], list[m.Grant]] = {}
        self.fill(nodes)
        for i in range(queued):
            self.push(WHOLE if large and i % 10 == 9 else draw.choice(MIX))
        self.settle()

    def fill(self, nodes: int) -> None:
        """Jobs of all kinds everywhere, with limits that end at different times."""
        for request, count in ((MIX[0], nodes * GPUS), (MIX[2], nodes * 8), (MIX[3], nodes * 60)):
            for _ in range(0, count, 50):
                self.push(request, min(50, count))
                self.settle()
        self.scheduler.queue.clear()

    def push(self, request: Request, count: int = 1) -> None:
        number = self.groups
        self.groups += 1
        limit = 1000.0 + self.draw.random() * 10000
        group = JobGroup(number=number, name=f"g{number}", first_id=1 + number * 64, count=count, command=("x",),
                         request=request, time_limit=limit)
        self.scheduler.receive(-1, m.Declare(group), self.now)
        self.scheduler.receive(-1, m.Submit((m.Chunk(number, 0, count),)), self.now)

    def settle(self) -> None:
        for destination, message in self.scheduler.settle(self.now):
            if isinstance(message, m.Grant):
                self._grants.setdefault((destination, message.shape), []).append(message)
            elif isinstance(message, m.Feed):
                for chunk in message.chunks:
                    for index in range(chunk.start, chunk.stop):
                        grant = self._grants[destination, message.shape].pop()
                        self.running.append((destination, grant, m.Chunk(chunk.group, index, index + 1)))

    def end(self, position: int) -> None:
        """A job ends, and is queued again."""
        self.running[position], self.running[-1] = self.running[-1], self.running[position]
        executor, grant, chunk = self.running.pop()
        group = self.catalog.group(chunk.group)
        record = PACK.pack(group.first_id + chunk.start, 1, Result.COMPLETED, 0, 0, 1, 0, grant.r_id, 0, 0, self.now,
                           0, 0, 0, 0, 0, 0)
        report = m.Report(record, idle=(grant.lease,), done=((grant.shape, chunk.group, 1, 60.0),))
        self.scheduler.receive(executor, report, self.now)
        self.scheduler.receive(-1, m.Submit((chunk,)), self.now)

    def turn(self, seconds: float) -> None:
        self.now += seconds
        self.end(self.draw.randrange(len(self.running)))
        self.settle()

    def rate(self, seconds: float) -> float:
        """Decisions per second of CPU: others may use the machine too."""
        for _ in range(100):
            self.turn(10.0)  # all that has patience has lost it; indexes are built
        turns = 0
        begin = time.process_time()
        while (spent := time.process_time() - begin) < seconds or turns < 20:
            self.turn(0.01)
            turns += 1
        return turns / spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--policies", default=",".join(KNOWN))
    parser.add_argument("--nodes", default="1,100,4000")
    parser.add_argument("--queued", default="1,100,10000")
    parser.add_argument("--large", action="store_true")
    options = parser.parse_args()
    queues = [int(n) for n in options.queued.split(",")]
    print(f"{'decisions/s':>14} {'nodes':>6} " + " ".join(f"{n:>8,} queued" for n in queues))
    for policy in options.policies.split(","):
        for nodes in map(int, options.nodes.split(",")):
            rates = [Bench(policy, queued, nodes, options.large).rate(options.seconds) for queued in queues]
            print(f"{policy:>14} {nodes:>6,} " + " ".join(f"{rate:>15,.0f}" for rate in rates), flush=True)


if __name__ == "__main__":
    main()
