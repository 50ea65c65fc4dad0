"""What a changed workflow file, and jobs that run again, mean for the groups and records of a run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mpiflux.instance.resuming import _counted
from mpiflux.model.jobspec import Dependency, JobGroup, Request
from mpiflux.model.params import ListColumn, ParamTable
from mpiflux.model.records import FLAG_NOT_STARTED, FLAG_REASON
from mpiflux.model.states import TRANSITIONS, Result, State
from mpiflux.store.history import History, Step
from mpiflux.store.jobtable import RECORD, JobTable
from mpiflux.store.journal import Journal
from mpiflux.store.reader import open_run
from mpiflux.store.resume import chosen, early, with_dependants
from mpiflux.store.revision import Revision, revise


def group(number: int, name: str, first_id: int, count: int, **more: Any) -> JobGroup:
    return JobGroup(number=number, name=name, first_id=first_id, count=count, **{"command": ("true",), **more})


def record(id: int, result: Result, attempt: int = 1, t: float = 10.0, **more: Any) -> bytes:
    out = np.zeros(1, RECORD)
    for name, value in {"id": id, "attempt": attempt, "result": result, "tasks": 1, "t_alloc": t, "t_start": t,
                        "t_finish": t + 1, "returncode": int(result == Result.FAILED), **more}.items():
        out[name] = value
    return out.tobytes()


CANCELED = {"attempt": 0, "flags": FLAG_NOT_STARTED | FLAG_REASON, "t_alloc": 0.0, "t_start": 0.0}


def test_entries_are_known_by_name_whatever_their_order() -> None:
    old = [group(0, "a", 1, 3), group(1, "b", 4, 2, after=(Dependency("a"),)), group(2, "s", 6, 1, submitted=True)]
    new = [group(0, "c", 1, 4), group(1, "b", 5, 2, after=(Dependency("a"),)),
           group(2, "a", 7, 3, command=("false",), time_limit=5.0)]
    found = revise(old, new, replace=False)
    assert [(g.number, g.name, g.first_id, g.count) for g in found.groups] == [
        (0, "a", 1, 3), (1, "b", 4, 2), (2, "s", 6, 1), (3, "c", 7, 4)]
    assert found.groups[0].command == ("false",) and found.groups[2] is old[2]
    assert [(was.name, change) for was, change in found.changed] == [("a", (("command",), ("time_limit",), False))]
    assert [g.name for g in found.added] == ["c"] and not found.removed and not found.resized


def test_what_is_gone_waits_for_nobody_and_another_size_is_another_group() -> None:
    old = [group(0, "a", 1, 3), group(1, "b", 4, 3, after=(Dependency("a", "each"),)),
           group(2, "n", 7, 2, request=Request(per_node=True))]
    new = [group(0, "a", 1, 5), group(1, "n", 6, 4, request=Request(per_node=True))]
    found = revise(old, new, replace=False)
    assert len(found.resized) == 1 and found.resized[0].startswith("a had 3 jobs and has 5 now, and no job")
    found = revise(old, new, replace=True)
    assert [(g.name, g.after) for g in found.groups] == [("a~1", ()), ("b", ()), ("n~1", ()), ("a", ()), ("n", ())]
    assert found.removed == [0, 1, 2] and found.replaced == {0: "a~1", 2: "n~1"}
    again = revise(found.groups, [*new[:1], msgspec.structs.replace(new[0], name="a2", count=1)], replace=True)
    assert again.groups[3].count == 5 and [g.name for g in again.added] == ["a2"]


def listed(*values: int) -> ParamTable:
    return ParamTable(("x",), (ListColumn(values),))


def test_a_longer_entry_keeps_its_jobs_and_gets_another_group() -> None:
    """Followers element by element are cut alike, whole-entry followers wait for both, and so on for a second time."""
    old = [group(0, "a", 1, 3, params=listed(5, 6, 7)), group(1, "b", 4, 3, params=listed(1, 1, 1),
                                                             after=(Dependency("a", "each"),)),
           group(2, "c", 7, 1, after=(Dependency("b", "any"),))]
    new = [group(0, "a", 1, 4, params=listed(4, 7, 5, 8)), group(1, "b", 5, 4, params=listed(1, 1, 1, 1),
                                                                 after=(Dependency("a", "each"),), retries=2),
           group(2, "c", 9, 1, after=(Dependency("b", "any"),))]
    found = revise(old, new, replace=False)
    assert [(g.name, g.first_id, g.count, g.base) for g in found.groups] == [
        ("a", 1, 3, 0), ("b", 4, 3, 0), ("c", 7, 1, 0), ("a", 8, 2, 3), ("b", 10, 2, 3)]
    assert [found.groups[3].params.row(i)["x"] for i in range(2)] == [4, 8]
    assert {number: ids.tolist() for number, ids in found.gone.items()} == {0: [2], 1: [5]}
    assert [one.group for one in found.groups[1].after] == ["a"] and [
        one.group for one in found.groups[4].after] == ["#3"]
    assert [(one.group, one.kind) for one in found.groups[2].after] == [("b", "any"), ("#4", "any")]
    assert {was.name: change for was, change in found.changed} == {
        "b": ((), ("retries",), False), "c": ((), (), False)}
    assert [g.name for g in found.added] == ["a", "b"] and not found.judged and not found.resized
    # nothing has changed since
    again = revise(found.groups, new, replace=False)
    assert again.groups == found.groups and not again.added and not again.changed
    # one more, and the one that was gone is there again
    third = [msgspec.structs.replace(new[0], count=6, params=listed(4, 7, 5, 8, 6, 9)),
             msgspec.structs.replace(new[1], first_id=7, count=6, params=listed(*[1] * 6)),
             msgspec.structs.replace(new[2], first_id=13)]
    last = revise(again.groups, third, replace=True)
    assert [(g.first_id, g.count, g.base) for g in last.added] == [(12, 1, 5), (13, 1, 5)] and not last.gone
    assert last.back[0].tolist() == [1, 2, 3] and not last.removed
    assert [one.group for one in last.groups[2].after] == ["b", "#4", "#6"]


def test_entries_whose_jobs_cannot_be_told_apart_are_refused() -> None:
    old = [group(0, "a", 1, 3, params=listed(5, 6, 7)), group(1, "b", 4, 3, params=listed(1, 2, 3))]
    for table in (listed(1, 2), ParamTable(("y",), (ListColumn((5, 6)),)), ParamTable()):
        found = revise(old, [group(0, "a", 1, 2, params=table), old[1]], replace=False)
        assert [words[:27] for words in found.resized] == ["a had 3 jobs and has 2 now,"], table


def test_jobs_that_run_again_are_counted_by_entry() -> None:
    groups = [group(0, "a", 1, 3), group(1, "b", 4, 2), group(2, "a", 6, 2, base=3)]
    assert _counted(groups, np.array([1, 3, 5, 6])) == ["4 jobs to be run again: 3 of a, 1 of b"]


EACH_A = (Dependency("a", "each"),)


def rows(found: Revision, name: str) -> list[tuple[int, int, list[Any]]]:
    """First id, base and values of the groups of an entry."""
    return [(g.first_id, g.base, [g.params.row(i)["x"] for i in range(g.count)])
            for g in found.groups if g.name == name]


def test_a_new_entry_stands_beside_the_jobs_of_the_one_that_it_follows() -> None:
    """Lengthened in the same edit, before, or shortened too: what is new is not compared, whoever of the two is new."""
    old = [group(0, "a", 1, 3, params=listed(5, 6, 7))]
    a = group(0, "a", 1, 4, params=listed(8, 7, 6, 5))
    b = group(1, "b", 5, 4, params=listed(8, 7, 6, 5), after=EACH_A)
    at_once = revise(old, [a, b], replace=False)
    lengthened = revise(old, [a], replace=False)
    later = revise(lengthened.groups, [a, b], replace=False)
    for found in (at_once, later):
        assert not found.resized and not found.gone and not found.judged
        assert [values for _, _, values in rows(found, "b")] == [[5, 6, 7], [8]]
        first, second = (g for g in found.groups if g.name == "b")
        further = next(g.number for g in found.groups if g.name == "a" and g.base)
        assert first.after == EACH_A and [one.group for one in second.after] == [f"#{further}"]
        # nothing has changed since
        again = revise(found.groups, [a, b], replace=False)
        assert again.groups == found.groups and not again.added and not again.changed
    shorter = revise(old, [group(0, "a", 1, 2, params=listed(7, 5)), group(1, "b", 3, 2, params=listed(7, 5),
                                                                           after=EACH_A)], replace=False)
    assert rows(shorter, "b") == [(4, 0, [5, 6, 7])]
    assert {number: ids.tolist() for number, ids in shorter.gone.items()} == {0: [2], 1: [5]}
    back = revise(shorter.groups, [a, b], replace=False)
    assert not back.gone and back.back[1].tolist() == [4, 5, 6] and rows(back, "b")[1][2] == [8]
    # who is followed may be the new one
    c = group(0, "c", 1, 4, params=listed(1, 2, 3, 4))
    led = revise(old, [c, msgspec.structs.replace(a, number=1, first_id=5, after=(Dependency("c", "each"),))],
                 replace=False)
    assert [values for _, _, values in rows(led, "c")] == [[4, 3, 2], [1]]


def test_who_follows_element_by_element_from_now_on_has_to_be_in_the_same_order() -> None:
    old = [group(0, "a", 1, 3, params=listed(5, 6, 7)), group(1, "b", 4, 3, params=listed(7, 5, 6))]
    new = [group(0, "a", 1, 4, params=listed(5, 6, 7, 8)),
           group(1, "b", 5, 4, params=listed(5, 6, 7, 8), after=EACH_A)]
    refused = revise(old, new, replace=False)
    assert [words[:41] for words in refused.resized] == ["b goes with a element by element now, but"]
    found = revise(old, new, replace=True)
    assert found.replaced == {1: "b~1"} and [values for _, _, values in rows(found, "b")] == [[5, 6, 7], [8]]
    assert not revise([old[0], group(1, "b", 4, 3, params=listed(5, 6, 7))], new, replace=False).resized


def test_of_an_entry_as_long_as_before_only_other_elements_are_judged() -> None:
    old = [group(0, "a", 1, 3, params=listed(5, 6, 7))]
    found = revise(old, [group(0, "a", 1, 3, params=listed(5, 9, 7))], replace=False)
    assert found.judged[0].tolist() == [2] and found.changed[0][1].judged == ("parameters",)
    both = revise(old, [group(0, "a", 1, 3, params=listed(5, 9, 7), command=("false",))], replace=False)
    assert both.judged == {0: None}


def test_elements_in_another_order_are_the_same_jobs() -> None:
    """Also where the entry has been lengthened, and where as many others are new as are gone: these have changed."""
    old = [group(0, "a", 1, 3, params=listed(5, 6, 7))]
    assert revise(old, [group(0, "a", 1, 3, params=listed(7, 6, 5))], replace=False).groups == old
    longer = revise(old, [group(0, "a", 1, 5, params=listed(5, 6, 7, 8, 9))], replace=False).groups
    for start in (old, longer):
        n = sum(g.count for g in start)
        every = [5, 6, 7, 8, 9][:n]
        for values, changed in ((every[::-1], []), ([*every[1:], 1], [1]), ([*range(11, 11 + n)], [*range(1, n + 1)])):
            found = revise(start, [group(0, "a", 1, n, params=listed(*values))], replace=False)
            assert not found.resized and not found.added and not found.gone
            assert [id for ids in found.judged.values() for id in ids] == changed
            assert sorted(x for _, _, xs in rows(found, "a") for x in xs) == sorted(values)
            assert sum(map(len, found.back.values())) == n


def test_a_group_is_what_it_was_when_the_records_came() -> None:
    first, second, now = (group(0, "a", 1, 2, command=(word,)) for word in ("one", "two", "three"))
    steps = [Step(7, 2.0, "redefine", 0, 5, [], second, False), Step(3, 1.0, "redefine", 0, 2, [], first, True)]
    history = History(steps)
    assert [history.group_at(now, batch).command[0] for batch in range(7)] == ["one"] * 2 + ["two"] * 3 + ["three"] * 2
    assert history.first(now) is first and [step.batch for step in history.judged(0)] == [2] and not history.judged(1)


def chain(directory: Path) -> list[JobGroup]:
    """a fails in one of three, b follows element by element, c follows b, d follows nobody and was cancelled."""
    groups = [group(0, "a", 1, 3), group(1, "b", 4, 3, after=(Dependency("a", "each"),)),
              group(2, "c", 7, 1, after=(Dependency("b"),)), group(3, "d", 8, 1),
              group(4, "e", 9, 1, after=(Dependency("a", "any"),))]
    with Journal(directory) as journal:
        for one in groups:
            journal.append_group(one, 1.0)
        journal.append_results(b"".join(record(id, Result.FAILED if id == 2 else Result.COMPLETED) for id in (1, 2, 3)))
        reasons = {5: "dependency a[1]: it did not complete", 7: "dependency b: 1 of its 3 jobs did not complete",
                   8: "no longer wanted"}
        journal.append_results(b"".join(record(id, Result.CANCELED, **CANCELED) for id in reasons), b"", reasons)
        journal.append_results(b"".join(record(id, Result.COMPLETED) for id in (4, 6, 9)))
    return groups


def test_who_was_cancelled_because_of_a_job_runs_again_with_it(tmp_path: Path) -> None:
    groups = chain(tmp_path)
    with open_run(tmp_path) as run:
        assert chosen(run, ["failed"]).tolist() == [2] and chosen(run, ["canceled", "b", "c"]).tolist() == [5, 7]
        assert chosen(run, ["a[0-1]"]).tolist() == [1, 2] and not len(chosen(run, ["failed", "b"]))
        assert with_dependants(run, groups, chosen(run, ["failed"])).tolist() == [2, 5, 7]
        assert with_dependants(run, groups, chosen(run, ["d"])).tolist() == [8]
        assert with_dependants(run, groups, chosen(run, ["a.0"])).tolist() == [1]


def test_who_ended_before_further_jobs_that_it_waits_for_is_known_until_it_runs_again(tmp_path: Path) -> None:
    old = [group(0, "a", 1, 2, params=listed(5, 6)), group(1, "b", 3, 1, after=(Dependency("a"),)),
           group(2, "c", 4, 2, params=listed(1, 2), after=EACH_A)]
    new = [group(0, "a", 1, 4, params=listed(5, 6, 7, 8)), group(1, "b", 5, 1, after=(Dependency("a"),)),
           group(2, "c", 6, 4, params=listed(1, 2, 3, 4), after=EACH_A)]

    def batches(journal: Journal, *batches: list[int], attempt: int = 1) -> None:
        for ids in batches:
            journal.append_results(b"".join(record(id, Result.COMPLETED, attempt) for id in ids))
            assert journal.wait()

    def found(new: list[JobGroup]) -> list[tuple[int, list[int], str, int]]:
        with open_run(tmp_path) as run:
            revision = revise(run.groups, new, replace=True)
            return [(one.group, one.ids.tolist(), one.entry, one.further)
                    for one in early(run, revision.groups, revision.gone)]

    with Journal(tmp_path) as journal:
        for one in old:
            journal.append_group(one, 1.0)
        batches(journal, [1, 2], [3, 4, 5])
        assert found(old) == [] and found(new) == [(1, [3], "a", 2)]
        assert found([group(0, "a", 1, 3, params=listed(1, 2, 3)), old[1]]) == [(1, [3], "a", 3)]
        for one in revise(old, new, replace=False).groups:
            journal.append_group(one, 1.0)
        batches(journal, [6], [7])
        assert found(new) == [(1, [3], "a", 2)] and found([new[0], new[2]]) == []
        assert found(old) == [], "what is gone is not waited for"
        journal.append_event(0, 20.0, "rerun", {"group": 1, "batch": journal.next_batch, "ranges": [(0, 1, 1)]})
        journal.wait()
        assert found(new) == []
        batches(journal, [3], attempt=2)
        assert found(new) == []


def test_a_job_that_runs_again_is_read_from_its_directory(tmp_path: Path) -> None:
    groups = chain(tmp_path)
    changed = msgspec.structs.replace(groups[0], command=("false",), retries=1)
    with Journal(tmp_path) as journal:
        batch = journal.next_batch
        with journal.together():
            journal.append_event(0, 20.0, "redefine", {"group": 0, "what": ["command"], "batch": batch, "judged": True,
                                                       "was": msgspec.msgpack.encode(groups[0])})
            journal.append_group(changed, 1.0)
            for number, ranges in ((0, [(1, 2, 1)]), (1, [(1, 2, 1)]), (2, [(0, 1, 1)])):
                journal.append_event(0, 20.0, "rerun", {"group": number, "batch": batch, "ranges": ranges})
        journal.append_results(record(2, Result.FAILED, 2, 30.0))
        with_failure = journal.wait()
        assert with_failure
        with open_run(tmp_path) as run:
            table = run.table
            assert run.job(2)["state"] == "SCHED" and run.job(2)["attempts"] == 2, "it has a retry now"
            assert table.retries_used[1] == 1 and table.attempt[1] == 3 and table.state[4] == State.DEPEND
            assert table.group_ended(0) == (2, 0, 0, 0) and table.counts().inactive == 6
            assert run.job(5)["state"] == "DEPEND" and run.job(7)["result"] is None
            assert run.jobspec(1)["command"] == ["true"] and run.jobspec(2)["command"] == ["false"]
            assert [job["state"] for job in run.jobs()] == [run.job(id)["state"] for id in range(1, 10)]
        journal.append_results(record(2, Result.COMPLETED, 3, 40.0))
        journal.append_group_event(1, 41.0, "depend", {"elements": [(1, 2, 1)]})
        journal.append_results(record(5, Result.COMPLETED, 1, 42.0))
    with open_run(tmp_path) as run:
        assert [run.job(id)["result"] for id in (2, 5, 7)] == ["COMPLETED", "COMPLETED", None]
        for id in range(1, 10):
            log = [event.name for event in run.eventlog(id)]
            state: State | None = State.DEPEND
            for name in log[1:]:
                state = TRANSITIONS[state, name] if name != "output" else state
            assert (state == State.INACTIVE) == (id != 7), log
        assert [event.name for event in run.eventlog(2)].count("rerun") == 1
        assert [a.record.attempt for a in run.attempts(2)] == [1, 2, 3]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(list(Result)[1:5]), st.booleans()), min_size=1, max_size=12),
       st.lists(st.integers(1, 12), max_size=12))
def test_counts_agree_with_the_columns_after_any_rerun(ends: list[tuple[Result, bool]], again: list[int]) -> None:
    table, n = JobTable(), len(ends)
    table.add_group(group(0, "a", 1, n))
    table.add_group(group(1, "b", n + 1, 1, after=(Dependency("a"),)))
    data = b"".join(record(id, result, 1 if ran else 0) for id, (result, ran) in enumerate(ends, 1))
    table.replay(np.frombuffer(data, RECORD), np.zeros(n, "i8"), np.arange(n))
    wanted = np.array([id for id in again if id <= n], "i8")
    assert table.rerun(wanted).tolist() == sorted(set(wanted.tolist()))
    assert not len(table.rerun(np.array([n + 1])))
    states = np.bincount(table.state[:n + 1], minlength=6)
    counts = table.counts()
    assert (counts.depend, counts.sched, counts.inactive) == (states[1], states[2], states[5])
    for number, rows in ((0, slice(0, n)), (1, slice(n, n + 1))):
        results = np.bincount(table.result[rows], minlength=6)
        assert table.group_ended(number) == tuple(results[1:5].tolist())
    assert sum(len(chunk) for chunk in table.unfinished(0)) == len(set(wanted.tolist()))
    for chunk in table.unfinished(0):
        assert all(chunk.attempt == (2 if ends[i][1] else 1) for i in range(chunk.start, chunk.stop, chunk.step))
