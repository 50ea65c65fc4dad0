"""Jobs that take down what runs them, and what is beside them, in virtual time."""

from __future__ import annotations

import pytest

from mpiflux.model.jobspec import HierarchySpec, JobGroup, LevelSpec, PolicySpec, Workflow
from mpiflux.model.records import FLAG_CRASHED, PACK, SIZE
from mpiflux.model.states import Result
from mpiflux.sim.cluster import Cluster
from mpiflux.sim.executor import Outcome
from mpiflux.sim.invariants import Invariants, Violation
from mpiflux.sim.machine import build, parse_cluster
from mpiflux.store.crashes import LIMIT, SUSPECT

GOOD, POISON = 3, 15


class Poisonous:
    def outcome(self, group: JobGroup, index: int, attempt: int) -> Outcome:
        return Outcome(6.0) if group.name == "good" else Outcome(0.5, poison=True)


def _play(cluster: str, levels: tuple[str, ...], policy: str = "fcfs") -> tuple[Cluster, Invariants]:
    groups = (JobGroup(number=0, name="good", first_id=1, count=GOOD, priority=31),
              JobGroup(number=1, name="poison", first_id=GOOD + 1, count=POISON))
    flow = Workflow(name="w", groups=groups, policy=PolicySpec(policy),
                    hierarchy=HierarchySpec(levels=tuple(LevelSpec(by=by) for by in levels)))
    watch = Invariants()
    made = Cluster(build(parse_cluster(cluster)), flow, Poisonous(), watcher=watch)
    made.run()
    watch.finish(made)
    return made, watch


@pytest.mark.parametrize(("cluster", "levels", "policy"), [
    ("1x(8c)", (), "fcfs"), ("2x(4c)", ("node",), "easy"), ("1x(8c)", ("node", "core"), "fcfs"),
    ("1x(2c)", (), "conservative")])
def test_only_the_cause_fails(cluster: str, levels: tuple[str, ...], policy: str) -> None:
    made, watch = _play(cluster, levels, policy)
    results = [int(made.master.table.result[job]) for job in range(GOOD + POISON)]
    assert results == [Result.COMPLETED] * GOOD + [Result.FAILED] * POISON
    assert all(watch.crashed[job] == LIMIT for job in range(GOOD + 1, GOOD + POISON + 1))
    assert all(watch.crashed.get(job, 0) <= SUSPECT for job in range(1, GOOD + 1))


def test_without_trying_them_alone_the_innocent_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above sees is not luck."""
    monkeypatch.setattr("mpiflux.store.crashes.SUSPECT", 1000)
    monkeypatch.setattr("mpiflux.store.crashes.MOST", LIMIT)
    made, _ = _play("1x(8c)", ())
    assert Result.FAILED in [int(made.master.table.result[job]) for job in range(GOOD)]


def test_the_last_record_of_each_says_why() -> None:
    made, _ = _play("1x(8c)", ())
    last = {}
    for data in made.master.records:
        for at in range(0, len(data), SIZE):
            job, _, result, flags, *_ = PACK.unpack_from(data, at)
            last[job] = result, bool(flags & FLAG_CRASHED)
    assert set(last.values()) == {(Result.COMPLETED, False), (Result.FAILED, True)}


def test_a_job_beside_one_that_is_to_be_alone_is_found() -> None:
    from mpiflux.model.apart import apart
    from mpiflux.model.messages import NodeShare, ResourceSet

    watch, where = Invariants(), apart(0, 1 << 32, 0)
    for lease in (1, 2):
        watch.leased(where, lease, ResourceSet((NodeShare(0, (lease,)),)))
    watch.job_started(where, 1, 1, 3)
    with pytest.raises(Violation, match="alone"):
        watch.job_started(where, 2, 2, 3)
