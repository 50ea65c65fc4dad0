"""The queue against a plain list of jobs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mpiflux.model.messages import Chunk
from mpiflux.sched.queue import Entry, WorkQueue
from mpiflux.sched.urgency import Urgencies, cut

PRIORITIES = {0: 16, 1: 16, 2: 31, 3: 1}
Job = tuple[int, int, int]
"""(group, index, attempt)"""


def jobs_of(chunk: Chunk) -> list[Job]:
    return [(chunk.group, index, chunk.attempt) for index in range(chunk.start, chunk.stop, chunk.step)]


def chunk_of(group: int, start: int, n: int, step: int, spare: int, attempt: int) -> Chunk:
    """``n`` jobs; the stop may lie anywhere behind the last of them."""
    return Chunk(group, start, start + (n - 1) * step + 1 + spare % step, step, attempt)


chunks = st.builds(chunk_of, st.sampled_from(sorted(PRIORITIES)), st.integers(0, 50), st.integers(1, 9),
                   st.integers(1, 4), st.integers(0, 3), st.integers(1, 3))


class QueueMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.queue = WorkQueue(PRIORITIES.__getitem__)
        self.model: dict[int, list[list[Job]]] = {}
        """Priority to entries."""

    @rule(chunk=chunks)
    def push(self, chunk: Chunk) -> None:
        entry = self.queue.push(chunk)
        assert entry.chunk == chunk
        self.model.setdefault(PRIORITIES[chunk.group], []).append(jobs_of(chunk))

    @rule(chunk=chunks)
    def push_front(self, chunk: Chunk) -> None:
        self.queue.push_front(chunk)
        self.model.setdefault(PRIORITIES[chunk.group], []).insert(0, jobs_of(chunk))

    def entries(self) -> list[list[Job]]:
        return [entry for priority in sorted(self.model, reverse=True) for entry in self.model[priority]]

    def drop_empty(self) -> None:
        self.model = {priority: [entry for entry in lane if entry] for priority, lane in self.model.items()}

    def walk(self) -> list[Entry]:
        found = []
        entry = self.queue.first()
        while entry is not None:
            found.append(entry)
            entry = self.queue.after(entry)
        return found

    @precondition(lambda self: self.queue.jobs)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        entries = self.walk()
        at = data.draw(st.integers(0, len(entries) - 1))
        n = data.draw(st.integers(0, len(entries[at])))
        self.queue.take(entries[at], n)
        del self.entries()[at][:n]
        self.drop_empty()

    @rule(data=st.data())
    def take_while_walking(self, data: st.DataObject) -> None:
        """As a policy does: the next entry is asked for before this one is taken."""
        entry = self.queue.first()
        for jobs in self.entries():
            assert entry is not None
            following = self.queue.after(entry)
            n = data.draw(st.integers(0, len(entry)))
            self.queue.take(entry, n)
            del jobs[:n]
            entry = following
        assert entry is None
        self.drop_empty()

    @rule(indices=st.sets(st.integers(0, 60)), group=st.integers(0, 3))
    def remove(self, indices: set[int], group: int) -> None:
        removed = self.queue.remove(lambda chunk, index: chunk.group == group and index in indices)
        assert all(len(chunk) == 1 for chunk in removed)
        expected = [job for entry in self.entries() for job in entry if job[0] == group and job[1] in indices]
        assert [job for chunk in removed for job in jobs_of(chunk)] == expected
        # what is cut in the middle becomes several entries
        split: dict[int, list[list[Job]]] = {}
        for priority, lane in self.model.items():
            for entry in lane:
                part: list[Job] = []
                for job in entry:
                    if job[0] == group and job[1] in indices:
                        split.setdefault(priority, []).append(part)
                        part = []
                    else:
                        part.append(job)
                split.setdefault(priority, []).append(part)
        self.model = split
        self.drop_empty()

    @rule(group=st.integers(0, 3), start=st.integers(0, 60), n=st.integers(0, 30))
    def pull(self, group: int, start: int, n: int) -> None:
        taken = [job for chunk, _ in self.queue.pull(group, start, start + n) for job in jobs_of(chunk)]
        expected: list[Job] = []
        for priority, lane in self.model.items():
            split: list[list[Job]] = []
            for entry in lane:
                wanted = [job for job in entry if job[0] == group and start <= job[1] < start + n]
                expected += wanted
                split += ([job for job in entry if job[1] < start], [job for job in entry if job[1] >= start + n]
                          ) if wanted else (entry,)
            self.model[priority] = split
        assert sorted(taken) == sorted(expected)
        self.drop_empty()

    @rule(n=st.integers(0, 12))
    def take_last(self, n: int) -> None:
        before = [job for entry in self.entries() for job in entry]
        taken = self.queue.take_last(n)
        jobs = sorted(job for chunk in taken for job in jobs_of(chunk))
        assert jobs == sorted(before[len(before) - min(n, len(before)):])
        left = len(before) - len(jobs)
        for entry in self.entries():
            keep = min(len(entry), left)
            left -= keep
            del entry[keep:]
        self.drop_empty()

    @rule()
    def clear(self) -> None:
        self.queue.clear()
        self.model.clear()

    @invariant()
    def same(self) -> None:
        entries = self.walk()
        assert [jobs_of(entry.chunk) for entry in entries] == self.entries()
        assert entries == list(self.queue)
        assert self.queue.jobs == len(self.queue) == sum(map(len, self.entries()))
        assert bool(self.queue) == bool(entries)


TestQueue = QueueMachine.TestCase


def test_held_jobs_are_kept_and_not_seen() -> None:
    queue = WorkQueue(lambda group: 16)
    queue.push(Chunk(0, 0, 10))
    for chunk, arrived in queue.pull(0, 3, 5):
        queue.insert(chunk, 0, arrived)
    assert [(entry.chunk.start, entry.chunk.stop) for entry in queue] == [(0, 3), (5, 10)]
    assert (queue.jobs, queue.held) == (8, 2) and queue.take_last(100) and queue.first() is None and queue.held == 2
    found = queue.find(0, 4)
    assert found is not None and found.lane.priority == 0
    assert queue.remove(lambda chunk, index: index == 3) == [Chunk(0, 3, 4)]
    ((chunk, arrived),) = queue.pull(0, 0, 10)
    queue.insert(chunk, 20, arrived)
    assert chunk == Chunk(0, 4, 5) and (queue.jobs, queue.held) == (1, 0)


@given(st.builds(chunk_of, st.just(0), st.integers(0, 50), st.integers(1, 30), st.integers(1, 4), st.just(0),
                 st.just(1)),
       st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 31)), max_size=6))
def test_urgencies_are_a_function_of_the_index(chunk: Chunk, changes: list[tuple[int, int, int]]) -> None:
    urgencies, model = Urgencies(), dict.fromkeys(range(300))
    for start, stop, value in changes:
        urgencies.set(start, stop, value)
        model.update(dict.fromkeys(range(start, stop), value))  # type: ignore[arg-type]
        before, within, behind = cut(chunk, start, stop)
        parts = [jobs_of(part) if part is not None else [] for part in (before, within, behind)]
        assert [job for part in parts for job in part] == jobs_of(chunk)
        assert [job for job in jobs_of(chunk) if start <= job[1] < max(start, stop)] == parts[1]
    pieces = urgencies.pieces(chunk)
    assert [job for _, part in pieces for job in jobs_of(part)] == jobs_of(chunk)
    assert all(model[job[1]] == value for value, part in pieces for job in jobs_of(part))
    assert [urgencies.at(index) for index in range(80)] == [model[index] for index in range(80)]
    told = {index: value for start, stop, value in urgencies.ranges() for index in range(start, stop or 300)}
    assert told == {index: value for index, value in model.items() if value is not None}
