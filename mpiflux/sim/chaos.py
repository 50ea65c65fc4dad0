"""Random instances under random trouble, each made whole from one seed: it decides the machine, the tree, the jobs,
what they do, when messages arrive, who dies, who is slow, and what the user cancels."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import msgspec

from mpiflux.model.jobspec import (
    Dependency,
    HierarchySpec,
    JobGroup,
    LevelSpec,
    NestedSpec,
    PolicySpec,
    Request,
    Workflow,
)
from mpiflux.model.retry import Retry
from mpiflux.model.states import Result
from mpiflux.overlay.plan import explain_misfits, make_plan
from mpiflux.sim.cluster import START, Cluster
from mpiflux.sim.costs import Costs
from mpiflux.sim.engine import Delay
from mpiflux.sim.executor import Outcome
from mpiflux.sim.invariants import Invariants
from mpiflux.sim.machine import Machine, NodeType
from mpiflux.sim.trouble import PAUSE, Site, Trouble, deaths, moved, salvage, trouble

MOST_EVENTS = 400_000
"""A scenario that needs more than this runs in circles."""


@dataclass
class Scenario:
    """What a seed stands for."""

    seed: int
    machine: Machine
    workflow: Workflow
    costs: Costs
    faults: list[tuple[float, str, object]] = field(default_factory=list)
    """(seconds after the start, what, whom)."""
    site: Site = field(kw_only=True)
    trouble: Trouble = field(default_factory=Trouble)
    deaths: list[tuple[float, int]] = field(default_factory=list)
    """When rank 0 dies, by instance: (after so many seconds, after so many events)."""


class RandomBehaviour:
    """The same job attempt does the same in every run of a seed, whenever it starts."""

    def __init__(self, seed: int, length: float, fail: float, stubborn: float, poison: float = 0.0) -> None:
        self._seed, self._length, self._fail, self._stubborn = seed, length, fail, stubborn
        self._poison = poison
        """Part of the jobs that take their supervisor down."""

    def outcome(self, group: JobGroup, index: int, attempt: int) -> Outcome:
        rng = random.Random(f"{self._seed}/{group.number}/{index}/{attempt}")
        seconds = 0.0 if rng.random() < 0.3 else rng.expovariate(1 / self._length) * rng.choice((0.01, 0.3, 1, 5))
        failed = rng.random() < self._fail
        if self._poison and random.Random(f"{self._seed}/{group.number}/{index}").random() < self._poison:
            return Outcome(min(seconds, 1.0), poison=True)
        return Outcome(seconds, Result.FAILED if failed else Result.COMPLETED, 1 if failed else 0,
                       rng.random() < self._stubborn)


def scenario(seed: int) -> Scenario:
    """Everything that ``seed`` decides before the run."""
    rng = random.Random(seed)
    types = tuple(NodeType(rng.choice((1, 1, 2, 3, 5)), rng.choice((1, 2, 3, 4, 8, 12)), rng.choice((0, 0, 1, 2, 4)))
                  for _ in range(rng.choice((1, 1, 2))))
    sized = random.Random(f"memory/{seed}")
    if sized.random() < 0.4:
        types = tuple(replace(one, memory=sized.choice((7, 1000, 1 << 30))) for one in types)
    site = Site(types, rng.choice((1, 1, 1, 2, 3)))
    named = random.Random(f"named/{seed}")
    if named.random() < 0.4:
        site = replace(site, instance={"license": named.choice((1, 3, 20))}, each_node={"bb": named.choice((5, 100))})
    machine = site.machine()
    workflow = _workflow(rng, machine, types)
    if types[0].memory:
        workflow = _fitting(_large(sized, workflow, min(one.memory for one in types)), machine)
    if machine.consumables:
        workflow = _fitting(_asking(named, workflow), machine)
    each = random.Random(f"per node/{seed}")
    if each.random() < 0.3:
        workflow = _fitting(_per_node(each, workflow, machine, types), machine)
    scale = rng.choice((0.0, 1.0, 1.0, 20.0))
    costs = Costs(turn=2e-5 * scale, batch=1e-5 * scale, message=2e-6 * scale, settle=5e-6 * scale, grant=1e-5 * scale,
                  master_report=5e-5 * scale, spawn=1e-4 * scale, reap=2e-5 * scale, process=7e-4 * scale,
                  commit=rng.choice((0.0, 0.05)), poll=2e-4 * scale, poll_longest=5e-3 * scale)
    return Scenario(seed, machine, workflow, costs, _faults(rng, random.Random(f"ranks/{seed}"), machine, workflow),
                    site=site, trouble=trouble(random.Random(f"cuts/{seed}"), machine.ranks),
                    deaths=deaths(random.Random(f"rank 0/{seed}")))


def _workflow(rng: random.Random, machine: Machine, types: tuple[NodeType, ...]) -> Workflow:
    hierarchy = _hierarchy(rng, machine)
    groups: list[JobGroup] = []
    first = 1
    leaf_cores = 1 if hierarchy.levels and hierarchy.levels[-1].by == "core" else min(one.cores for one in types)
    for number in range(rng.choice((1, 1, 2, 3, 4, 6))):
        count = rng.choice((1, 2, 7, 30, 100, 300))
        gpus = rng.choice((0, 0, 0, 1))
        request = Request(cores=rng.choice((1, 1, 1, 2, leaf_cores, 2 * leaf_cores)), gpus=gpus,
                          tasks=rng.choice((1, 1, 1, 1, 2, 5)), exclusive=rng.random() < 0.05,
                          nodes=rng.choice((0, 0, 0, 0, 0, 0, 1, 2, 3)),
                          layout=rng.choice(("pack", "pack", "spread")))
        after = tuple(Dependency(f"g{other}", rng.choice(("ok", "any", "any", "not_ok")))
                      for other in range(number) if rng.random() < 0.25)
        if number and rng.random() < 0.4:
            leader = rng.choice(groups)
            count = leader.count
            after = (*[one for one in after if one.group != leader.name],
                     Dependency(leader.name, "each", on=rng.choice(("ok", "any", "any", "not_ok"))))
        begin_after = rng.choice((0.0,) * 8 + (0.3, 4.0))
        if begin_after:
            after = (*after, Dependency("", "begin"))
        groups.append(JobGroup(
            number=number, name=f"g{number}", first_id=first, count=count, request=request, begin_after=begin_after,
            retries=rng.choice((0, 0, 1, 3)), time_limit=rng.choice((0.0, 0.0, 0.05, 2.0)),
            retry=rng.choice((Retry(), Retry(), Retry(backoff=0.5, max=3.0), Retry(every=False, codes=((2, 9),)))),
            priority=rng.choice((16, 16, 8, 31)), after=after))
        first += count
    policy = rng.choice((PolicySpec("fcfs", {"queue_depth": rng.choice((1, 2, 32))}), PolicySpec("easy"),
                         PolicySpec("conservative"), PolicySpec("priority")))
    workflow = Workflow(name=f"seed-{rng.random()}", hierarchy=hierarchy, policy=policy, groups=tuple(groups))
    return _fitting(workflow, machine)


def _asking(rng: random.Random, workflow: Workflow) -> Workflow:
    """Some of its jobs ask for named resources."""
    def asks() -> dict[str, int]:
        return {name: rng.choice(amounts) for name, amounts in (("license", (1, 1, 2, 3)), ("bb", (1, 2, 5, 30)))
                if rng.random() < 0.3}

    return msgspec.structs.replace(workflow, groups=tuple(
        msgspec.structs.replace(group, request=msgspec.structs.replace(group.request, consumables=asks()))
        for group in workflow.groups))


def _large(rng: random.Random, workflow: Workflow, most: int) -> Workflow:
    """Some of its jobs ask for memory, of which a task gets ``most`` bytes at most."""
    return msgspec.structs.replace(workflow, groups=tuple(
        msgspec.structs.replace(group, request=msgspec.structs.replace(
            group.request, memory=rng.choice((0, 0, 1, most // 10, most // 2, most))))
        for group in workflow.groups))


def _per_node(rng: random.Random, workflow: Workflow, machine: Machine, types: tuple[NodeType, ...]) -> Workflow:
    """Some of its groups are once or a few times on every node."""
    cores, memory = min(one.cores for one in types), min(one.memory for one in types)
    followed = {dependency.group for group in workflow.groups for dependency in group.after
                if dependency.kind == "each"}
    nodes = tuple(node.index for node in machine.nodes)
    groups: list[JobGroup] = []
    first = 1
    for group in workflow.groups:
        # whoever follows it element by element has as many
        free = group.name not in followed and all(dependency.kind != "each" for dependency in group.after)
        if free and rng.random() < 0.6:
            request = Request(
                per_node=True, cores=rng.choice((0, 0, 1, max(1, cores - 1), cores)), exclusive=rng.random() < 0.1,
                memory=rng.choice((0, 1, memory // 2, memory - memory // 10, memory)) if memory else 0,
                consumables=group.request.consumables)
            group = msgspec.structs.replace(group, request=request, on=nodes,
                                            count=len(nodes) * rng.choice((1, 1, 2, 7, 20)))
        groups.append(msgspec.structs.replace(group, first_id=first))
        first += group.count
    return msgspec.structs.replace(workflow, groups=tuple(groups))


def _fitting(workflow: Workflow, machine: Machine) -> Workflow:
    """Jobs that the whole machine cannot hold become jobs of one core, as a run would refuse them."""
    plan = make_plan(machine.nodes, workflow.hierarchy, workflow.policy, machine.consumables)
    groups = tuple(
        group if not explain_misfits(plan, (group,)) else JobGroup(
            number=group.number, name=group.name, first_id=group.first_id, count=group.count, after=group.after,
            begin_after=group.begin_after,
            retries=group.retries, retry=group.retry)
        for group in workflow.groups)
    return Workflow(name=workflow.name, hierarchy=workflow.hierarchy, policy=workflow.policy, groups=groups)


def _hierarchy(rng: random.Random, machine: Machine) -> HierarchySpec:
    distribution = rng.choice(("pull", "pull", "round_robin", "least_loaded", "by_key"))
    kind = rng.randrange(6)
    if kind == 0:
        return HierarchySpec(levels=(), distribution=distribution)
    if kind == 1:
        return HierarchySpec(levels=(LevelSpec(by="node"),), distribution=distribution)
    if kind == 2:
        return HierarchySpec(levels=(LevelSpec(by="node"), LevelSpec(by="core")), distribution=distribution)
    if kind == 3:
        widths = [rng.choice((2, 3, 4)) for _ in range(rng.choice((1, 2, 3)))]
        return HierarchySpec(levels=tuple(LevelSpec(by="width", width=width) for width in widths),
                             distribution=distribution)
    if kind == 4 and machine.cores > 2:
        share = rng.randrange(1, machine.cores)
        return HierarchySpec(nested=NestedSpec(children=(
            NestedSpec(share_cores=share, children=tuple(NestedSpec() for _ in range(rng.choice((0, 2))))),
            NestedSpec(distribution=rng.choice(("", "round_robin"))))), distribution=distribution)
    return HierarchySpec(levels=(LevelSpec(by="width", width=2), LevelSpec(by="core")), distribution=distribution)


def _faults(rng: random.Random, ranks: random.Random, machine: Machine,
            workflow: Workflow) -> list[tuple[float, str, object]]:
    faults: list[tuple[float, str, object]] = []

    def moment() -> float:
        return rng.choice((rng.uniform(0, 0.02), rng.uniform(0, 0.3), rng.uniform(0, 5), rng.uniform(0, 40)))

    executors = [number for numbers in machine.executors for number in numbers]
    if rng.random() < 0.6:
        faults += [(moment(), "kill", rng.choice(executors)) for _ in range(rng.choice((1, 2, 10, 40)))]
    if rng.random() < 0.3:
        faults += [(moment(), "stall rank", (rng.randrange(machine.ranks), rng.choice((0.05, 1.0, 30.0))))
                   for _ in range(3)]
    if rng.random() < 0.3:
        faults += [(moment(), "stall executor", (rng.choice(executors), rng.choice((0.05, 1.0, 30.0))))
                   for _ in range(3)]
    if rng.random() < 0.5:
        total = workflow.total
        for _ in range(rng.choice((1, 5))):
            low = rng.randrange(total)
            ids = tuple(range(low + 1, min(low + rng.choice((1, 10, total)), total) + 1))
            faults.append((moment(), "cancel", ids))
    if rng.random() < 0.4:
        total = workflow.total
        for _ in range(rng.choice((1, 4))):
            low = rng.randrange(total)
            high = min(low + rng.choice((1, 10, total)), total)
            faults.append((moment(), "urgency", (low + 1, high + 1, rng.choice((0, 0, 1, 16, 31)))))
        faults.append((60.0, "urgency", (1, total + 1, 16)))
    if rng.random() < 0.1:
        faults.append((moment(), "stop", rng.choice((0.0, 5.0))))
    if machine.ranks > 1 and ranks.random() < 0.5:
        faults += [(ranks.choice((ranks.uniform(0, 0.05), ranks.uniform(0, 1), ranks.uniform(0, 20))), "kill rank",
                    (ranks.randrange(1, machine.ranks), ranks.choice((0.0, 0.01, 1.0, 10.0))))
                   for _ in range(ranks.choice((1, 1, 2, machine.ranks)))]
    return sorted(faults, key=lambda fault: fault[0])


def random_delay(rng: random.Random) -> Delay:
    """Delays that let batches of different pairs overtake each other, some by a lot."""
    typical = rng.choice((0.0, 1e-5, 1e-3))
    tail = rng.choice((0.0, 0.01, 0.3))

    def delay(src: int, dst: int, now: float) -> float:
        slow = tail * rng.random() if rng.random() < 0.1 else 0.0
        return typical * rng.random() + slow

    return delay


class Played(NamedTuple):
    """How a seed ended: the last instance, and what was done and seen in all of them."""

    cluster: Cluster
    invariants: Invariants
    seen: Counter[str]


def play(seed: int, fences: bool = True) -> Played:
    """Run what the seed stands for, with all invariants watched.

    Raises Violation or Deadlock, with the seed in its text, when one does not hold, and RuntimeError when something
    refused to go on.
    """
    made = scenario(seed)
    rng = random.Random(f"run/{seed}")
    after = random.Random(f"after/{seed}")
    invariants = Invariants()
    length = rng.choice((0.001, 0.05, 1.0))
    if made.trouble.timeout:
        # some of what a rank runs outlasts the patience with it
        length = random.Random(f"length/{seed}").choice((0.05, 1.0, made.trouble.timeout))
    behaviour = RandomBehaviour(seed, length, rng.choice((0.0, 0.1, 0.5)), rng.choice((0.0, 0.3)),
                                random.Random(f"poison/{seed}").choice((0.0, 0.0, 0.0, 0.02)))
    seen: Counter[str] = Counter()
    saved, start, site, workflow = None, START, made.site, made.workflow
    delay, quantum = random_delay(rng), rng.choice((0.0, 0.0, 0.004))
    try:
        for death in [*made.deaths, None]:
            machine = made.machine if saved is None else site.machine()
            invariants.watch(machine)
            first = saved is None
            cluster = Cluster(machine, workflow, behaviour, costs=made.costs, watcher=invariants, delay=delay,
                              quantum=quantum, fences=fences, timeout=made.trouble.timeout,
                              cuts=made.trouble.cuts if first else (), saved=saved, start=start)
            if first:
                _arrange(cluster, made, seen)
            elif after.random() < 0.5:
                for when, what, whom in _faults(after, after, machine, workflow):
                    if what not in ("stop", "urgency"):
                        cluster.engine.at(start + when, _fault, cluster, what, whom, seen)
            killed = _live(cluster, start, death, seen)
            _count(cluster, seen)
            seen["attempts begun"] += invariants.starts
            if not killed:
                cluster.check_over()
                invariants.finish(cluster)
                if cluster.master.over:
                    break
            seen["rank 0 killed" if killed else "interrupted"] += 1
            saved = salvage(after, cluster, cluster.now if killed else math.inf)
            invariants = invariants.go_on(saved)
            site, workflow = moved(after, site, workflow, _hierarchy(after, site.machine()))
            start = cluster.now + PAUSE
    except (AssertionError, KeyError) as error:
        raise type(error)(f"seed {seed}: {error}") from error
    except Exception as error:
        raise RuntimeError(f"seed {seed}: {error}") from error
    return Played(cluster, invariants, seen)


def _live(cluster: Cluster, start: float, death: tuple[float, int] | None, seen: Counter[str]) -> bool:
    """Run an instance to its end, or to its death: whether that came."""
    try:
        return _dies(cluster, start, death)
    finally:
        seen["milliseconds"] += round(1000 * (cluster.master.changed - start))


def _dies(cluster: Cluster, start: float, death: tuple[float, int] | None) -> bool:
    cluster.begin()
    while cluster.engine.next_time < math.inf:
        if death is not None and not cluster.master.over and (
                cluster.engine.next_time > start + death[0] or cluster.engine.events >= death[1]):
            return True
        cluster.step()
        if cluster.engine.events > MOST_EVENTS:
            raise AssertionError(f"{MOST_EVENTS:,} events and no end\n{cluster.dump()}")
    return False


def _arrange(cluster: Cluster, made: Scenario, seen: Counter[str]) -> None:
    """Have the first instance meet with what the seed wants."""
    for when, what, whom in made.faults:
        cluster.engine.at(START + when, _fault, cluster, what, whom, seen)
    for when, rank, seconds in made.trouble.frozen:
        cluster.engine.at(START + when, _fault, cluster, "freeze", (rank, seconds), seen)
    for kind, cut in zip(made.trouble.kinds, made.trouble.cuts, strict=True):
        cluster.engine.at(cut.start, _fault, cluster, "cut: " + kind, None, seen)


def _count(cluster: Cluster, seen: Counter[str]) -> None:
    """Add what an instance has seen."""
    lives, network = cluster.lives, cluster.network
    seen["batches held back"] += network.held
    seen["batches dropped"] += network.dropped
    seen["late records refused"] += cluster.master.refused
    seen["jobs lost and run again"] += cluster.master.lost
    if lives is not None:
        seen["living ranks given up"] += lives.given_up
        seen["ranks that left by themselves"] += lives.left
        seen["supervisors that left by themselves"] += lives.impatient
        seen["supervisors frozen with jobs that ran elsewhere"] += lives.frozen


def _fault(cluster: Cluster, what: str, whom: object, seen: Counter[str]) -> None:
    master = cluster.master
    if not master.over:
        seen[what] += 1
    if what == "kill":
        assert isinstance(whom, int)
        cluster.kill_executor(whom)
    elif what == "kill rank":
        assert isinstance(whom, tuple)
        if not master.over:
            cluster.kill_rank(*whom)
    elif what == "stall rank":
        assert isinstance(whom, tuple)
        cluster.ranks[whom[0]].stall(whom[1])
    elif what == "freeze":
        assert isinstance(whom, tuple)
        rank, seconds = whom
        cluster.ranks[rank].stall(seconds)
        for number in cluster.executors_of(rank):
            cluster.executors[number].stall(seconds)
    elif what == "stall executor":
        assert isinstance(whom, tuple)
        if whom[0] in cluster.executors:
            cluster.executors[whom[0]].stall(whom[1])
    elif what == "cancel":
        assert isinstance(whom, tuple)
        if not master.stopping:
            master.cancel(whom, "cancelled by its user", cluster.now)
            cluster.ranks[0].wake()
    elif what == "urgency":
        assert isinstance(whom, tuple)
        if not master.stopping:
            master.urge(range(*whom[:2]), whom[2])
            cluster.ranks[0].wake()
    elif what == "stop" and not master.over:
        assert isinstance(whom, float)
        master.stop(whom)
        cluster.ranks[0].wake()
