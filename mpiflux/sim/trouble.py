"""What befalls a simulated instance as a whole, decided by a seed: links that are cut, ranks that are stopped together
with their supervisors, the death of rank 0, and on what the run goes on afterwards."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import msgspec

from mpiflux.model.jobspec import HierarchySpec, Workflow
from mpiflux.overlay.plan import PlanError, explain_misfits, make_plan
from mpiflux.sim.cluster import START, Cluster
from mpiflux.sim.journal import Saved
from mpiflux.sim.links import Cut
from mpiflux.sim.machine import Machine, NodeType, build, supplied

PAUSE = 5.0
"""Seconds of virtual time between the death of rank 0 and the start of the next instance."""


@dataclass
class Trouble:
    """``timeout`` is that of signs of life, 0: there are none, and no ``cuts``."""

    timeout: float = 0.0
    cuts: tuple[Cut, ...] = ()
    kinds: tuple[str, ...] = ()
    """Of the cuts, in words."""
    frozen: list[tuple[float, int, float]] = field(default_factory=list)
    """(seconds after the start, rank, for how long)."""


def trouble(rng: random.Random, ranks: int) -> Trouble:
    """Links that are cut and nodes that are frozen."""
    if ranks == 1 or rng.random() < 0.5:
        return Trouble()
    timeout = rng.choice((2.0, 5.0, 20.0))
    cuts, kinds = [], []
    for _ in range(rng.choice((1, 1, 2, 4))):
        kind, cut = _cut(rng, ranks, timeout)
        kinds.append(kind)
        cuts.append(cut)
    frozen = [(_moment(rng), rng.randrange(ranks), rng.choice((0.3, 2.0, 5.0)) * timeout)
              for _ in range(rng.choice((0, 0, 1, 2)))]
    return Trouble(timeout, tuple(cuts), tuple(kinds), frozen)


def _moment(rng: random.Random) -> float:
    return rng.choice((rng.uniform(0, 0.1), rng.uniform(0, 1), rng.uniform(0, 5), rng.uniform(0, 30)))


def _cut(rng: random.Random, ranks: int, timeout: float) -> tuple[str, Cut]:
    """One cut: of a pair of ranks, or of some ranks from all others; one direction of it or both."""
    start = START + _moment(rng)
    if rng.random() < 0.3:
        inside, kind = {rng.randrange(ranks)}, "pair"
        outside = {rng.choice([rank for rank in range(ranks) if rank not in inside])}
    else:
        inside = set(rng.sample(range(1, ranks), rng.randint(1, ranks - 1)))
        outside, kind = set(range(ranks)) - inside, "side"
    pairs = {(a, b) for a in inside for b in outside}
    way = rng.choice(("both ways", "both ways", "out", "in"))
    if way == "both ways":
        pairs |= {(b, a) for a, b in pairs}
    elif way == "in":
        pairs = {(b, a) for a, b in pairs}
    length = rng.choice((0.1, 0.4, 0.9, 2.0, 5.0)) * timeout
    # nobody but rank 0 looks who is silent: what others send each other has to arrive some time
    if 0 in inside | outside and rng.random() < 0.3:
        length = math.inf
    return f"{kind}, {'both ways' if way == 'both ways' else 'one way'}", Cut(start, start + length, frozenset(pairs))


# -- the death of rank 0 -------------------------------------------------------------------------------------------


def deaths(rng: random.Random) -> list[tuple[float, int]]:
    """For each instance that is to die: after so many seconds, and after so many events if that is sooner."""
    if rng.random() < 0.6:
        return []
    return [(rng.choice((rng.uniform(0, 0.3), rng.uniform(0, 3), rng.uniform(0, 20))),
             rng.choice((20, 300, 3000, 10**6))) for _ in range(rng.choice((1, 1, 2, 4)))]


def salvage(rng: random.Random, cluster: Cluster, now: float) -> Saved:
    """What the journal holds when everything dies at ``now``: all that is older than the window of a commit, and of
    what is younger as much as the last commits have taken."""
    master = cluster.master
    sure = sum(entry.t <= now - master.commit for entry in master.entries)
    kept = rng.choice((sure, rng.randint(sure, len(master.entries)), len(master.entries)))
    submitted = START if master.saved is None else master.saved.t_submit
    return Saved(master.workflow.groups, submitted, tuple(master.entries[:kept]))


@dataclass(frozen=True)
class Site:
    """Where an instance runs, and as what tree."""

    types: tuple[NodeType, ...]
    ranks_per_node: int
    instance: Mapping[str, int] = field(default_factory=dict)
    """Named resources of the whole instance."""
    each_node: Mapping[str, int] = field(default_factory=dict)

    def machine(self) -> Machine:
        machine = build(self.types, self.ranks_per_node)
        if self.instance or self.each_node:
            machine = supplied(machine, self.instance, self.each_node)
        return machine


def moved(rng: random.Random, site: Site, workflow: Workflow, hierarchy: HierarchySpec) -> tuple[Site, Workflow]:
    """Another number of ranks, of nodes where no job is for a certain one, and another hierarchy, on which all jobs
    can run; as much of that as there is."""
    named = any(group.on for group in workflow.groups)
    types = site.types if named else tuple(
        replace(one, count=max(1, one.count + rng.choice((-2, -1, 0, 1, 3)))) for one in site.types)
    others = [replace(site, types=types, ranks_per_node=rng.choice((1, 2, 3))),
              replace(site, ranks_per_node=rng.choice((1, 2, 3))), site]
    flow = msgspec.structs.replace(workflow, hierarchy=hierarchy)
    for other in others:
        if _fits(other, flow):
            return other, flow
    return site, workflow


def _fits(site: Site, workflow: Workflow) -> bool:
    machine = site.machine()
    try:
        plan = make_plan(machine.nodes, workflow.hierarchy, workflow.policy, machine.consumables)
    except PlanError:
        return False
    return not explain_misfits(plan, workflow.groups)
