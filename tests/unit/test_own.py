"""Mistakes of users' policies and distributions: named with the scheduler and the line, and nothing runs twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from mpiflux.model import messages as m
from mpiflux.model.jobspec import JobGroup, PolicySpec, Request
from mpiflux.model.resources import NodeResources
from mpiflux.sched.catalog import Catalog
from mpiflux.sched.children import Child
from mpiflux.sched.dealing import Dealing
from mpiflux.sched.leasing import Leasing
from mpiflux.sched.policies import Machine, Policy, PolicyError, make, planner
from mpiflux.sched.pool import ResourcePool
from mpiflux.sched.queue import WorkQueue
from mpiflux.sched.scheduler import IDLE, Scheduler
from mpiflux.sched.testing import PolicyFault, Trial, TrialJob, check_policy, node

PARENT, EXECUTOR = 99, 100


class Idle(Policy):
    def schedule(self, queue: WorkQueue, machine: Machine, now: float) -> None:
        pass


class Raises(Policy):
    def schedule(self, queue: WorkQueue, machine: Machine, now: float) -> None:
        for entry in queue:
            queue.take(entry, machine.start(entry))
        raise ZeroDivisionError("on purpose")  # the line that is told


class TakesNothing(Policy):
    def schedule(self, queue: WorkQueue, machine: Machine, now: float) -> None:
        for entry in queue:
            machine.start(entry)


class Eats(Policy):
    def schedule(self, queue: WorkQueue, machine: Machine, now: float) -> None:
        for entry in queue:
            queue.take(entry, 1)


class Holds(Policy):
    """A place for the first job, and nothing else."""

    def schedule(self, queue: WorkQueue, machine: Machine, now: float) -> None:
        plan = planner(machine, now)
        assert plan is not None
        for entry in queue:
            self.held = plan.reserve(entry)
            break


class Fine(Policy):
    """By places that are held, so that both ways of starting are counted."""

    def schedule(self, queue: WorkQueue, machine: Machine, now: float) -> None:
        plan = planner(machine, now)
        for entry in queue:
            if plan is None:
                queue.take(entry, machine.start(entry))
            for _ in range(len(entry)):
                place = plan.reserve(entry) if plan is not None else None
                started = plan.start_reserved(entry, place) if plan is not None and place is not None else 0
                queue.take(entry, started)
                if not started:
                    if plan is not None and place is not None:
                        plan.release(place)
                    break


class NotMade(Policy):
    def __init__(self, spec: PolicySpec | None = None) -> None:
        raise KeyError("nothing")

    def schedule(self, queue: WorkQueue, machine: Machine, now: float) -> None:
        pass


def scheduler(policy: Policy, cores: int = 2) -> Scheduler:
    catalog = Catalog()
    below = Leasing(7, PARENT, ResourcePool([node(cores)]), lambda node, core: EXECUTOR, (EXECUTOR,), catalog)
    return Scheduler(7, PARENT, policy, below, catalog, "scheduler n1")


def submit(one: Scheduler, count: int = 5, now: float = 1.0) -> list[m.Message]:
    one.receive(PARENT, m.Declare(JobGroup(number=0, name="g", first_id=1, count=count, request=Request())), now)
    one.receive(PARENT, m.Submit((m.Chunk(0, 0, count),)), now)
    return [message for _, message in one.settle(now)]


def faults(messages: Sequence[m.Message]) -> list[m.Fault]:
    return [message for message in messages if isinstance(message, m.Fault)]


@pytest.mark.parametrize(("policy", "said"), [
    (Raises, "Raises failed: ZeroDivisionError: on purpose, at "),
    (TakesNothing, "took 0 jobs from the queue and started 2: queue.take(entry, n) must follow"),
    (Eats, "took 1 jobs from the queue and started 0"),
])
def test_a_mistake_stops_the_scheduler_and_is_told(policy: type[Policy], said: str) -> None:
    one = scheduler(policy())
    out = submit(one)
    (fault,) = faults(out)
    assert fault.fatal and fault.text.startswith("scheduler n1: policy tests.unit.test_own:") and said in fault.text
    assert not any(isinstance(message, (m.Grant, m.Feed)) for message in out), "what it began is not sent"
    assert not faults(submit(one)), "once is enough"
    one.receive(PARENT, m.Stop(1.0), 2.0)
    assert any(isinstance(message, m.Stop) for _, message in one.settle(2.0)), "it ends like any other"
    one.receive(EXECUTOR, m.Stopped(), 2.0)
    assert [message for _, message in one.settle(2.0)] == [m.Stopped()]


def test_the_line_is_the_users() -> None:
    (fault,) = faults(submit(scheduler(Raises())))
    with open(__file__, encoding="utf-8") as file:
        line = next(i for i, text in enumerate(file, 1) if "the line that is told" in text)
    assert f"{__file__}:{line} in schedule" in fault.text


def test_what_is_ours_is_raised() -> None:
    one = scheduler(make(PolicySpec()))
    one.below.start = None  # type: ignore[method-assign,assignment]
    with pytest.raises(TypeError):
        submit(one)


def test_a_policy_that_cannot_be_made_names_the_line() -> None:
    with pytest.raises(PolicyError, match=r"NotMade cannot be made: KeyError: 'nothing', at .*test_own.py:\d+ in"):
        make(PolicySpec("tests.unit.test_own:NotMade"))


def test_an_idle_policy_is_told_of_once_when_there_is_room() -> None:
    one = scheduler(Idle())
    submit(one, now=10.0)
    assert not one.patrol(12.0) and not one.patrol(12.0 + IDLE - 1)
    ((to, fault),) = one.patrol(12.0 + IDLE)
    assert to == PARENT and isinstance(fault, m.Fault) and not fault.fatal
    assert fault.text.startswith("scheduler n1: policy tests.unit.test_own:Idle has started nothing for 30 s, although "
                                 "g[0] would fit into what is free and 5 jobs are queued")
    assert not one.patrol(100.0 + IDLE)


def test_a_policy_that_waits_for_room_or_holds_a_place_is_not_told_of() -> None:
    for one in (scheduler(Fine()), scheduler(Holds())):
        assert not faults(submit(one))
        assert one.queue.jobs
        for now in range(10, 200, 5):
            assert not one.patrol(float(now))


def test_ours_are_never_asked() -> None:
    one = scheduler(make(PolicySpec()))
    submit(one)
    one.below.could_start = lambda entry: True  # type: ignore[method-assign]
    assert not any(one.patrol(float(now)) for now in range(10, 200, 5))


class Deals:
    """``answer(chunk, children)`` is what ``split`` gives."""

    answer: Any = None

    def split(self, chunk: m.Chunk, group: JobGroup, children: Any) -> Any:
        return Deals.answer(chunk, children)


@pytest.mark.parametrize(("answer", "said"), [
    (lambda chunk, children: [(children[0], chunk)] * 2, "dealt 20 jobs of 10"),
    (lambda chunk, children: [(children[0], m.Chunk(0, 0, 3)), (children[1], m.Chunk(0, 1, 3))], "twice"),
    (lambda chunk, children: [(children[0], m.Chunk(0, 5, 10))], "which is not of the first 5 jobs"),
    (lambda chunk, children: [(children[0], m.Chunk(1, 0, 5))], "which is not of the first 5 jobs"),
    (lambda chunk, children: [(7, chunk)], "which is none of the children"),
    (lambda chunk, children: [children[9]], "IndexError: list index out of range, at "),
    (lambda chunk, children: None, "TypeError"),
])
def test_a_distribution_that_deals_wrongly_is_named(answer: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deals, "answer", answer)
    out = deal()
    (fault,) = faults(out)
    assert fault.fatal and "distribution tests.unit.test_own:Deals" in fault.text and said in fault.text
    assert not any(isinstance(message, m.Submit) for message in out)


def test_a_distribution_may_leave_some_and_deal_in_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deals, "answer", lambda chunk, children: [
        (children[0], m.Chunk(0, 0, 4, 2)), (children[1], m.Chunk(0, 1, 4, 2))])
    out = deal()
    assert not faults(out)
    assert sorted(index for message in out if isinstance(message, m.Submit) for chunk in message.chunks
                  for index in range(chunk.start, chunk.stop, chunk.step))[:4] == [0, 1, 2, 3]


def test_a_distribution_that_deals_nothing_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deals, "answer", lambda chunk, children: [])
    one = dealer()
    submit(one, 10)
    assert not one.patrol(5.0)
    ((_, fault),) = one.patrol(5.0 + IDLE)
    assert isinstance(fault, m.Fault) and "distribution tests.unit.test_own:Deals has started nothing" in fault.text


def dealer() -> Scheduler:
    children = [Child(i + 1, ResourcePool([NodeResources(node=i, cores=(0, 1, 2, 3))])) for i in range(2)]
    dealing = Dealing(children, "tests.unit.test_own:Deals", catalog := Catalog())
    return Scheduler(0, PARENT, make(PolicySpec()), dealing, catalog)


def deal() -> list[m.Message]:
    return submit(dealer(), 10)


@pytest.mark.parametrize(("policy", "said"), [
    (Raises, "ZeroDivisionError: on purpose, at "), (TakesNothing, "must follow machine.start"), (Eats, "must follow"),
    (Idle, "starts no job although all resources are free"),
])
def test_the_kit_finds_them_too(policy: type[Policy], said: str) -> None:
    with pytest.raises(PolicyFault, match=said.replace(".", r"\.")):
        check_policy(policy, may_starve=True)


def test_a_policy_that_starts_by_places_runs_everything() -> None:
    found = Trial(Fine(), [TrialJob(seconds=1.0, limit=2.0, count=9)], [node(2)]).run()
    assert len(found) == 9
