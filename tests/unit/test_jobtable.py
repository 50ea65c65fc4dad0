from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpiflux.model.jobspec import Dependency, JobGroup
from mpiflux.model.messages import Chunk
from mpiflux.model.records import FLAG_NOT_STARTED, PACK
from mpiflux.model.states import TRANSITIONS, IllegalTransition, Result, State
from mpiflux.store.jobtable import BYTES_PER_JOB, NOBODY, RECORD, JobTable
from mpiflux.store.transitions import END


def group(number=0, first=1, count=10, **more):
    return JobGroup(number=number, name=f"g{number}", first_id=first, count=count, command=("true",), **more)


def records(*items):
    """Items are (id, attempt, result[, flags])."""
    out = np.zeros(len(items), RECORD)
    for row, item in zip(out, items, strict=True):
        row["id"], row["attempt"], row["result"] = item[:3]
        row["flags"] = item[3] if len(item) > 3 else 0
    return out


def table(count=10, **more):
    t = JobTable()
    t.add_group(group(count=count, **more))
    t.assign(Chunk(0, 0, count), 1)
    return t


def test_record_dtype_is_the_packed_record():
    assert RECORD.itemsize == PACK.size
    assert BYTES_PER_JOB <= 40


def test_a_job_ends_once():
    t = table()
    done = t.apply(records((3, 1, Result.COMPLETED), (4, 1, Result.FAILED)), 7)
    assert done.ended.tolist() == [3, 4] and done.results.tolist() == [1, 2]
    assert done.groups == {0: (1, 1, 0, 0)} and not len(done.again)
    assert t.state[2] == State.INACTIVE and t.batch[3] == 7 and t.pos[3] == 1 and t.owner[2] == NOBODY
    once_more = t.apply(records((5, 1, Result.COMPLETED), (3, 1, Result.FAILED)), 8)
    assert once_more.late.tolist() == [False, True] and once_more.ended.tolist() == [5]
    assert t.result[2] == Result.COMPLETED and t.batch[2] == 7
    assert (t.counts().completed, t.counts().failed, t.counts().sched, t.counts().inactive) == (2, 1, 7, 3)


def test_two_records_of_one_job_in_a_batch_count_once():
    t = table()
    done = t.apply(records((3, 1, Result.COMPLETED), (4, 1, Result.COMPLETED), (3, 1, Result.FAILED)), 0)
    assert done.repeated.tolist() == [False, False, True] and not done.late.any()
    assert t.result[2] == Result.COMPLETED and t.pos[2] == 0 and t.counts().inactive == 2


def test_unknown_jobs_and_results_are_refused():
    t = table()
    bad = records((0, 1, 1), (11, 1, 1), (2**64 - 1, 1, 1), (2, 1, 0), (2, 1, 6), (2, 2, 1), (2, 0, 1))
    assert t.apply(bad, 0).late.all()
    assert t.counts().sched == 10
    assert JobTable().apply(bad, 0).late.all()


def test_retries_are_used_by_failures_and_not_by_losses():
    t = table(retries=1)
    assert t.apply(records((1, 1, Result.LOST)), 0).again.tolist() == [1]
    assert (t.attempt[0], t.retries_used[0], t.state[0], t.owner[0]) == (2, 0, State.SCHED, NOBODY)
    assert t.apply(records((1, 1, Result.COMPLETED)), 1).late.all(), "a superseded attempt was believed"
    t.assign(Chunk(0, 0, 1, 1, 2), 5)
    assert t.apply(records((1, 2, Result.TIMEOUT)), 1).again.tolist() == [1]
    assert t.retries_used[0] == 1
    t.assign(Chunk(0, 0, 1, 1, 3), 5)
    last = t.apply(records((1, 3, Result.FAILED)), 2)
    assert last.ended.tolist() == [1] and not len(last.again)
    assert t.counts().failed == 1 and t.counts().inactive == 1 and t.group_ended(0) == (0, 1, 0, 0)


