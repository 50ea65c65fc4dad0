"""How jobs are dealt to children: each job to one child, a prefix of the chunk, and each rule's own promise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpiflux.model.jobspec import JobGroup, Request
from mpiflux.model.messages import Chunk, Declare, Recall, Report, Submit
from mpiflux.model.params import ListColumn, ParamTable
from mpiflux.model.records import PACK
from mpiflux.model.resources import NodeResources
from mpiflux.sched.catalog import Catalog
from mpiflux.sched.children import Child
from mpiflux.sched.dealing import Dealing
from mpiflux.sched.distribution import KNOWN, DistributionError, make
from mpiflux.sched.pool import ResourcePool
from mpiflux.sched.queue import Entry

GROUP = JobGroup(number=0, name="g", first_id=1, count=10_000)


def children(*cores: int) -> list[Child]:
    return [Child(i + 1, ResourcePool([NodeResources(node=i, cores=tuple(range(n)))])) for i, n in enumerate(cores)]


def indices(chunk: Chunk) -> range:
    return range(chunk.start, chunk.stop, chunk.step)


@given(st.sampled_from(KNOWN), st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 50),
       st.integers(1, 300), st.integers(1, 7))
def test_every_job_goes_to_one_child_and_the_front_goes_first(name, cores, start, length, step):
    chunk = Chunk(0, start, start + length, step)
    dealt = [index for _, part in make(name).split(chunk, GROUP, children(*cores)) for index in indices(part)]
    assert len(dealt) == len(set(dealt))
    assert sorted(dealt) == list(indices(chunk))[:len(dealt)]
    assert dealt, "somebody always has room when nobody has anything"


def test_round_robin_goes_on_where_it_was():
    rule, three = make("round_robin"), children(1, 1, 1)
    owner = {}
    for chunk in (Chunk(0, 0, 4), Chunk(0, 4, 6), Chunk(0, 6, 13)):
        for child, part in rule.split(chunk, GROUP, three):
            owner.update(dict.fromkeys(indices(part), child.endpoint))
    assert [owner[i] for i in range(13)] == [1, 2, 3] * 4 + [1]


def test_a_key_stays_with_its_child_in_every_run():
    values = ("red", "green", "blue", "red", "blue", "green", "red")
    group = JobGroup(number=0, name="g", first_id=1, count=7,
                     params=ParamTable(("n", "colour"), (ListColumn(tuple(range(7))), ListColumn(values)), "zip"))
    owner = {}
    for start, stop in ((0, 3), (3, 7)):
        for child, part in make("by_key:colour").split(Chunk(0, start, stop), group, children(4, 4, 4, 4)):
            owner.update(dict.fromkeys(indices(part), child.endpoint))
    assert sorted(owner) == list(range(7))
    by_colour = {colour: {owner[i] for i in range(7) if values[i] == colour} for colour in values}
    assert all(len(homes) == 1 for homes in by_colour.values())
    # written down: a value must find its child again after a restart and under another Python
    assert {colour: min(homes) for colour, homes in by_colour.items()} == {"red": 4, "green": 2, "blue": 1}


def test_least_loaded_evens_out_what_is_there():
    three = children(4, 4, 8)
    three[0].outstanding = 4
    given_to = {child.endpoint: len(part) for child, part in make("least_loaded").split(Chunk(0, 0, 12), GROUP, three)}
    assert given_to == {2: 4, 3: 8}


def test_pull_shares_a_few_jobs_out_and_leaves_what_has_no_room():
    assert sorted(len(part) for _, part in make("pull").split(Chunk(0, 0, 4), GROUP, children(8, 8))) == [2, 2]
    dealt = make("pull").split(Chunk(0, 0, 100), GROUP, children(2, 2))
    assert sum(len(part) for _, part in dealt) < 20


@pytest.mark.parametrize(("name", "words"), [
    ("pul", "there is: by_key, least_loaded"), ("by_key:a b", "no distribution"), ("nowhere:Thing", "PYTHONPATH"),
    ("collections:OrderedDict", "no method split")])
def test_a_wrong_name_is_told(name, words):
    with pytest.raises(DistributionError, match=words):
        make(name)


def dealing(*cores: int, distribution: str = "round_robin") -> Dealing:
    catalog = Catalog()
    catalog.add(Declare(GROUP))
    return Dealing(children(*cores), distribution, catalog)


def sent(below: Dealing, now: float) -> dict[int, int]:
    return {dst: sum(map(len, message.chunks)) for dst, message in below.collect(now) if isinstance(message, Submit)}


def test_what_a_busy_child_has_not_started_is_recalled_for_an_idle_one():
    below = dealing(2, 2, distribution="pull")
    assert below.start(Entry(Chunk(0, 0, 6))) == 6
    assert sent(below, 0.0) == {1: 3, 2: 3}
    ended = b"".join(PACK.pack(job, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0) for job in (4, 5, 6))
    below.report(2, Report(ended), 1.0)
    assert below.balance(1.0) == [(1, Recall(1))]
    assert below.balance(1.01) == [], "not twice at once"
    assert below.report(1, Report(returned=((-1, Chunk(0, 2, 3)),)), 1.1) == [Chunk(0, 2, 3)]
    assert below.children[1].outstanding == 2 and 3 not in below.children[1].held


def test_what_belongs_to_a_child_stays_with_it():
    below = dealing(2, 2)
    below.start(Entry(Chunk(0, 0, 6)))
    below.collect(0.0)
    ended = b"".join(PACK.pack(job, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0) for job in (2, 4, 6))
    below.report(2, Report(ended), 1.0)
    assert below.balance(1.0) == []


def test_recall_takes_from_the_end_of_the_lines():
    below = dealing(1, 1)
    below.start(Entry(Chunk(0, 0, 20)))
    below.collect(0.0)
    waiting = sum(child.waiting for child in below.children.values())
    assert sum(map(len, below.recall(5))) == 5
    assert sum(child.waiting for child in below.children.values()) == waiting - 5
    assert sum(map(len, below.recall(1000))) == waiting - 5


def test_capacity_counts_whole_jobs():
    child = children(7)[0]
    assert child.capacity(Request(cores=2)) == 3
