"""How fast programs talk to a live instance and to each other.

Four ranks, each its own node of two declared cores, make a tree of three levels (root, node, core). This script is the
instance's initial program there, and talks through the doors of the first and of the last node: what it asks at the
last one travels between ranks, as for a job that runs there. Flux's figures are of flux-core 0.88, one broker, on two
cores of the same kind: its commands start an interpreter each, which is part of what its users wait for.

usage: bench_coordination.py [SCALE]     (1: all; 0.1: a tenth of everything, for a look)
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import Any

from _common import ROOT, Scratch, launcher, machine, table

Row = tuple[str, str, str]
RANKS = 4
SUBSCRIBERS = 100


def percentiles(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    p50, p99 = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
    return f"{1e3 * p50:.1f} / {1e3 * p99:.1f} ms"


def rate(n: int, what: Callable[[], object]) -> str:
    begin = time.perf_counter()
    what()
    return f"{n / (time.perf_counter() - begin):,.0f}/s"


def doors() -> list[str]:
    with open(os.path.join(os.environ["MPIFLUX_RUN_DIR"], "instance.json"), encoding="utf-8") as file:
        return [f"local://{door['path']}" for door in json.load(file)["doors"]]


# -- what is measured --------------------------------------------------------------------------------------------------


def submissions(flux: Any, scale: float) -> list[Row]:
    latencies = []
    for _ in range(int(300 * scale)):
        begin = time.time()
        latencies.append(flux.submit(["true"]).result().t_start - begin)
    n, many = int(2000 * scale), int(100_000 * scale)
    single = rate(n, lambda: [flux.submit(["true"], hold=True) for _ in range(n)])
    bulk = rate(many, lambda: flux.submit_many(["echo", "{x}"], params={"x": list(range(many))}, hold=True))
    flux.cancel()
    flux.wait()
    return [("submit() to the start of the process, p50 / p99", percentiles(latencies),
             "188 ms a `flux submit`, 67 ms from there to clean"),
            ("submit(), one after the other", single, "5/s `flux submit`"),
            (f"submit_many(), {many:,} jobs, until they have ids", bulk, "33/s `flux bulksubmit`, with their running")]


KEYS = """
import sys, time, mpiflux
with mpiflux.connect(sys.argv[1]) as flux:
    key, n = sys.argv[2], int(sys.argv[3])
    flux.kvs.put(key, 0)
    flux.kvs.fence("go", int(sys.argv[4]))
    a = time.time()
    for i in range(n): flux.kvs.put(key, i)
    b = time.time()
    flux.kvs.fence("middle", int(sys.argv[4]))
    c = time.time()
    for i in range(n): flux.kvs.get(key)
    print(a, b, c, time.time())
"""


def keys(uri: str, clients: int, n: int) -> tuple[str, str]:
    """Puts and gets a second of so many programs at once, each waiting for every answer."""
    running = [subprocess.Popen([sys.executable, "-c", KEYS, uri, f"bench.k{i}", str(n), str(clients)],
                                stdout=subprocess.PIPE, text=True) for i in range(clients)]
    times = [list(map(float, one.communicate()[0].split())) for one in running]
    total = n * clients
    puts = max(t[1] for t in times) - min(t[0] for t in times)
    gets = max(t[3] for t in times) - min(t[2] for t in times)
    return f"{total / puts:,.0f}/s", f"{total / gets:,.0f}/s"


def watching(flux: Any, other: Any, n: int) -> str:
    latencies = []
    with other.kvs.watch("bench.w") as changes:
        for i in range(n):
            begin = time.perf_counter()
            flux.kvs.put("bench.w", i)
            while changes.get(10).value != i:
                pass
            latencies.append(time.perf_counter() - begin)
    return percentiles(latencies)


TALK = """
import time
for i in range({n}):
    print(time.time(), flush=True)
    time.sleep(0.05)
