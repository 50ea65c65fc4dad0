"""A node's real processes without a scheduler: a zygote, its supervisors, and what they report about real jobs."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from mpiflux.model import messages as m
from mpiflux.model.jobspec import JobGroup
from mpiflux.model.records import FIELDS, PACK
from mpiflux.model.states import Result
from mpiflux.node.executors import Executors
from mpiflux.node.zygote import Setup, fork_zygote

OWNER = 7
"""The endpoint that plays the scheduler."""
_SAME = ("id", "attempt", "flags", "returncode", "t_start", "t_finish", "utime", "stime", "maxrss", "pid", "tasks")
LIMIT = 20.0
"""Seconds that anything may take."""


@dataclass(frozen=True)
class Ended:
    """How one attempt ended."""

    id: int
    attempt: int
    result: Result
    flags: int
    returncode: int
    stdout: bytes
    stderr: bytes
    reason: str
    t_start: float
    t_finish: float
    utime: float
    stime: float
    maxrss: int
    """KiB."""
    pid: int
    tasks: int

    @property
    def seconds(self) -> float:
        return self.t_finish - self.t_start


class Node:
    """Supervisors of one rank, and as much of a scheduler as it takes to give again what came back unstarted.

    ``cpus`` are the CPUs of each core. Supervisors have numbers from 0; orders go to number 0 unless ``to`` says
    another.
    """

    def __init__(self, cpus: Sequence[Sequence[int]] | None = None, supervisors: int = 1,
                 environ: dict[str, str] | None = None, gpus: tuple[tuple[int, str, str], ...] = (),
                 offset: float | None = None) -> None:
        usable = sorted(os.sched_getaffinity(0))
        self.cpus = tuple(tuple(core) for core in cpus) if cpus is not None else tuple((cpu,) for cpu in usable)
        self.ended: list[Ended] = []
        self.started: list[tuple[int, int]] = []
        """(job id, attempt) of attempts that were reported as running."""
        self.idle: list[int] = []
        self.returned: list[tuple[int, m.Chunk]] = []
        self.feed_again = True
        """Whether what comes back unstarted is fed again."""
        self.lost: list[int] = []
        self.stopped: list[int] = []
        self.others: list[m.Message] = []
        self._pieces: dict[tuple[int, int, int], list[tuple[int, bytes]]] = {}
        self._groups = self._leases = 0
        self._granted: dict[int, tuple[int, m.Grant]] = {}
        self._free: set[int] = set()
        self._back: dict[tuple[int, int], list[m.Chunk]] = {}
        self._next_id = 1
        self.zygote = fork_zygote()
        offset = time.time() - time.monotonic() if offset is None else offset
        self.executors = Executors(
            self.zygote,
            [Setup(n, "here", {os.fsencode(k): os.fsencode(v) for k, v in (environ or os.environ).items()}, self.cpus,
                   gpus, offset) for n in range(supervisors)],
            self._deliver)

    def __enter__(self) -> Node:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.executors.close()

    # -- orders --------------------------------------------------------------------------------------------------

    def declare(self, *command: str, to: int = 0, count: int = 1, output_limit: int = 16 << 20,
                **keys: Any) -> JobGroup:
        """A new job group; ``keys`` are those of :class:`JobGroup`."""
        self._groups += 1
        group = JobGroup(number=self._groups, name=keys.pop("name", "job"), first_id=self._next_id, count=count,
                         command=command, **keys)
        self._next_id += count
        self.tell(group, to, output_limit)
        return group

    def tell(self, group: JobGroup, to: int, output_limit: int = 16 << 20) -> None:
        """Declare a group to one more supervisor."""
        self.post(m.Declare(group, "", output_limit), to)

    def grant(self, *cores: int, to: int = 0, shape: int = 0, tasks: int = 1, gpus: Sequence[int] = ()) -> int:
        """A lease on some cores; returns its number."""
        self._leases += 1
        share = m.NodeShare(0, tuple(cores or (0,)), tuple(gpus), 0, tasks)
        self._granted[self._leases] = to, m.Grant(self._leases, shape, 0, m.ResourceSet((share,)))
        self.post(self._granted[self._leases][1], to)
        return self._leases

    def feed(self, group: JobGroup, start: int = 0, stop: int | None = None, *, to: int = 0, shape: int = 0,
             attempt: int = 1) -> None:
        stop = group.count if stop is None else stop
        self.post(m.Feed(shape, (m.Chunk(group.number, start, stop, 1, attempt),)), to)

    def post(self, message: m.Message, to: int = 0) -> None:
        self.executors.post(to, OWNER, message)

    # -- what comes back -----------------------------------------------------------------------------------------

    def _deliver(self, dst: int, src: int, message: m.Message) -> None:
        if isinstance(message, m.Report):
            self._report(message, src)
        elif isinstance(message, m.Output):
            key = (message.id, message.attempt, message.stream)
            self._pieces.setdefault(key, []).append((message.offset, message.data))
        elif isinstance(message, m.ExecutorLost):
            self.lost.append(message.executor)
        elif isinstance(message, m.Stopped):
            self.stopped.append(src)
        else:
            self.others.append(message)

    def _report(self, report: m.Report, src: int) -> None:
        names = [name for name, _ in FIELDS]
        at = 0
        for values in PACK.iter_unpack(report.records):
            fields = dict(zip(names, values, strict=True))
            output = []
            for stream, name in ((1, "out_len"), (2, "err_len")):
                before = b""
                for offset, data in self._pieces.pop((fields["id"], fields["attempt"], stream), ()):
                    assert offset == len(before), "a piece of output is missing"
                    before += data
                output.append(before + report.output[at:at + fields[name]])
                at += fields[name]
            same = {name: fields[name] for name in _SAME}
            self.ended.append(Ended(result=Result(fields["result"]), stdout=output[0], stderr=output[1],
                                    reason=report.reasons.get(fields["id"], ""), **same))
        assert at == len(report.output)
        self.started += [values[:2] for values in PACK.iter_unpack(report.started)]
        self.idle += report.idle
        self.returned += report.returned
        if not self.feed_again:
            return
        for shape, chunk in report.returned:
            self._back.setdefault((src, shape), []).append(chunk)
        self._free.update(report.idle)
        for lease in list(self._free):
            to, grant = self._granted[lease]
            chunks = self._back.pop((to, grant.shape), None)
            if chunks:
                self._free.discard(lease)
                self.post(m.Feed(grant.shape, tuple(chunks)), to)
                self.post(grant, to)

    def turn(self, seconds: float) -> None:
        """Send what is to be sent, and take what comes within ``seconds``."""
        self.executors.flush()
        self.executors.retry()
        fds = self.executors.filenos()
        poll = select.poll()
        for fd in fds:
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(1000 * min(seconds, 0.01 if self.executors.pending() else seconds)):
            self.executors.receive(fds[fd])

    def until(self, condition: Callable[[], object], limit: float = LIMIT) -> None:
        """Run until it holds; fails after ``limit`` seconds."""
        deadline = time.monotonic() + limit
        while not condition():
            left = deadline - time.monotonic()
            assert left > 0, f"nothing came; ended: {self.ended[-3:]}"
            self.turn(min(left, 0.05))

    def wait(self, count: int = 1, limit: float = LIMIT) -> list[Ended]:
        """Until ``count`` attempts have ended in all; they are, in the order of their ids."""
        self.until(lambda: len(self.ended) >= count, limit)
        return sorted(self.ended, key=lambda ended: (ended.id, ended.attempt))

    def begin(self, *command: str, cores: Sequence[int] = (0,), tasks: int = 1, shape: int = 0,
              **keys: Any) -> JobGroup:
        """Start one job and do not wait for it."""
        group = self.declare(*command, **keys)
        self.grant(*cores, tasks=tasks, shape=shape)
        self.feed(group, shape=shape)
        return group

    def run(self, *command: str, cores: Sequence[int] = (0,), tasks: int = 1, gpus: Sequence[int] = (),
            limit: float = LIMIT, **keys: Any) -> Ended:
        """One job to its end."""
        before = len(self.ended)
        group = self.declare(*command, **keys)
        self.grant(*cores, tasks=tasks, gpus=gpus)
        self.feed(group)
        self.until(lambda: len(self.ended) > before, limit)
        return self.ended[-1]

    def sh(self, text: str, **keys: Any) -> Ended:
        """:meth:`run` by a shell."""
        return self.run(text.replace("{", "{{").replace("}", "}}"), shell=True, **keys)

    def pids(self) -> list[int]:
        """The supervisors."""
        return list(self.executors.pids().values())
