"""Placement on a pool: worked cases, words of refusal, and faults of the caller."""

from __future__ import annotations

import pytest

from mpiflux.model.jobspec import Request
from mpiflux.model.messages import NodeShare, ResourceSet
from mpiflux.model.resources import NodeResources
from mpiflux.sched.pool import PoolError, ResourcePool

GIB = 1 << 30


def node(number: int = 0, cores: int = 8, gpus: int = 0, domains: int = 1, **more: object) -> NodeResources:
    return NodeResources(
        node=number, cores=tuple(range(cores)), numa=tuple(i * domains // cores for i in range(cores)),
        gpus=tuple(range(gpus)), gpu_numa=tuple(i * domains // gpus for i in range(gpus)),
        **more)  # type: ignore[arg-type]


def pool(count: int = 1, **shape: object) -> ResourcePool:
    return ResourcePool([node(i, **shape) for i in range(count)])  # type: ignore[arg-type]


def taken(rset: ResourceSet | None) -> list[tuple[int, tuple[int, ...], tuple[int, ...], int]]:
    assert rset is not None
    return [(s.node, s.cores, s.gpus, s.tasks) for s in rset.shares]


def test_one_core_jobs_fill_node_after_node() -> None:
    p = pool(2, cores=2)
    assert [taken(p.alloc(Request())) for _ in range(4)] == [
        [(0, (0,), (), 1)], [(0, (1,), (), 1)], [(1, (0,), (), 1)], [(1, (1,), (), 1)]]
    assert p.alloc(Request()) is None
    assert p.free_cores == 0 and p.total_cores == 4


def test_spread_takes_the_emptiest() -> None:
    p = pool(3, cores=4)
    spread = Request(layout="spread")
    assert [taken(p.alloc(spread))[0][0] for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert taken(pool(3, cores=4).alloc(Request(tasks=5, layout="spread"))) == [
        (0, (0, 1), (), 2), (1, (0, 1), (), 2), (2, (0,), (), 1)]


def test_pack_uses_the_fewest_nodes_and_fills_the_remainder() -> None:
    p = pool(4, cores=4)
    assert taken(p.alloc(Request(tasks=3)))[0][0] == 0
    # node 0 has one core left: the two whole nodes come first, the remainder goes where it fits best
    assert taken(p.alloc(Request(tasks=9))) == [
        (0, (3,), (), 1), (1, (0, 1, 2, 3), (), 4), (2, (0, 1, 2, 3), (), 4)]
    assert taken(p.alloc(Request(tasks=4)))[0][0] == 3
    assert p.alloc(Request()) is None


def test_pack_prefers_the_fullest_node_that_still_fits() -> None:
    p = pool(2, cores=4)
    first = p.alloc(Request(tasks=3))
    second = p.alloc(Request(tasks=2))
    assert taken(first)[0][0] == 0 and taken(second)[0][0] == 1
    assert taken(p.alloc(Request()))[0][0] == 0


def test_nodes_spread_tasks_evenly() -> None:
    p = pool(3, cores=4)
    assert [s[3] for s in taken(p.alloc(Request(nodes=3, tasks=8)))] == [3, 3, 2]
    assert [s[0] for s in taken(p.alloc(Request(nodes=2)))] == [0, 1]
    assert p.alloc(Request(nodes=2, tasks=2)) is None
    assert taken(p.alloc(Request(tasks=2)))[0][0] == 2


def test_exclusive_takes_whole_nodes_with_everything() -> None:
    p = pool(3, cores=4, gpus=2, memory=8 * GIB)
    held = p.alloc(Request())
    request = Request(nodes=2, tasks=4, cores=1, exclusive=True)
    whole = p.alloc(request)
    assert taken(whole) == [(1, (0, 1, 2, 3), (0, 1), 2), (2, (0, 1, 2, 3), (0, 1), 2)]
    assert whole is not None and {s.memory for s in whole.shares} == {8 * GIB}
    assert p.alloc_on(1, Request(cores=0)) is None, "nobody joins an exclusive node, not even without cores"
    assert held is not None
    p.free(held, Request())
    p.free(whole, request)
    assert (p.free_cores, p.free_gpus) == (12, 6)
    assert p.capacity(request) == 1 and p.capacity(Request(exclusive=True)) == 3


def test_exclusive_needs_the_whole_node_here() -> None:
    part = ResourcePool([node(0, cores=4, whole=False)])
    assert part.alloc(Request(exclusive=True)) is None
    assert part.can_ever(Request(exclusive=True)) == "asks for whole nodes; there are only parts of nodes here"


def test_cores_come_from_the_gpus_domain() -> None:
    p = pool(1, cores=8, gpus=2, domains=2)
    job = Request(cores=3, gpus=1)
    assert taken(p.alloc(job)) == [(0, (0, 1, 2), (0,), 1)]
    assert taken(p.alloc(job)) == [(0, (4, 5, 6), (1,), 1)]


def test_cores_near_free_gpus_are_spared() -> None:
    p = ResourcePool([NodeResources(node=0, cores=tuple(range(8)), numa=(0, 0, 0, 0, 1, 1, 1, 1), gpus=(0, 1),
                                    gpu_numa=(0, 0))])
    assert taken(p.alloc(Request(cores=2)))[0][1] == (4, 5)
    assert taken(p.alloc(Request(cores=2)))[0][1] == (6, 7)
    assert taken(p.alloc(Request(cores=2, gpus=1))) == [(0, (0, 1), (0,), 1)]


def test_core_jobs_leave_every_gpu_its_share_of_near_cores() -> None:
    p = pool(1, cores=8, gpus=2, domains=2)
    assert [taken(p.alloc(Request()))[0][1] for _ in range(4)] == [(0,), (4,), (1,), (5,)]
    assert [taken(p.alloc(Request(cores=2, gpus=1)))[0][1:3] for _ in range(2)] == [((2, 3), (0,)), ((6, 7), (1,))]


def test_a_task_stays_in_one_domain_on_another_node_rather_than_split_here() -> None:
    p = pool(2, cores=8, domains=2)
    for _ in range(2):
        assert taken(p.alloc(Request(cores=3)))[0][0] == 0
    # one core is left in each domain of node 0
    assert taken(p.alloc(Request(cores=2))) == [(1, (0, 1), (), 1)]
    p.alloc(Request(cores=4))
    p.alloc(Request(cores=2))
    assert taken(p.alloc(Request(cores=2))) == [(0, (3, 7), (), 1)], "split when there is no other way"


def test_cores_and_gpus_stand_in_task_order() -> None:
    p = pool(1, cores=8, gpus=4, domains=2)
    (share,) = taken(p.alloc(Request(tasks=4, cores=2, gpus=1)))
    cores, gpus = share[1], share[2]
    near = [(set(cores[2 * i:2 * i + 2]), gpus[i]) for i in range(4)]
    assert all({c // 4 for c in task} == {gpu // 2} for task, gpu in near)


def test_memory_and_consumables() -> None:
    p = ResourcePool([node(i, cores=4, memory=4 * GIB, consumables={"burst_buffer": 10}) for i in range(2)],
                     {"license": 3})
    job = Request(memory=3 * GIB, consumables={"license": 1, "burst_buffer": 6})
    first, second = p.alloc(job), p.alloc(job)
    assert taken(first)[0][0] == 0 and taken(second)[0][0] == 1
    assert p.alloc(job) is None and not p.fits_now(job) and p.consumables == {"license": 1}
    assert first is not None
    p.free(first, job)
    assert p.fits_now(job)
    assert p.capacity(job) == 2 and p.capacity(Request(consumables={"license": 2})) == 1
    assert p.capacity(Request(consumables={"burst_buffer": 3})) == 6


def test_a_jobs_consumable_is_shared_over_its_nodes() -> None:
    p = ResourcePool([node(i, cores=4, consumables={"burst_buffer": 10}) for i in range(2)])
    job = Request(nodes=2, tasks=4, consumables={"burst_buffer": 19})
    rset = p.alloc(job)
    assert [s[3] for s in taken(rset)] == [2, 2]
    assert p.alloc(Request(consumables={"burst_buffer": 1})) is None
    assert rset is not None
    p.free(rset, job)
    assert p.alloc(Request(consumables={"burst_buffer": 10})) is not None


def test_alloc_on() -> None:
    p = pool(2, cores=2)
    monitor = Request(per_node=True)
    assert taken(p.alloc_on(1, monitor)) == [(1, (0,), (), 1)]
    assert taken(p.alloc_on(1, monitor)) == [(1, (1,), (), 1)]
    assert p.alloc_on(1, monitor) is None
    with pytest.raises(PoolError, match="node 7"):
        p.alloc_on(7, monitor)


def test_drain_and_resume() -> None:
    p = pool(2, cores=2)
    rset = p.alloc(Request())
    p.drain(0)
    assert p.free_cores == 2 and taken(p.alloc(Request()))[0][0] == 1
    assert p.can_ever(Request(nodes=2)) == "asks for 2 nodes; there is 1"
    assert rset is not None
    p.free(rset, Request())
    assert p.free_cores == 1
    p.resume(0)
    assert p.free_cores == 3 and p.can_ever(Request(nodes=2)) is None


def test_lend_and_restore() -> None:
    p = pool(2, cores=4, gpus=2)
    lent = ResourceSet((NodeShare(1, (2, 3), (0,)),))
    p.remove(lent)
    assert (p.free_cores, p.total_cores, p.free_gpus, p.total_gpus) == (6, 6, 3, 3)
    assert p.capacity(Request()) == 6 and p.capacity(Request(exclusive=True)) == 1
    assert p.can_ever(Request(nodes=2, tasks=8)) is None, "what is lent comes back"
    with pytest.raises(PoolError, match="not all of it is free"):
        p.remove(lent)
    p.restore(lent)
    assert (p.free_cores, p.total_cores, p.free_gpus) == (8, 8, 4)
    with pytest.raises(PoolError, match="was not lent"):
        p.restore(lent)


def test_an_interior_pool_holds_only_what_it_borrowed() -> None:
    p = pool(2, cores=4)
    p.remove(p.free_set())
    assert p.free_cores == 0 and p.alloc(Request()) is None
    p.restore(ResourceSet((NodeShare(1, (0, 1, 2, 3)),)))
    assert taken(p.alloc(Request(nodes=1, exclusive=True))) == [(1, (0, 1, 2, 3), (), 1)]


def test_giving_back_what_nobody_holds() -> None:
    p = pool(1, cores=4)
    rset = p.alloc(Request(cores=2))
    assert rset is not None
    p.free(rset, Request(cores=2))
    for wrong in (rset, ResourceSet((NodeShare(0, (9,)),)), ResourceSet((NodeShare(5, (0,)),)),
                  ResourceSet((NodeShare(0, (1, 1)),))):
        with pytest.raises(PoolError):
            p.free(wrong, Request(cores=2))
    assert p.free_cores == 4 and p.capacity(Request()) == 4
    with pytest.raises(PoolError, match="already"):
        p.add([node(0)])


@pytest.mark.parametrize(("request_", "words"), [
    (Request(cores=9), "asks for 9 cores a task; the largest node has 8"),
    (Request(gpus=1, cores=2), None),
    (Request(gpus=3), "asks for 3 GPUs a task; the largest node has 2"),
    (Request(gpus=1, cores=7), "asks for 7 cores and 1 GPU a task; no single node has all of that"),
    (Request(memory=3 * GIB), "asks for 3 GiB of memory a task; the largest node has 2 GiB"),
    (Request(tasks=13), "asks for 13 tasks of 1 core; there is room for 12"),
    (Request(tasks=4, cores=4), "asks for 4 tasks of 4 cores; there is room for 3"),
    (Request(nodes=3), "asks for 3 nodes; there are 2"),
    (Request(nodes=2, tasks=12), "asks for 2 nodes with 6 tasks of 1 core on each; 1 can hold that"),
    (Request(nodes=2, tasks=9), None),
    (Request(nodes=3, exclusive=True), "asks for 3 whole nodes; there are 2"),
    (Request(per_node=True, cores=5),
     "asks for 1 task with 5 cores each on every node; a node here has 4 cores and 2 GPUs"),
    (Request(consumables={"license": 4}), "asks for 4 license; there are 3"),
    (Request(consumables={"power": 1}), "asks for 1 power; there are none"),
    (Request(), None),
])
def test_can_ever_says_why_not(request_: Request, words: str | None) -> None:
    p = ResourcePool([node(0, cores=8, memory=2 * GIB), node(1, cores=4, gpus=2, memory=2 * GIB)], {"license": 3})
    assert p.can_ever(request_) == words
    assert (p.alloc(request_) is not None) == (words is None) or request_.per_node


def test_no_nodes_at_all() -> None:
    p = ResourcePool([])
    assert p.alloc(Request()) is None and p.can_ever(Request()) == "there are no nodes here"
    assert p.capacity(Request()) == 0


def test_more_shapes_and_changes_than_are_remembered() -> None:
    p = pool(2, cores=64, memory=4096)
    old = Request(cores=3)
    held = [p.alloc(old)]
    for memory in range(1, 1500):
        request = Request(memory=memory)
        for _ in range(3):
            rset = p.alloc(request)
            assert rset is not None
            p.free(rset, request)
    held += [p.alloc(old) for _ in range(41)]
    assert all(held) and p.alloc(old) is None
    for rset in held:
        assert rset is not None
        p.free(rset, old)
    assert p.free_set() == pool(2, cores=64, memory=4096).free_set()
