"""What people call jobs, against a search through all of them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpiflux.model.jobspec import JobGroup
from mpiflux.store.groups import by_name
from mpiflux.store.references import group_of, ids_of, resolve
from mpiflux.store.schema import RunError

entries = st.lists(st.tuples(st.sampled_from(["sim", "fit", "sim.1", "7"]), st.integers(0, 4)), max_size=8)


def made(entries: Sequence[tuple[str, int]]) -> list[JobGroup]:
    groups: list[JobGroup] = []
    for number, (name, count) in enumerate(entries):
        groups.append(JobGroup(number=number, name=name, count=count, first_id=groups[-1].stop_id if groups else 1))
    return groups


@given(entries)
def test_every_job_has_one_group_and_no_other_id_has_any(entries: list[tuple[str, int]]) -> None:
    groups = made(entries)
    total = sum(group.count for group in groups)
    for id in range(1, total + 1):
        [mine] = [group for group in groups if group.first_id <= id < group.stop_id]
        assert group_of(groups, id) is mine
    for id in (-1, 0, total + 1):
        with pytest.raises(RunError, match=f"jobs 1 to {total}" if total else "has no jobs"):
            group_of(groups, id)


@given(entries)
def test_a_name_means_the_jobs_of_all_its_groups_in_order(entries: list[tuple[str, int]]) -> None:
    groups = made(entries)
    named = by_name(groups)
    for name, mine in named.items():
        ids = [id for group in groups if group.name == name for id in range(group.first_id, group.stop_id)]
        assert list(ids_of(mine)) == list(resolve(name, groups, named)) == ids
        for index, id in enumerate(ids):
            assert resolve(f"{name}[{index}]", groups, named) == (id,)
            assert f"{name}.{index}" in named or resolve(f"{name}.{index}", groups, named) == (id,)
        with pytest.raises(RunError, match=f"has {len(ids)} jobs"):
            resolve(f"{name}[{len(ids)}]", groups, named)


def test_what_is_one_group_s_is_no_list() -> None:
    groups = made([("sim", 10**9), ("fit", 1), ("sim", 1)])
    named = by_name(groups)
    assert resolve("fit", groups, named) == range(10**9 + 1, 10**9 + 2)
    assert ids_of(groups[:1]) == range(1, 10**9 + 1)


@pytest.mark.parametrize(("ref", "ids"), [
    ("sim[0-1,5]", (1, 2, 8)), ("sim.5", (8,)), (3, (3,)), ("3", (3,)), ("fit.1", (7,)), ("a.b.0", (9,)),
])
def test_references(ref: str | int, ids: tuple[int, ...]) -> None:
    groups = made([("sim", 5), ("fit", 2), ("sim", 1), ("a.b", 1)])
    assert resolve(ref, groups, by_name(groups)) == ids


@pytest.mark.parametrize(("ref", "said"), [
    ("0", "no job 0: this run has jobs 1 to 7"), ("8", "no job 8"), ("sim[9]", "'sim' has 5 jobs, from index 0"),
    ("smi.1", r"give an id, a group's name \(sim, fit\)"), ("sim[2-1]", r"no job 'sim\[2-1\]'"), ("sim[", "give an id"),
    ("sim.-1", "give an id"), ("", "give an id"), ("sim[]", "give an id"),
])
def test_what_means_nothing_is_told(ref: str, said: str) -> None:
    groups = made([("sim", 5), ("fit", 2)])
    with pytest.raises(RunError, match=said):
        resolve(ref, groups, by_name(groups))
