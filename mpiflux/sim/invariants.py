"""What must hold at every step of a run, read from messages and starts: no scheduler is asked what it thinks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from mpiflux.model import messages as m
from mpiflux.model.apart import executor_of, is_apart
from mpiflux.model.jobspec import JobGroup
from mpiflux.model.records import FLAG_CRASHED, PACK, SIZE
from mpiflux.model.states import Result
from mpiflux.overlay import address
from mpiflux.sched.dealing import Dealing
from mpiflux.sched.leasing import Leasing
from mpiflux.sim.cluster import Cluster
from mpiflux.sim.journal import Saved, ended
from mpiflux.sim.machine import Machine
from mpiflux.sim.watch import Watcher
from mpiflux.store.jobtable import RECORD


class Violation(AssertionError):
    """Something happened that never may."""


Resource = tuple[str, int, int]
"""(``core`` or ``gpu``, node, number)."""


def resources_of(r: m.ResourceSet) -> list[Resource]:
    return [(kind, share.node, number) for share in r.shares
            for kind, numbers in (("core", share.cores), ("gpu", share.gpus)) for number in numbers]


MEMORY = "bytes of memory"
"""Counted with what has a name."""


class _Holders:
    """Who has which core and GPU, and how much of what has a name."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.totals: dict[tuple[int, str], int] = {}
        """(node, name) to what there is."""
        self.used: Counter[tuple[int, str]] = Counter()
        self.named: dict[int, list[tuple[tuple[int, str], int]]] = {}
        self.holder: dict[Resource, int] = {}
        self.held: dict[int, list[Resource]] = {}

    def take(self, lease: int, r: m.ResourceSet) -> None:
        mine = resources_of(r)
        for resource in mine:
            other = self.holder.setdefault(resource, lease)
            if other != lease or lease in self.held:
                raise Violation(f"{' '.join(map(str, resource))} {self.what} lease {lease:#x} and {other:#x}")
        self.held[lease] = mine
        amounts = self.named[lease] = [((share.node, name), n) for share in r.shares
                                       for name, n in (*share.named, (MEMORY, share.memory)) if n]
        for key, amount in amounts:
            self.used[key] += amount
            if self.totals and self.used[key] > self.totals[key]:
                raise Violation(f"{self.used[key]} of {self.totals[key]} {key[1]} of node {key[0]} {self.what} leases")

    def drop(self, lease: int) -> None:
        for key, amount in self.named.pop(lease, ()):
            self.used[key] -= amount
        for resource in self.held.pop(lease, ()):
            del self.holder[resource]


