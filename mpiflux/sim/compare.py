"""Runs of one workload under several policies and hierarchies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from mpiflux.model.jobspec import HierarchySpec, PolicySpec, Workflow
from mpiflux.model.messages import Chunk
from mpiflux.overlay.pernode import expand
from mpiflux.overlay.plan import PlanError, explain_misfits, make_plan
from mpiflux.sched.distribution import DistributionError
from mpiflux.sched.distribution import make as make_distribution
from mpiflux.sched.own import is_own, name_of
from mpiflux.sched.policies import PolicyError, make
from mpiflux.sim.cluster import Cluster, Deadlock
from mpiflux.sim.costs import Costs
from mpiflux.sim.executor import Behaviour
from mpiflux.sim.machine import Machine, supplied
from mpiflux.sim.statistics import Statistics
from mpiflux.spec.scalars import resolve

QUANTUM = 0.004
"""Virtual seconds that a busy supervisor goes on in one event."""
_POLICY = re.compile(r"([\w.:-]+)(?:\(([^()]*)\))?", re.ASCII)


class CannotSimulate(ValueError):
    """The workload cannot run on that machine in that way; the text says why."""


@dataclass(frozen=True)
class Variant:
    name: str
    hierarchy: HierarchySpec | None
    policy: PolicySpec


def parse_policy(text: str, directory: str = "") -> PolicySpec:
    """``fcfs`` or ``fcfs(queue_depth=1)``; a class of the user's own is looked for in ``directory`` too.

    Raises CannotSimulate.
    """
    match = _POLICY.fullmatch(text.replace(" ", ""))
    if match is None:
        raise CannotSimulate(f"{text!r} is no policy; write fcfs or fcfs(queue_depth=1)")
    options: dict[str, int | float | str | bool] = {}
    for part in (match[2] or "").split(","):
        name, equals, value = part.partition("=")
        if part and not equals:
            raise CannotSimulate(f"policy {text!r}: {part!r} is not OPTION=VALUE")
        if part:
            options[name] = resolve(value)
    return PolicySpec(match[1], options, directory)


def split_outside(text: str, separator: str) -> list[str]:
    """``a,b(c,d)`` at commas outside brackets; empty parts are left out."""
    parts, depth, current = [], 0, ""
    for c in text:
        depth += (c in "([{") - (c in ")]}")
        if c == separator and depth <= 0:
            parts.append(current)
            current = ""
        else:
            current += c
    return [part.strip() for part in [*parts, current] if part.strip()]


def simulate(variant: Variant, machine: Machine, workflow: Workflow, behaviour: Behaviour, costs: Costs,
             arrivals: Sequence[tuple[float, Chunk]] = (), quantum: float = QUANTUM) -> Statistics:
    """One run. Raises CannotSimulate, and Deadlock when it never ends (a bug, unless a user's policy is to blame)."""
    workflow = msgspec.structs.replace(workflow, hierarchy=variant.hierarchy, policy=variant.policy)
    machine = supplied(machine, workflow.consumables, workflow.node_consumables)
    try:
        plan = make_plan(machine.nodes, workflow.hierarchy, workflow.policy, machine.consumables)
        for scheduler in plan.schedulers:
            make(scheduler.policy)
            make_distribution(scheduler.distribution)
    except (PlanError, PolicyError, DistributionError) as error:
        raise CannotSimulate(f"{variant.name}: {error}") from None
    usable = [part.node for part in plan.schedulers[0].resources if part.cores]
    workflow = expand(workflow, usable, [plan.hosts[node] for node in usable])
    misfits = explain_misfits(plan, workflow.groups)
    if misfits:
        raise CannotSimulate("\n".join(f"{variant.name}: {text}" for text in misfits))
    cluster = Cluster(machine, workflow, behaviour, costs=costs, arrivals=arrivals, quantum=quantum,
                      plan=plan)
    try:
        cluster.run()
    except PolicyError as error:
        raise CannotSimulate(f"{variant.name}: {error}") from None
    except Deadlock:
        own = [name_of(thing) for one in cluster.schedulers for thing in (one.policy, one.below.own())
               if thing is not None and is_own(thing)]
        if not own:
            raise
        left = cluster.master.table.counts()
        raise CannotSimulate(f"{variant.name}: {own[0]} leaves {left.total - left.inactive} of {left.total} jobs "
                             "queued, and nothing will happen any more") from None
    return Statistics(variant.name, cluster)


def best(found: Sequence[Statistics]) -> Statistics:
    """The shortest; of equals (within 0.1 %) the one with the least wait."""
    shortest = min(one.makespan for one in found)
    return min((one for one in found if one.makespan <= shortest * 1.001), key=lambda one: one.wait_mean)
