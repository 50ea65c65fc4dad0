"""What one node gives to a scheduler, and whether a request can ever fit there: counting only, no placement.

Schedulers, the hierarchy plan and the node room all speak of resources in these words.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

import msgspec

from mpiflux.model.jobspec import Request

MAX_CORELESS_TASKS = 1024
"""Tasks of one job that may start on one node when they ask for no cores: something has to bound them."""


class NodeResources(msgspec.Struct, frozen=True, kw_only=True):
    """A scheduler's part of one node."""

    node: int
    """Index in the instance's node table."""
    cores: tuple[int, ...]
    """Logical core numbers, unique."""
    numa: tuple[int, ...] = ()
    """NUMA domain of each core; empty: all in one."""
    gpus: tuple[int, ...] = ()
    """Logical GPU numbers, unique."""
    gpu_numa: tuple[int, ...] = ()
    """NUMA domain of each GPU, -1 where unknown; empty: all beside every core."""
    memory: int = 0
    """Bytes."""
    consumables: dict[str, int] = {}
    """Named resources of this node, such as ``burst_buffer``."""
    whole: bool = True
    """Whether all of the node is here. An exclusive job needs a whole node."""


def capacity(cores: int, gpus: int, memory: int, named: Mapping[str, int], request: Request,
             shared: Container[str] = ()) -> int:
    """How many tasks of ``request`` fit into this much of one node.

    A job's named resources are the whole job's: a node with k of its T tasks gives ceil(amount * k / T) of each.
    Names in ``shared`` belong to the whole scheduler and are not counted here.
    """
    fit = cores // request.cores if request.cores else MAX_CORELESS_TASKS
    if request.gpus:
        fit = min(fit, gpus // request.gpus)
    if request.memory:
        fit = min(fit, memory // request.memory)
    for name, amount in request.consumables.items():
        if amount and name not in shared:
            fit = min(fit, named.get(name, 0) * task_count(request) // amount)
    return fit


def task_count(request: Request) -> int:
    """Tasks of the job: at least one on each node that it asks for."""
    return max(request.tasks, 1 if request.per_node else request.nodes, 1)


def node_tasks(request: Request) -> tuple[int, int]:
    """With ``nodes`` > 0, spread evenly: the tasks of each node, and how many nodes have one more."""
    return divmod(task_count(request), request.nodes)


NodeKind = tuple[int, int, int, tuple[tuple[str, int], ...], bool]


def kinds(nodes: Iterable[NodeResources]) -> dict[NodeKind, int]:
    """Nodes that count alike, with how many there are: a machine has few kinds and many nodes."""
    found: dict[NodeKind, int] = {}
    for n in nodes:
        kind = (len(n.cores), len(n.gpus), n.memory, tuple(sorted(n.consumables.items())), n.whole)
        found[kind] = found.get(kind, 0) + 1
    return found


def misfit(found: Mapping[NodeKind, int], shared: Mapping[str, int], request: Request) -> str | None:
    """Why ``request`` can never run on these nodes even when all is free, in words; None when it can.

    ``found`` is of :func:`kinds`, ``shared`` the named resources that belong to no single node.
    """
    if not found:
        return "there are no nodes here"
    for name, amount in request.consumables.items():
        if amount > shared.get(name, amount):
            return f"asks for {amount} {name}; there {'is' if shared[name] == 1 else 'are'} {shared[name] or 'none'}"
    return (_task_misfit(found, shared, request) or _named_misfit(found, shared, request)
            or _job_misfit(found, shared, request))


def _task_misfit(found: Mapping[NodeKind, int], shared: Mapping[str, int], request: Request) -> str | None:
    """A single task that no node holds."""
    cores, gpus, memory = max(k[0] for k in found), max(k[1] for k in found), max(k[2] for k in found)
    if request.cores > cores:
        return f"asks for {count(request.cores, 'core')} a task; the largest node has {cores}"
    if request.gpus > gpus:
        most = f"the largest node has {gpus}" if gpus else "no node here has any"
        return f"asks for {count(request.gpus, 'GPU')} a task; {most}"
    if request.memory > memory:
        return f"asks for {size(request.memory)} of memory a task; the largest node has {size(memory)}"
    if all(capacity(c, g, m, {}, request, request.consumables) < 1 for c, g, m, _, _ in found):
        return f"asks for {_task(request)} a task; no single node has all of that"
    return None


def _named_misfit(found: Mapping[NodeKind, int], shared: Mapping[str, int], request: Request) -> str | None:
    for name, amount in request.consumables.items():
        if not amount or name in shared:
            continue
        total = sum(dict(kind[3]).get(name, 0) * n for kind, n in found.items())
        if total < amount:
            return f"asks for {amount} {name}; there {'is' if total == 1 else 'are'} {total or 'none'}"
    return None


def _job_misfit(found: Mapping[NodeKind, int], shared: Mapping[str, int], request: Request) -> str | None:
    """Enough for a task, not for the job."""
    usable = {kind: n for kind, n in found.items() if kind[4]} if request.exclusive else found
    if not usable:
        return "asks for whole nodes; there are only parts of nodes here"
    room = {kind: capacity(*kind[:3], dict(kind[3]), request, shared) for kind in usable}
    tasks = task_count(request)
    if request.per_node:
        small = next((kind for kind, fit in room.items() if fit < request.tasks), None)
        if small is not None:
            return (f"asks for {count(request.tasks, 'task')} with {_task(request)} each on every node; "
                    f"a node here has {count(small[0], 'core')} and {count(small[1], 'GPU')}")
        return None
    if request.nodes:
        there = sum(usable.values())
        word = "whole node" if request.exclusive else "node"
        if there < request.nodes:
            return f"asks for {count(request.nodes, word)}; there {'is' if there == 1 else 'are'} {there}"
        low, more = node_tasks(request)
        fit_low = sum(n for kind, n in usable.items() if room[kind] >= low)
        fit_high = sum(n for kind, n in usable.items() if room[kind] > low)
        if fit_low < request.nodes or fit_high < more:
            many, fit = (low, fit_low) if fit_low < request.nodes else (low + 1, fit_high)
            needed = request.nodes if many == low else more
            return (f"asks for {count(needed, word)} with {count(many, 'task')} of {_task(request)} on each; "
                    f"{fit or 'none'} can hold that")
        return None
    total = sum(room[kind] * n for kind, n in usable.items())
    if total < tasks:
        return f"asks for {count(tasks, 'task')} of {_task(request)}; there is room for {total}"
    return None


def _task(request: Request) -> str:
    parts = [count(request.cores, "core")]
    if request.gpus:
        parts.append(count(request.gpus, "GPU"))
    if request.memory:
        parts.append(f"{size(request.memory)} of memory")
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def count(number: int, word: str) -> str:
    """``1 core``, ``2 cores``."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def size(number: int) -> str:
    """Bytes as a person reads them, in binary units."""
    value = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"
