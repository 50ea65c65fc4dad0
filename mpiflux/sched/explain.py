"""Why a queued job has not started, in sentences."""

from __future__ import annotations

from collections.abc import Iterable

from mpiflux.model.jobspec import JobGroup, Request
from mpiflux.model.resources import count, size
from mpiflux.sched.catalog import Catalog
from mpiflux.sched.policies import Policy
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
