"""A node's own cost: supervisors that run processes which end at once, beside a bare C ``posix_spawn`` loop.

Claim: with output captured, every job bound, and a record of each, supervisors start at least 0.9 as many processes a
second as a C loop that captures nothing. The two take turns, so that what else the machine does hits both. ``own`` is
user and system CPU of all supervisors, without that of the jobs; the vfork itself is in it, as it is in the C loop's.

    python tests/benchmarks/bench_node.py [--jobs 8000] [--rounds 3] [--supervisors N] [-- COMMAND...]
"""

from __future__ import annotations

import argparse
import os
import select
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from mpiflux.node.zygote import Setup, fork_zygote

ZYGOTE = fork_zygote()  # as a rank does it: before anything else is imported

from mpiflux.model import messages as m  # noqa: E402
from mpiflux.model.jobspec import JobGroup  # noqa: E402
from mpiflux.node.executors import Executors  # noqa: E402

AHEAD = 128


def cpu(pid: int) -> tuple[float, float]:
    """User and system seconds of a process."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    tick = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / tick, int(fields[12]) / tick


class Node:
    """One rank's worth of supervisors, driven as a leaf scheduler drives them."""

    def __init__(self, count: int) -> None:
        cpus = sorted(os.sched_getaffinity(0))
        self.cpus = tuple((cpus[i % len(cpus)],) for i in range(count))
        offset = time.time() - time.monotonic()
        self.executors = Executors(ZYGOTE, [Setup(n, "here", dict(os.environb), self.cpus, (), offset)
                                            for n in range(count)], self.deliver)
        self.leases = 0
        self.left: dict[int, int] = {}
        self.groups = 0
        self.next = self.total = 0

    def deliver(self, _dst: int, src: int, message: m.Message) -> None:
        if not isinstance(message, m.Report):
            return
        for _shape, _group, n, _seconds in message.done:
            self.left[src] -= n
        for _ in message.idle:
            self.grant(src)

    def grant(self, number: int) -> None:
        if self.left[number] or self.next < self.total:
            self.leases += 1
            share = m.NodeShare(0, (number,))
            self.executors.post(number, 0, m.Grant(self.leases, 0, 0, m.ResourceSet((share,))))

    def feed(self, number: int) -> None:
        n = min(AHEAD - self.left[number], self.total - self.next)
        if n > 0:
            chunk = m.Chunk(self.groups, self.next, self.next + n)
            self.next += n
            self.left[number] += n
            self.executors.post(number, 0, m.Feed(0, (chunk,)))

    def run(self, jobs: int, command: list[str]) -> tuple[float, float, float]:
        """Jobs a second, and user and system microseconds a job of all supervisors."""
        self.groups += 1
        self.next, self.total = 0, jobs
        group = JobGroup(number=self.groups, name="bench", first_id=1, count=jobs, command=tuple(command))
        fds = self.executors.filenos()
        before = [cpu(pid) for pid in self.executors.pids().values()]
        begin = time.perf_counter()
        for number in fds.values():
            self.left[number] = 0
            self.executors.post(number, 0, m.Declare(group))
            self.feed(number)
            self.grant(number)
        poll = select.poll()
        for fd in fds:
            poll.register(fd, select.POLLIN)
        while self.next < self.total or any(self.left.values()):
            self.executors.flush()
            for fd, _ in poll.poll(1000):
                self.executors.receive(fds[fd])
                self.feed(fds[fd])
        seconds = time.perf_counter() - begin
        after = [cpu(pid) for pid in self.executors.pids().values()]
        user, system = (sum(b[i] - a[i] for a, b in zip(before, after, strict=True)) / jobs * 1e6 for i in (0, 1))
        return jobs / seconds, user, system


def build(directory: str) -> str | None:
    """The C loop, compiled; None where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    program = os.path.join(directory, "spawn_loop")
    subprocess.run([compiler, "-O2", "-o", program, str(Path(__file__).with_suffix("").parent / "spawn_loop.c")],
                   check=True)
    return program


def loop(program: str, jobs: int, width: int, command: list[str]) -> tuple[float, float, float]:
    """Processes a second of the C loop, its own and its children's microseconds of CPU a process."""
    begin = time.perf_counter()
    out = subprocess.run([program, str(jobs), str(width), *command], check=True, capture_output=True, text=True).stdout
    rate = jobs / (time.perf_counter() - begin)
    own, children = map(float, out.split()[-2:])
    return rate, own, children


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--jobs", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--supervisors", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("command", nargs="*", default=[shutil.which("true") or "/bin/true"])
    options = parser.parse_args()
    node = Node(options.supervisors)
    ratios = []
    with tempfile.TemporaryDirectory() as directory:
        program = build(directory)
        for _ in range(options.rounds):
            rate, user, system = node.run(options.jobs, options.command)
            print(f"supervisors {rate:7.0f} jobs/s   own {user + system:6.1f} us a job ({user:.0f} user,"
                  f" {system:.0f} system)")
            if program is not None:
                limit, own, children = loop(program, options.jobs, options.supervisors, options.command)
                ratios.append(rate / limit)
                print(f"C loop      {limit:7.0f} jobs/s   own {own:6.1f} us a job, its children {children:.0f}")
    if ratios:
        print(f"ratio       {statistics.median(ratios):7.2f} of the C loop's rate (median of {len(ratios)})")
    for number, pid in node.executors.pids().items():
        with open(f"/proc/{pid}/status") as file:
            rss = next(line.split()[1] for line in file if line.startswith("VmRSS"))
        print(f"supervisor {number}: {int(rss) / 1024:.1f} MB resident")
    node.executors.close()


if __name__ == "__main__":
    main()
