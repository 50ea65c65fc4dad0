"""Why a queued job has not started, in sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from mpiflux.model.jobspec import JobGroup, Request
from mpiflux.model.resources import NodeResources, count, size, task_count
from mpiflux.sched.catalog import Catalog
from mpiflux.sched.policies import Policy
from mpiflux.sched.pool import ResourcePool
from mpiflux.sched.queue import Entry, WorkQueue

Fact = tuple[str, float]
"""A sentence without its end, and the time (Unix seconds) that it is about; 0: none."""


def place_in_line(queue: WorkQueue, policy: Policy, entry: Entry, index: int, catalog: Catalog, number: int,
                  ) -> list[Fact]:
    """What is ahead of element ``index`` of an entry, and which places are held."""
    order: Iterable[Entry] = policy.order(queue) if hasattr(policy, "order") else queue
    first, ahead = None, 0
    for other in order:
        if other is entry:
            break
        first, ahead = first or other, ahead + len(other)
    within = (index - entry.chunk.start) // entry.chunk.step
    first, ahead = first or entry, ahead + within
    where = f"the queue of {_name(number)}, policy {policy.name or type(policy).__name__}"
    if ahead:
        head = f"{catalog.group(first.chunk.group).name}[{first.chunk.start}]"
        facts = [(f"in {where}: {count(ahead, 'job')} ahead of it, the first is {head}", 0.0)]
    else:
        facts = [(f"the first in {where}", 0.0)]
    mine = entry.chunk.group
    for place in getattr(policy, "reservations", ()):
        if place.group not in catalog.declared:
            # it was cancelled, and the policy has not looked since
            continue
        name = catalog.group(place.group).name
        whose = f"the next job of its group, {name}" if place.group == mine else (
            f"a job of {name}, which nothing may delay")
        if place.is_known:
            facts.append((f"a place is held for {whose}, from", place.start))
        else:
            facts.append((f"a place is held for {whose}, once a job without a time limit has ended", 0.0))
    return facts


def _name(number: int) -> str:
    return f"scheduler {number}" if number else "the root scheduler"


def wants(group: JobGroup) -> str:
    """What a job asks for."""
    request: Request = group.request
    parts = [count(request.cores, "core")]
    if request.gpus:
        parts.append(count(request.gpus, "GPU"))
    if request.memory:
        parts.append(f"{size(request.memory)} of memory")
    text = ", ".join(parts)
    if request.tasks > 1 or request.nodes:
        text = f"{count(request.tasks, 'task')} of {text} each"
    if request.nodes:
        text += f" on {count(request.nodes, 'whole node' if request.exclusive else 'node')}"
    elif request.exclusive:
        text += " on whole nodes"
    return ", ".join([text, *(f"{amount} {name}" for name, amount in request.consumables.items())])


def missing(group: JobGroup, pool: ResourcePool) -> str:
    """What a job of the group asks for, what of it there is, what is free, and which of it is too little."""
    request = group.request
    tasks = task_count(request)
    nodes, free = pool.nodes, [state for state in pool.states if state.up]
    amounts: list[tuple[str, int, int, int, Callable[[int], str]]] = [
        ("cores", tasks * request.cores, sum(len(node.cores) for node in nodes),
         sum(state.cores.bit_count() for state in free), str)]
    if any(node.gpus for node in nodes):
        amounts.append(("GPUs", tasks * request.gpus, sum(len(node.gpus) for node in nodes),
                        sum(state.gpus.bit_count() for state in free), str))
    if request.memory:
        amounts.append(("memory", tasks * request.memory, sum(node.memory for node in nodes),
                        sum(state.memory for state in free), size))
    for name, amount in request.consumables.items():
        if name in pool.totals:
            amounts.append((name, amount, pool.totals[name], pool.consumables.get(name, 0), str))
        else:
            amounts.append((name, amount, sum(node.consumables.get(name, 0) for node in nodes),
                            sum(state.named.get(name, 0) for state in free), str))
    there = ", ".join(f"{show(left)} of {show(total)} {name}" for name, _, total, left, show in amounts)
    text = f"it asks for {wants(group)}; free here: {there}"
    short = [name for name, asked, _, left, _ in amounts if asked > left]
    if short:
        return f"{text}: it waits for {' and '.join(short)}"
    if pool.fits_now(request):
        return f"{text}: it would fit, but those before it come first, and so do places that are held"
    return f"{text}: enough in sum, but not together on the nodes"


def used_up(group: JobGroup, free: Mapping[str, int], totals: Mapping[str, int]) -> str:
    """Which named resources of the instance a job waits for; empty: none."""
    return " and ".join(f"{amount} {name}, of which {free[name]} of {totals[name]} are free"
                        for name, amount in group.request.consumables.items() if amount > free.get(name, amount))


def narrowest(request: Request, nodes: Sequence[NodeResources]) -> str:
    """Of what it asks for, the resource of which these nodes have the fewest portions; empty: it asks for one kind."""
    counts = {name: there // asked for name, (asked, there) in _portions(request, nodes).items() if asked}
    return min(counts, key=lambda name: counts[name]) if len(counts) > 1 else ""


def too_much(request: Request, shares: Iterable[Sequence[NodeResources]]) -> str:
    """Which resources none of the shares has enough of, in sum; empty: each has enough somewhere."""
    portions = [_portions(request, nodes) for nodes in shares]
    return " and ".join(name for name in (portions[0] if portions else ())
                        if all(one[name][0] > one[name][1] for one in portions))


def _portions(request: Request, nodes: Sequence[NodeResources]) -> dict[str, tuple[int, int]]:
    """(what it asks for, what there is) of each resource."""
    tasks = task_count(request)
    found = {"cores": (tasks * request.cores, sum(len(node.cores) for node in nodes)),
             "GPUs": (tasks * request.gpus, sum(len(node.gpus) for node in nodes)),
             "memory": (tasks * request.memory, sum(node.memory for node in nodes))}
    for name, amount in request.consumables.items():
        found[name] = amount, sum(node.consumables.get(name, 0) for node in nodes)
    return found