"""


def output(flux: Any, n: int) -> str:
    """From a line that a job writes, up the tree, to who follows it."""
    latencies, rest = [], ""
    for piece in flux.submit([sys.executable, "-c", TALK.format(n=n)]).output("stdout"):
        *lines, rest = (rest + piece.text).split("\n")
        latencies += [time.time() - float(line) for line in lines]
    return percentiles(latencies[1:])


async def fan_out(uris: list[str], n: int) -> tuple[str, str]:
    import mpiflux.aio

    connections = [await mpiflux.aio.connect(uris[i % len(uris)]) for i in range(SUBSCRIBERS)]
    subscriptions = [await one.subscribe("bench.*") for one in connections]
    latencies = []
    for i in range(n):
        begin = time.perf_counter()
        await connections[0].publish("bench.t", i)
        await asyncio.gather(*(one.get() for one in subscriptions))
        latencies.append(time.perf_counter() - begin)
    begin = time.perf_counter()

    async def drain(subscription: Any) -> None:
        for _ in range(n):
            await subscription.get()

    readers = [asyncio.create_task(drain(one)) for one in subscriptions]
    for i in range(n):
        await connections[0].publish("bench.t", i)
    await asyncio.gather(*readers)
    delivered = f"{n * SUBSCRIBERS / (time.perf_counter() - begin):,.0f}/s"
    for one in connections:
        await one.close()
    return percentiles(latencies), delivered


def square(x: int) -> int:
    return x * x


def functions(pool: Executor, n: int) -> str:
    list(pool.map(square, range(10)))
    return rate(n, lambda: [future.result() for future in [pool.submit(square, i) for i in range(n)]])


# -- the program inside the instance -----------------------------------------------------------------------------------


def steer(scale: float) -> None:
    import mpiflux

    uris = doors()
    assert len(uris) == RANKS, "every rank is to be a node"
    first, last = mpiflux.connect(uris[0]), mpiflux.connect(uris[-1])
    rows = submissions(last, scale)
    for where, uri in (("last", uris[-1]), ("first", uris[0])):
        for clients in (1, 8):
            puts, gets = keys(uri, clients, int(2000 * scale / (1 if clients == 1 else 4)))
            who = f"{clients} client{'s' * (clients > 1)} at the {where} node"
            rows += [(f"KVS put, {who}", puts, ""), (f"KVS get, {who}", gets, "")]
    rows.append(("put at the first node to the watcher at the last, p50 / p99",
                 watching(first, last, int(500 * scale)), ""))
    rows.append(("a line that a job writes to who follows it, p50 / p99", output(last, max(10, int(60 * scale))), ""))
    latency, delivered = asyncio.run(fan_out(uris, int(200 * scale)))
    rows += [(f"publish to the last of {SUBSCRIBERS} subscribers, p50 / p99", latency, ""),
             (f"messages delivered to {SUBSCRIBERS} subscribers", delivered, "")]
    n, jobs = int(5000 * scale), int(2000 * scale)
    with mpiflux.Executor(uris[0]) as commands:
        done = rate(jobs, lambda: [one.result() for one in [commands.submit(["true"]) for _ in range(jobs)]])
    rows.append(("commands through an Executor, until all have their results", done, "30/s `FluxExecutor`"))
    with mpiflux.Executor(uris[0], workers=2) as pool:
        ours = functions(pool, n)
    with ProcessPoolExecutor(2) as other:
        theirs = functions(other, n)
    rows.append(("functions in 2 workers, Executor", ours, f"ProcessPoolExecutor: {theirs}"))
    print(table(rows, ("what", "mpiflux", "Flux 0.88, or as it says")), flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--steer"]:
        steer(float(sys.argv[2]))
        return
    scale = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    print(machine(), flush=True)
    with Scratch() as scratch:
        mpiexec = launcher(RANKS)[0]
        command = [sys.executable, "-m", "mpiflux", "start", "--run-dir", os.path.join(scratch, "run"),
                   "--hierarchy", "node,core", "--cores-per-node", "2", "--", sys.executable,
                   os.path.abspath(__file__), "--steer", str(scale)]
        argv = [mpiexec]
        for rank in range(RANKS):
            # every rank a node, as far as it is asked
            argv += [":"] * bool(rank) + ["-n", "1", "env", f"SLURMD_NODENAME=node{rank}", "SLURM_STEP_ID=0",
                                              f"SLURM_PROCID={rank}", *command]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        subprocess.run(argv, check=True, env={**os.environ, "PYTHONPATH": path}, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
