"""Dependencies element by element."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpiflux.model.jobspec import Dependency, JobGroup
from mpiflux.model.states import Result
from mpiflux.sched.dependencies import Dependencies, Release
from mpiflux.spec import WorkflowError, load
from mpiflux.store.elementwise import Elementwise
from mpiflux.store.jobtable import RECORD, JobTable


def of_file(text: str) -> tuple[JobGroup, ...]:
    return load("w.yaml", text=text.encode()).groups


PAIR = """jobs:
  a: {{command: x, parameters: {{i: {{range: 3}}}}}}
  b: {{command: x, parameters: {{i: {{range: {n}}}}}, after: {after}}}"""


@pytest.mark.parametrize(("text", "on"), [
    ("{a: each}", "ok"), ("{a: {each: ok}}", "ok"), ("{a: {each: any}}", "any"), ("[{a: {each: not_ok}}]", "not_ok")])
def test_the_file_says_how(text: str, on: str) -> None:
    assert of_file(PAIR.format(n=3, after=text))[1].after == (Dependency("a", "each", on=on),)


@pytest.mark.parametrize(("n", "text", "says"), [
    (4, "{a: each}", "b has 4"), (3, "{a: {each: maybe}}", "maybe"), (3, "{a: {every: ok}}", "every"),
    (3, "{a: {}}", "each"), (3, "[{a: each}, a]", "named twice")])
def test_mistakes_in_the_file_are_named(n: int, text: str, says: str) -> None:
    with pytest.raises(WorkflowError, match=says):
        of_file(PAIR.format(n=n, after=text))


def test_each_does_not_pair_jobs_of_nodes_with_others() -> None:
    with pytest.raises(WorkflowError, match="per: node"):
        of_file("jobs:\n  a: {command: x, per: node}\n  b: {command: x, after: {a: each}}")


def test_a_million_pairs_are_a_few_arrays() -> None:
    n = 1_000_000
    a = JobGroup(number=0, name="a", first_id=1, count=n)
    b = JobGroup(number=1, name="b", first_id=n + 1, count=n, after=(Dependency("a", "each"),))
    table = JobTable()
    table.add_group(a)
    table.add_group(b)
    elements = Elementwise(table, (a, b))
    assert elements.open(1) == []
    table.assign(table.unfinished(0)[0], 0)
    records = np.zeros(n, RECORD)
    records["id"], records["attempt"], records["result"] = np.arange(1, n + 1), 1, Result.COMPLETED
    verdicts = elements.ended(table.apply(records, 0).ended)
    assert [len(one.ids) for one in verdicts] == [n] and len(table.chunks(verdicts[0].ids)) == 1


@settings(max_examples=200)
@given(st.integers(1, 6), st.data())
def test_each_element_is_decided_once_and_rightly(n: int, data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from(["ok", "any", "not_ok"]), min_size=1, max_size=3))
    blocker = data.draw(st.booleans())
    groups = [JobGroup(number=i, name=f"g{i}", first_id=1 + i * n, count=n) for i in range(len(kinds))]
    after = [Dependency(f"g{i}", "each", on=kind) for i, kind in enumerate(kinds)]
    if blocker:
        groups.append(JobGroup(number=len(groups), name="gate", first_id=1 + len(groups) * n, count=1))
        after.append(Dependency("gate", "any"))
    last = groups[-1]
    groups.append(JobGroup(number=len(groups), name="last", first_id=last.stop_id, count=n, after=tuple(after)))
    table = JobTable()
    for group in groups:
        table.add_group(group)
    elements, dependencies = Elementwise(table, groups), Dependencies(groups)
    told: dict[int, str] = {}
    results: dict[int, int] = {}
    opened = False

    def hear(verdicts: list) -> None:  # type: ignore[type-arg]
        for verdict in verdicts:
            for job in elements.waiting(verdict.ids).tolist():
                index = job - groups[-1].first_id
                assert verdict.refused or opened
                if job in told:
                    assert told[job] == "refused" and verdict.refused
                else:
                    told[job] = "refused" if verdict.refused else "released"
                if verdict.refused:
                    assert f"{verdict.refused}[{index}]" in verdict.reason(index)

    for verdict in dependencies.begin():
        if verdict == Release(groups[-1].number):
            opened = True
            hear(elements.open(groups[-1].number))
    jobs = data.draw(st.permutations(range(1, groups[-1].first_id)))
    while jobs:
        size = data.draw(st.integers(1, len(jobs)))
        batch, jobs = sorted(jobs[:size]), jobs[size:]
        for job in batch:
            results[job] = data.draw(st.sampled_from([Result.COMPLETED, Result.FAILED, Result.CANCELED]))
        records = np.zeros(len(batch), RECORD)
        records["id"], records["result"] = batch, [results[job] for job in batch]
        records["flags"] = 1
        applied = table.apply(records, 0)
        hear(elements.ended(applied.ended))
        for group, (completed, *others) in applied.groups.items():
            for verdict in dependencies.ended(group, completed, sum(others)):
                assert verdict == Release(groups[-1].number)
                opened = True
                hear(elements.open(verdict.group))
    for index in range(n):
        met = all(kind == "any" or (results[1 + i * n + index] == Result.COMPLETED) == (kind == "ok")
                  for i, kind in enumerate(kinds))
        assert told[groups[-1].first_id + index] == ("released" if met else "refused")
