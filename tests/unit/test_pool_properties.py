"""Placement against a brute-force book-keeper, on random machines and random histories."""

from __future__ import annotations

import random
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from mpiflux.model.jobspec import Request
from mpiflux.model.messages import NodeShare, ResourceSet
from mpiflux.model.resources import NodeResources
from mpiflux.sched.pool import ResourcePool


@st.composite
def machines(draw: st.DrawFn) -> tuple[list[NodeResources], dict[str, int]]:
    nodes = []
    for number in range(draw(st.integers(1, 4))):
        cores = draw(st.integers(1, 6))
        gpus = draw(st.integers(0, 3))
        domains = draw(st.integers(1, 3))
        first = draw(st.sampled_from([0, 5]))
        nodes.append(NodeResources(
            node=number * 2, cores=tuple(range(first, first + cores)),
            numa=tuple(draw(st.integers(0, domains - 1)) for _ in range(cores)), gpus=tuple(range(gpus)),
            gpu_numa=tuple(draw(st.integers(-1, domains - 1)) for _ in range(gpus)), memory=draw(st.integers(0, 8)),
            consumables={"burst_buffer": draw(st.integers(0, 5))} if draw(st.booleans()) else {},
            whole=draw(st.integers(0, 3)) > 0))
    return nodes, {"license": draw(st.integers(0, 4))} if draw(st.booleans()) else {}


requests = st.builds(
    Request, tasks=st.integers(1, 6), cores=st.integers(0, 4), gpus=st.sampled_from([0, 0, 0, 1, 2]),
    nodes=st.sampled_from([0, 0, 0, 1, 2, 3]), memory=st.sampled_from([0, 0, 1, 3]),
    exclusive=st.sampled_from([False, False, False, True]), layout=st.sampled_from(["pack", "spread"]),
    consumables=st.sampled_from([{}, {}, {}, {"burst_buffer": 2}, {"license": 1}, {"license": 1, "burst_buffer": 3}]))