def test_cancelled_and_completed_jobs_are_not_retried():
    t = table(retries=3)
    assert not len(t.apply(records((1, 1, Result.CANCELED), (2, 1, Result.COMPLETED)), 0).again)


def test_started():
    t = table(count=4)
    t.apply(records((4, 1, Result.COMPLETED)), 0)
    news = records((1, 1, 0), (1, 1, 0), (2, 9, 0), (4, 1, 0), (99, 1, 0))
    assert t.started(news).tolist() == [True, False, False, False, False]
    assert t.state[:4].tolist() == [State.RUN, State.SCHED, State.SCHED, State.INACTIVE]
    assert (t.counts().run, t.counts().sched) == (1, 2)
    assert not t.started(news).any()


def test_illegal_pairs_raise_with_the_eventlog_and_change_nothing():
    t = JobTable(eventlog=lambda job: f"log of {job}")
    t.add_group(group())
    t.add_group(group(1, 11, 5, after=(Dependency("g0"),)))
    t.assign(Chunk(0, 0, 10), 1)
    before = t.state.copy()
    with pytest.raises(IllegalTransition, match="log of 12"):
        t.apply(records((1, 1, Result.COMPLETED), (12, 0, Result.COMPLETED)), 0)
    with pytest.raises(IllegalTransition, match="job 11"):
        t.started(records((11, 0, 0)))
    with pytest.raises(IllegalTransition, match="job 12"):
        t.assign(Chunk(1, 1, 3), 1)
    with pytest.raises(IllegalTransition):
        t.apply(records((12, 0, Result.LOST, FLAG_NOT_STARTED)), 0)
    assert (t.state == before).all() and t.counts().sched == 10


def test_dependent_jobs_are_released_or_cancelled():
    t = JobTable()
    t.add_group(group(count=5, after=(Dependency("x"),)))
    t.apply(t.synthesize(np.array([2]), Result.CANCELED, 5.0), 0)
    assert t.depend(Chunk(0, 0, 3)) == 2 and t.depend(Chunk(0, 0, 3)) == 0
    assert t.state[:5].tolist() == [State.SCHED, State.INACTIVE, State.SCHED, State.DEPEND, State.DEPEND]
    assert (t.counts().depend, t.counts().sched, t.counts().canceled) == (2, 2, 1)


def test_end_table_agrees_with_the_transition_table():
    assert END[0, 0, State.SCHED] == END[0, 0, State.RUN] == END[1, 0, State.DEPEND] == State.INACTIVE
    assert END[0, 0, State.DEPEND] == END[0, 0, State.INACTIVE] == 0
    assert TRANSITIONS[State.CLEANUP, "retry"] == END[0, 1, State.RUN] == State.SCHED


def test_chunks_are_checked():
    t = JobTable()
    t.add_group(group(count=10))
    for chunk in (Chunk(0, 0, 11), Chunk(0, -1, 3), Chunk(0, 5, 14, 3), Chunk(0, 3, 5, 0)):
        with pytest.raises(ValueError, match=r"does not lie|step"):
            t.assign(chunk, 1)
    t.assign(Chunk(0, 0, 10, 5), 4)
    assert t.held_by(4).tolist() == [1, 6]
    with pytest.raises(ValueError, match="attempt 2 handed out, 1 is the next"):
        t.assign(Chunk(0, 0, 1, 1, 2), 1)
    with pytest.raises(ValueError, match="next ones"):
        t.add_group(group(1, 12))


