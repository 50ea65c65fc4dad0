"""A request as amounts on nodes, and the index of when each node has room for it."""

from __future__ import annotations

import math
from bisect import bisect_right

from mpiflux.model import resources
from mpiflux.model.jobspec import Request
from mpiflux.sched.timeline import Need, Units

CORES, GPUS, MEMORY, SEATS, JOBS = range(5)
"""What is counted of a node, before its named resources."""


class Demand:
    """A request, as amounts on nodes."""

    __slots__ = ("_needs", "even", "exclusive", "low", "more", "named", "nodes", "request", "shared", "single", "tasks")

    def __init__(self, request: Request, names: list[str], shared: list[str]) -> None:
        self.request = request
        self.tasks = resources.task_count(request)
        self.nodes = 1 if request.per_node else request.nodes
        self.low, self.more = divmod(self.tasks, self.nodes) if self.nodes else (0, 0)
        self.exclusive = request.exclusive
        self.single = self.nodes == 1 or (self.nodes == 0 and self.tasks == 1)
        self.even = self.nodes > 1
        asked = [(name, amount) for name, amount in sorted(request.consumables.items()) if amount]
        self.shared: Need = tuple((shared.index(name), amount) for name, amount in asked if name in shared)
        self._needs: dict[int, Need | None] = {}
        self.named = tuple((JOBS + 1 + names.index(name) if name in names else -1, amount)
                           for name, amount in asked if name not in shared)

    def need(self, tasks: int) -> Need | None:
        """What so many of its tasks take of one node, beside others; None when no node has one of the names."""
        if tasks not in self._needs:
            self._needs[tasks] = self._count(tasks)
        return self._needs[tasks]

    def _count(self, tasks: int) -> Need | None:
        request = self.request
        amounts = [(CORES, tasks * request.cores), (GPUS, tasks * request.gpus), (MEMORY, tasks * request.memory),
                   (SEATS, 0 if request.cores else tasks), (JOBS, 1)]
        for dimension, amount in self.named:
            if dimension < 0:
                return None
            amounts.append((dimension, -(-amount * tasks // self.tasks)))
        return tuple(pair for pair in amounts if pair[1])

    def counts(self) -> tuple[range, ...]:
        """Numbers of tasks whose times an index keeps, one range for each of its lists."""
        if self.single:
            return (range(self.tasks, self.tasks + 1),)
        if self.even:
            low = range(self.low, self.low + 1)
            return (low, range(self.low + 1, self.low + 2)) if self.more else (low,)
        return (range(1, self.tasks + 1),)


class Index:
    """When each node has room for a demand, reservations aside."""

    __slots__ = ("by_node", "demand", "dirty", "lists")

    def __init__(self, demand: Demand, by_node: list[list[list[float]]]) -> None:
        self.demand = demand
        self.by_node = by_node
        """By position, by list: times, ascending."""
        self.lists = [Units([(time, pos) for pos, lists in enumerate(by_node) for time in lists[i]])
                      for i in range(len(demand.counts()))]
        self.dirty: set[int] = set()

    def update(self, pos: int, times: list[list[float]]) -> None:
        for units, old, new in zip(self.lists, self.by_node[pos], times, strict=True):
            if old != new:
                for time in old:
                    units.remove((time, pos))
                for time in new:
                    units.add((time, pos))
        self.by_node[pos] = times

    def lower(self) -> float:
        """No place is to be had before this time; infinity when there never is one."""
        demand = self.demand
        k = 1 if demand.single else demand.nodes if demand.even else demand.tasks
        found = [self.lists[0].kth(k)]
        if demand.even and demand.more:
            found.append(self.lists[1].kth(demand.more))
        return max(math.inf if unit is None else unit[0] for unit in found)

    def tasks_at(self, pos: int, time: float) -> int:
        """Tasks of a demand without ``nodes`` that a node has room for at a time."""
        return bisect_right(self.by_node[pos][0], time)