class Books:
    """What is free, kept as plain sets; decides by trying everything."""

    def __init__(self, nodes: list[NodeResources], shared: dict[str, int]) -> None:
        self.spec = {n.node: n for n in nodes}
        self.cores = {n.node: set(n.cores) for n in nodes}
        self.gpus = {n.node: set(n.gpus) for n in nodes}
        self.memory = {n.node: n.memory for n in nodes}
        self.named = {n.node: dict(n.consumables) for n in nodes}
        self.shared = dict(shared)
        self.jobs = {n.node: 0 for n in nodes}
        self.locked: set[int] = set()

    def room(self, node: int, request: Request, total: int) -> int:
        """The most tasks of a job of ``total`` that this node can take, by counting up."""
        idle = self.spec[node].whole and not self.jobs[node] and self.cores[node] == set(self.spec[node].cores) \
            and self.gpus[node] == set(self.spec[node].gpus)
        if (request.exclusive and not idle) or node in self.locked:
            return 0
        for tasks in range(1, total + 1):
            short = tasks * request.cores > len(self.cores[node]) or tasks * request.gpus > len(self.gpus[node]) \
                or tasks * request.memory > self.memory[node]
            for name, amount in request.consumables.items():
                if name not in self.shared:
                    short = short or -(-amount * tasks // total) > self.named[node].get(name, 0)
            if short:
                return tasks - 1
        return total

    def least_nodes(self, request: Request) -> int:
        """Nodes that the job needs at least; 0 when there is no place for it."""
        total = max(request.tasks, request.nodes)
        if any(self.shared[n] < a for n, a in request.consumables.items() if n in self.shared):
            return 0
        room = {node: self.room(node, request, total) for node in self.spec}
        if request.nodes:
            low, more = divmod(total, request.nodes)
            for chosen in combinations(room, request.nodes):
                if all(room[n] >= low for n in chosen) and sum(room[n] > low for n in chosen) >= more:
                    return request.nodes
            return 0
        for size in range(1, len(room) + 1):
            if any(sum(room[n] for n in chosen) >= total for chosen in combinations(room, size)):
                return size
        return 0

    def book(self, rset: ResourceSet, request: Request, sign: int) -> None:
        """Enter (+1) or strike (-1) a job; fails where something is given twice."""
        total = max(request.tasks, request.nodes)
        assert len({s.node for s in rset.shares}) == len(rset.shares)
        assert sum(s.tasks for s in rset.shares) == total
        for share in rset.shares:
            cores, gpus = set(share.cores), set(share.gpus)
            assert len(cores) == len(share.cores) and len(gpus) == len(share.gpus)
            node = share.node
            if sign > 0:
                assert cores <= self.cores[node] and gpus <= self.gpus[node]
                self.cores[node] -= cores
                self.gpus[node] -= gpus
            else:
                self.cores[node] |= cores
                self.gpus[node] |= gpus
            self.jobs[node] += sign
            self.memory[node] -= sign * share.memory
            assert self.memory[node] >= 0
            (self.locked.add if sign > 0 else self.locked.discard)(node) if request.exclusive else None
            for name, amount in request.consumables.items():
                if name not in self.shared:
                    self.named[node][name] -= sign * -(-amount * share.tasks // total)
                    assert self.named[node][name] >= 0
        for name, amount in request.consumables.items():
            if name in self.shared:
                self.shared[name] -= sign * amount
                assert self.shared[name] >= 0

    def check_shape(self, rset: ResourceSet, request: Request) -> None:
        for share in rset.shares:
            spec = self.spec[share.node]
            if request.exclusive:
                assert set(share.cores) == set(spec.cores) and set(share.gpus) == set(spec.gpus)
            else:
                assert len(share.cores) == share.tasks * request.cores
                assert len(share.gpus) == share.tasks * request.gpus
                assert share.memory == share.tasks * request.memory
        if request.nodes:
            tasks = [s.tasks for s in rset.shares]
            assert len(tasks) == request.nodes and max(tasks) - min(tasks) <= 1

    def near_place(self, request: Request) -> bool:
        """Whether some node has one domain with everything that a one-task job wants."""
        for node, spec in self.spec.items():
            if not self.room(node, request, 1):
                continue
            for domain in set(spec.numa):
                cores = [c for c, d in zip(spec.cores, spec.numa, strict=True) if d == domain and c in self.cores[node]]
                gpus = [g for g, d in zip(spec.gpus, spec.gpu_numa, strict=True)
                        if (d in (domain, -1) or len(set(spec.numa)) == 1) and g in self.gpus[node]]
                if len(cores) >= request.cores and len(gpus) >= request.gpus:
                    return True
        return False

    def is_near(self, share: NodeShare) -> bool:
        spec = self.spec[share.node]
        if len(set(spec.numa)) == 1:
            return True
        core_domains = {spec.numa[spec.cores.index(c)] for c in share.cores}
        gpu_domains = {spec.gpu_numa[spec.gpus.index(g)] for g in share.gpus} - {-1}
        return len(core_domains | gpu_domains) <= 1


steps = st.lists(st.tuples(st.integers(0, 2), requests, st.integers(0, 99)), max_size=25)


@settings(max_examples=300, deadline=None)
@given(machines(), steps)
def test_any_history(machine: tuple[list[NodeResources], dict[str, int]],
                     history: list[tuple[int, Request, int]]) -> None:
    nodes, shared = machine
    pool, twin, books = ResourcePool(nodes, shared), ResourcePool(nodes, shared), Books(nodes, shared)
    start = pool.free_set()
    running: list[tuple[ResourceSet, Request]] = []
    for kind, request, pick in history:
        if kind == 0 and running:
            rset, request = running.pop(pick % len(running))
            for p in (pool, twin):
                p.free(rset, request)
            books.book(rset, request, -1)
            continue
        least = books.least_nodes(request)
        near = request.tasks == 1 and request.nodes <= 1 and not request.exclusive and request.cores > 0 \
            and books.near_place(request)
        assert pool.fits_now(request) == bool(least)
        found = pool.alloc(request)
        assert found == twin.alloc(request), "equal calls, equal answers"
        assert (found is not None) == bool(least)
        if found is not None:
            books.check_shape(found, request)
            if near:
                assert books.is_near(found.shares[0])
            one_domain = all(len(set(n.numa)) == 1 for n in nodes)
            if request.layout == "pack" and (one_domain or not request.cores):
                assert len(found.shares) == least
            books.book(found, request, 1)
            running.append((found, request))
        assert pool.free_cores == sum(map(len, books.cores.values()))
        assert pool.free_gpus == sum(map(len, books.gpus.values()))
    for rset, request in running:
        pool.free(rset, request)
    assert pool.free_set() == start
    fresh = ResourcePool(nodes, shared)
    for _, request, _ in history:
        assert pool.alloc(request) == fresh.alloc(request), "after all is given back nothing is remembered"


def test_a_history_longer_than_the_list_of_changes() -> None:
    rng = random.Random(5)
    nodes = [NodeResources(node=i, cores=tuple(range(4)), gpus=(0, 1), memory=6) for i in range(3)]
    shapes = [Request(), Request(cores=3), Request(gpus=1, memory=2), Request(tasks=3), Request(nodes=2, cores=2)]
    rare = Request(cores=2, gpus=1)
    pool, books = ResourcePool(nodes), Books(nodes, {})
    running: list[tuple[ResourceSet, Request]] = []
    for step in range(15000):
        request = rare if step % 1500 == 0 else rng.choice(shapes)
        if running and rng.random() < 0.45:
            rset, request = running.pop(rng.randrange(len(running)))
            pool.free(rset, request)
            books.book(rset, request, -1)
            continue
        found = pool.alloc(request)
        assert (found is not None) == bool(books.least_nodes(request))
        if found is not None:
            books.book(found, request, 1)
            running.append((found, request))


@settings(max_examples=200, deadline=None)
@given(machines(), requests)
def test_capacity_and_can_ever(machine: tuple[list[NodeResources], dict[str, int]], request: Request) -> None:
    nodes, shared = machine
    pool = ResourcePool(nodes, shared)
    capacity = pool.capacity(request)
    reason = pool.can_ever(request)
    given = 0
    while pool.alloc(request) is not None:
        given += 1
    assert capacity == given
    assert (reason is None) == (given > 0), reason


@settings(max_examples=100, deadline=None)
@given(machines(), st.lists(requests, max_size=6), st.data())
def test_what_is_lent_comes_back(machine: tuple[list[NodeResources], dict[str, int]], before: list[Request],
                                 data: st.DataObject) -> None:
    nodes, shared = machine
    pool = ResourcePool(nodes, shared)
    for request in before:
        pool.alloc(request)
    free = pool.free_set()
    parts = tuple(NodeShare(s.node, s.cores[:data.draw(st.integers(0, len(s.cores)))],
                            s.gpus[:data.draw(st.integers(0, len(s.gpus)))]) for s in free.shares)
    lent = ResourceSet(parts)
    pool.remove(lent)
    away = {(s.node, c) for s in parts for c in s.cores}
    while (rset := pool.alloc(Request())) is not None:
        assert (rset.shares[0].node, rset.shares[0].cores[0]) not in away
        away.add((rset.shares[0].node, rset.shares[0].cores[0]))
    assert pool.free_cores == 0
    pool.restore(lent)
    assert pool.free_cores == sum(len(s.cores) for s in parts)
    assert pool.total_cores == sum(len(n.cores) for n in nodes)