def test_outstanding_and_unfinished():
    t = JobTable()
    t.add_group(group(count=12))
    t.add_group(group(1, 13, 4))
    t.assign(Chunk(0, 0, 12, 2), 3)
    t.assign(Chunk(0, 1, 12, 2), 4)
    t.assign(Chunk(1, 0, 4), 3)
    t.started(records((3, 1, 0)))
    t.apply(records((1, 1, Result.COMPLETED), (13, 1, Result.LOST)), 0)
    assert t.outstanding_of(3) == [Chunk(0, 2, 11, 2), Chunk(1, 1, 4)]
    assert t.unfinished(0) == [Chunk(0, 1, 12)]
    assert t.unfinished(1) == [Chunk(1, 1, 4), Chunk(1, 0, 1, 1, 2)]
    t.unassign(Chunk(1, 0, 4))
    assert t.outstanding_of(3) == [Chunk(0, 2, 11, 2)]
    lost = t.synthesize(t.held_by(3), Result.LOST, 9.0)
    assert t.apply(lost, 1).again.tolist() == [3, 5, 7, 9, 11]
    assert t.outstanding_of(3) == [] and t.counts().run == 0


def test_many_groups_are_told_apart():
    t = JobTable()
    for i in range(100):
        t.add_group(group(i, i * 2 + 1, 2, retries=i % 2))
        t.assign(Chunk(i, 0, 2), 1)
    done = t.apply(records((2, 1, Result.COMPLETED), (200, 1, Result.FAILED), (197, 1, Result.FAILED)), 0)
    assert done.groups == {0: (1, 0, 0, 0), 98: (0, 1, 0, 0)} and done.again.tolist() == [200]
    assert t.group_counts(98).failed == 1 and t.group_counts(99).sched == 2


def test_replay_in_one_stroke_equals_batch_by_batch():
    live = table(count=3, retries=2)
    batches = [records((1, 1, 2), (2, 1, 1)), records((1, 2, 5), (1, 1, 1)), records((1, 3, 1), (3, 1, 3))]
    for number, batch in enumerate(batches):
        for chunk in live.unfinished(0):
            live.assign(chunk, 1)
        live.apply(batch, number)
    again = JobTable()
    again.add_group(group(count=3, retries=2, after=(Dependency("x"),)))
    everything = np.concatenate(batches)
    number = np.repeat(np.arange(3), 2)
    pos = np.tile(np.arange(2), 3)
    while len(everything):
        left = again.apply(everything, number, pos, replay=True).repeated
        everything, number, pos = everything[left], number[left], pos[left]
    for name in ("state", "result", "returncode", "attempt", "retries_used", "batch", "pos"):
        assert getattr(live, name)[:3].tolist() == getattr(again, name)[:3].tolist(), name
    assert live.counts() == again.counts()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(
    st.integers(0, 12), st.integers(1, 3), st.integers(1, 5), st.booleans()), max_size=8), max_size=12),
    st.integers(0, 2))
def test_totals_always_agree_with_a_job_by_job_model(batches, retries):
    t = table(count=10, retries=retries)
    model = {i: [State.SCHED, 1, 0, Result.NONE] for i in range(1, 11)}
    for number, batch in enumerate(batches):
        t.started(records(*[(i, a, 0) for i, a, _, running in batch if running]))
        for i, attempt, _, running in batch:
            if running and i in model and model[i][0] == State.SCHED and model[i][1] == attempt:
                model[i][0] = State.RUN
        seen = set()
        t.apply(records(*[item[:3] for item in batch]), number)
        before = {i: list(m) for i, m in model.items()}
        for i, attempt, result, _ in batch:
            if i not in model or before[i][0] == State.INACTIVE or before[i][1] != attempt or i in seen:
                continue
            seen.add(i)
            job = model[i]
            if result == Result.LOST or (result in (Result.FAILED, Result.TIMEOUT) and job[2] < retries):
                job[:3] = [State.SCHED, attempt + 1, job[2] + (result != Result.LOST)]
            else:
                job[0], job[3] = State.INACTIVE, result
    rows = [[State(t.state[i]), t.attempt[i], t.retries_used[i], Result(t.result[i])] for i in range(10)]
    assert rows == list(model.values())
    counts = t.counts()
    states = [m[0] for m in model.values()]
    assert (counts.sched, counts.run, counts.inactive) == tuple(
        states.count(s) for s in (State.SCHED, State.RUN, State.INACTIVE))
    assert t.group_counts(0) == counts