class Invariants(Watcher):
    """Raises Violation at the step where something goes wrong; :meth:`finish` looks at what is left at the end."""

    def __init__(self) -> None:
        self.granted = _Holders("given to")
        """As the schedulers see it: from the grant until the news of the lease's end."""
        self.used = _Holders("used by")
        """As the executors do it."""
        self.lease_of: dict[int, set[int]] = {}
        self.granted_to: dict[int, dict[int, None]] = {}
        """Executor to the leases that schedulers gave it."""
        self.first_id: dict[int, int] = {}
        self.groups: dict[str, JobGroup] = {}
        self.cancelled: dict[int, set[int]] = {}
        """Scheduler to the jobs that it was told to cancel."""
        self.held: dict[int, set[int]] = {}
        """Scheduler to the jobs that it was told to hold."""
        self.running: dict[int, tuple[int, int]] = {}
        """Job to (executor, attempt)."""
        self.tried: set[tuple[int, ...]] = set()
        """(job, attempt), and (job, attempt, part) of jobs that span nodes."""
        self.parts: dict[int, dict[int, tuple[int, int]]] = {}
        """Job to its parts, each with (executor, attempt)."""
        self.finals: dict[int, int] = {}
        self.ended: dict[tuple[int, int], int] = {}
        """How attempts really ended."""
        self.starts = self.steps = self.deaths = 0
        self.crashed: dict[int, int] = {}
        """How often a job had begun when what ran it died, as the master counted it; known at the end."""
        self.node_of_rank: tuple[int, ...] = ()
        self.shared: dict[str, int] = {}
        """Named resources of the whole instance."""
        self._before: set[int] = set()
        """Jobs that an earlier instance has tried."""
        self._asking: list[tuple[range, dict[str, int]]] = []

    def watch(self, machine: Machine) -> None:
        """Tell what memory and named resources there are, and who is where; without this neither is checked."""
        self.shared, self.node_of_rank = machine.consumables, machine.node_of_rank
        self.granted.totals = self.used.totals = {
            (node.index, name): amount for node in machine.nodes
            for name, amount in (*node.resources.consumables.items(), (MEMORY, node.resources.memory))}

    def _check_shared(self) -> None:
        """What runs has no more of the instance's named resources than there is."""
        used: Counter[str] = Counter()
        if self._asking:
            for job in {*self.running, *(job for job, parts in self.parts.items() if parts)}:
                for ids, amounts in self._asking:
                    if job in ids:
                        used.update(amounts)
        for name, amount in used.items():
            if amount > self.shared.get(name, amount):
                raise Violation(f"{amount} {name} are in use; there are {self.shared[name]}")

    def sent(self, src: int, dst: int, message: m.Message) -> None:
        self.steps += 1
        if isinstance(message, m.Grant):
            self.granted.take(message.lease, message.r)
            self.granted_to.setdefault(dst, {})[message.lease] = None
        elif isinstance(message, m.Declare):
            group = message.group
            if group.number not in self.first_id and group.request.consumables:
                self._asking.append((range(group.first_id, group.stop_id), dict(group.request.consumables)))
            self.first_id[group.number] = group.first_id
            self.groups[message.group.name] = message.group
        elif isinstance(message, (m.Feed, m.Submit)):
            cancelled = self.cancelled.get(src, set()) | self.held.get(src, set())
            for chunk in message.chunks if cancelled else ():
                first = self.first_id[chunk.group]
                for job in range(first + chunk.start, first + chunk.stop, chunk.step):
                    if job in cancelled:
                        raise Violation(f"scheduler {src} sent job {job} on to {dst} after it was told to cancel or "
                                        "to hold it")

    def received(self, dst: int, src: int, message: m.Message) -> None:
        self.steps += 1
        if isinstance(message, m.Report):
            for lease in message.idle:
                self._over(src, lease)
        elif isinstance(message, m.Cancel):
            self.cancelled.setdefault(dst, set()).update(message.ids)
        elif isinstance(message, m.Urgency):
            first = self.first_id[message.group]
            jobs, held = range(first + message.start, first + message.stop), self.held.setdefault(dst, set())
            held.difference_update(jobs) if message.urgency else held.update(jobs)
        elif isinstance(message, m.ExecutorLost):
            # a lease's upper half is the scheduler that gave it
            for lease in [one for one in self.granted_to.get(src, ()) if one >> 32 == dst]:
                self._over(src, lease)

    def _over(self, executor: int, lease: int) -> None:
        self.granted.drop(lease)
        self.granted_to.get(executor, {}).pop(lease, None)

    def leased(self, executor: int, lease: int, r: m.ResourceSet) -> None:
        self.used.take(lease, r)
        self.lease_of.setdefault(executor, set()).add(lease)

    def released(self, executor: int, lease: int) -> None:
        self.used.drop(lease)
        self.lease_of[executor].discard(lease)

    def job_started(self, executor: int, lease: int, job: int, attempt: int) -> None:
        self.steps += 1
        self.starts += 1
        self._check_leaders(job)
        self._check_node(executor, job)
        if is_apart(executor) and any(where == executor for where, _ in self.running.values()):
            raise Violation(f"job {job} is to be tried alone, and starts beside another")
        if job in self.running or self.parts.get(job):
            raise Violation(f"job {job} started as attempt {attempt} while "
                            f"{self.running.get(job) or self.parts[job]} runs")
        if (job, attempt) in self.tried:
            raise Violation(f"attempt {attempt} of job {job} started twice")
        if job in self.finals:
            raise Violation(f"job {job} started after its end was recorded")
        if lease not in self.lease_of.get(executor, ()):
            raise Violation(f"job {job} started without a lease")
        self.running[job] = (executor, attempt)
        self.tried.add((job, attempt))
        self._check_shared()

    def job_ended(self, executor: int, job: int, attempt: int, result: int) -> None:
        if self.running.pop(job, None) != (executor, attempt):
            raise Violation(f"job {job} ended and did not run")
        self.ended[job, attempt] = result

    def part_started(self, executor: int, part: m.Part) -> None:
        self.steps += 1
        self.starts += 1
        others = self.parts.setdefault(part.id, {})
        if part.id in self.running or any(attempt != part.attempt for _, attempt in others.values()):
            raise Violation(f"job {part.id} started part {part.part} of attempt {part.attempt} while "
                            f"{self.running.get(part.id) or others} runs")
        if (part.id, part.attempt, part.part) in self.tried or (part.id, part.attempt) in self.tried:
            raise Violation(f"part {part.part} of attempt {part.attempt} of job {part.id} started twice")
        if part.id in self.finals:
            raise Violation(f"job {part.id} started after its end was recorded")
        others[part.part] = (executor, part.attempt)
        self.tried.add((part.id, part.attempt, part.part))
        self._check_shared()

    def part_ended(self, executor: int, part: m.Part) -> None:
        if self.parts[part.id].pop(part.part, None) != (executor, part.attempt):
            raise Violation(f"part {part.part} of job {part.id} ended and did not run")

    def executor_died(self, executor: int) -> None:
        self.deaths += 1
        for lease in self.lease_of.pop(executor, ()):
            self.used.drop(lease)
        for job in [job for job, (where, _) in self.running.items() if where == executor]:
            del self.running[job]
        for parts in self.parts.values():
            for number in [number for number, (where, _) in parts.items() if where == executor]:
                del parts[number]

    def retired(self, schedulers: set[int], executors: tuple[int, ...]) -> None:
        # a lease's upper half is the scheduler that gave it
        for lease in [lease for lease in self.granted.held if lease >> 32 in schedulers]:
            self.granted.drop(lease)
        for executor in [one for one in self.granted_to if executor_of(one) in executors]:
            for lease in self.granted_to.pop(executor):
                self.granted.drop(lease)

    def final(self, job: int, result: int) -> None:
        if job in self.finals:
            raise Violation(f"the end of job {job} was recorded twice: {self.finals[job]} and {result}")
        self.finals[job] = result

    def _check_leaders(self, job: int) -> None:
        """A job that follows another element by element starts after it, and only if that ended as it had to."""
        for group in self.groups.values():
            if not group.first_id <= job < group.stop_id:
                continue
            for dependency in group.after:
                if dependency.kind == "each":
                    leader = self.groups[dependency.group].first_id + job - group.first_id
                    result = self.finals.get(leader)
                    if result is None or (dependency.on != "any" and (
                            (result == Result.COMPLETED) != (dependency.on == "ok"))):
                        raise Violation(f"job {job} started, and job {leader} before it is at {result}")

    def _check_node(self, executor: int, job: int) -> None:
        """A job that is for one node is there."""
        for group in self.groups.values() if self.node_of_rank else ():
            if group.on and group.first_id <= job < group.stop_id:
                there = self.node_of_rank[address.rank_of_executor(executor)]
                if there != group.node_of(job - group.first_id):
                    raise Violation(f"job {job} is for node {group.node_of(job - group.first_id)} and runs on {there}")

    # -- from one instance to the next -----------------------------------------------------------------------------

    def go_on(self, saved: Saved) -> Invariants:
        """The instance has died and left this; who watches over the next one. Raises Violation when something was
        built on what is not there any more, or says something else."""
        committed = {job: result for batch in ended(saved.groups, saved.records) for job, result in batch.items()}
        for job, result in committed.items():
            if self.finals.get(job) != result:
                raise Violation(f"job {job} is in the journal as {result}, and ended as {self.finals.get(job)}")
        jobs = {one[0] for one in self.tried} - self._before
        for group in saved.groups:
            for job in jobs.intersection(range(group.first_id, group.stop_id)):
                for leader in self._leaders(group, job):
                    if leader not in committed:
                        raise Violation(f"job {job} was started, and the end of job {leader} before it is lost")
        following = Invariants()
        following.finals = committed
        for entry in saved.entries:
            for record in np.frombuffer(entry.data, RECORD):
                attempt = int(record["id"]), int(record["attempt"])
                following.tried.add(attempt)
                if entry.ended and attempt in self.ended:
                    following.ended[attempt] = self.ended[attempt]
        following._before = {one[0] for one in following.tried}
        return following

    def _leaders(self, group: JobGroup, job: int) -> Iterable[int]:
        for dependency in group.after:
            if dependency.kind == "each":
                yield self.groups[dependency.group].first_id + job - group.first_id
            elif dependency.group:
                leader = self.groups[dependency.group]
                yield from range(leader.first_id, leader.stop_id)

    # -- at the end ----------------------------------------------------------------------------------------------

    def finish(self, cluster: Cluster) -> None:
        """Nothing is left anywhere, and what was recorded is what happened. Raises Violation."""
        stopped = cluster.master.stopping
        left: list[tuple[str, object]] = [
            ("running", self.running), ("running in parts", [job for job, parts in self.parts.items() if parts]),
            ("leases in use", self.used.held), ("leases given", self.granted.held)]
        for number, executor in cluster.executors.items():
            if address.rank_of_executor(number) not in cluster.regrouping.living:
                continue
            left += [(f"executor {number:#x}", executor.leases),
                     (f"backlog of {number:#x}", any(executor.backlog.values()))]
        if not stopped:
            for scheduler in cluster.schedulers:
                left += _left_in(scheduler.number, scheduler.below)
                left.append((f"queue of {scheduler.number}", scheduler.queue.jobs or scheduler.queue.held
                             or list(scheduler.queue)))
            lost = set(range(1, len(cluster.master.table) + 1)) - set(self.finals)
            left.append(("jobs never ended", sorted(lost)))
        for what, found in left:
            if found:
                raise Violation(f"{what} at the end: {found}\n{cluster.dump()}")
        self._check_records(cluster)

    def _check_records(self, cluster: Cluster) -> None:
        """The last record of each job is of its last attempt, and says what that did."""
        last: dict[int, tuple[int, int]] = {}
        for data in cluster.master.records:
            for at in range(0, len(data), SIZE):
                job, attempt, result, flags, *_ = PACK.unpack_from(data, at)
                if flags & FLAG_CRASHED:
                    self.crashed[job] = self.crashed.get(job, 0) + 1
                elif (job, attempt) in self.ended and result not in (self.ended[job, attempt], Result.LOST):
                    raise Violation(f"job {job}, attempt {attempt} ended {self.ended[job, attempt]}, recorded {result}")
                if last.get(job, (0, 0))[0] <= attempt:
                    last[job] = (attempt, result)
        for job, result in self.finals.items():
            if last[job][1] != result:
                raise Violation(f"job {job} was recorded as {result}; its last record is {last[job]}")


def _left_in(number: int, below: object) -> list[tuple[str, object]]:
    if isinstance(below, Dealing):
        return [(f"{what} of {number} at child {child.endpoint}", value) for child in below.children.values()
                for what, value in (("outstanding", child.outstanding), ("held", child.held))] + [
                    (f"metered of {number}", below._meter is not None and below._meter.free != below._meter.totals)]
    assert isinstance(below, Leasing)
    pool = below.pool
    return [(f"taken cores of {number}", any(node.busy_cores for node in pool.states)),
            (f"taken GPUs of {number}", any(node.busy_gpus for node in pool.states)),
            (f"cores neither free nor lost of {number}", [
                node.spec.node for node in pool.states
                if node.cores.bit_count() + node.away_cores.bit_count() != len(node.spec.cores)]),
            (f"taken of what has a name of {number}", [
                node.named for node in pool.states if node.up and any(
                    node.named.get(name, 0) + node.away_named.get(name, 0) != amount
                    for name, amount in node.spec.consumables.items())]),
            (f"taken memory of {number}", [
                node.memory for node in pool.states if node.up and node.memory + node.away_memory != node.spec.memory]),
            (f"leases of {number}", below._leases),
            (f"jobs held of {number}", below.holding(frozenset()))]
