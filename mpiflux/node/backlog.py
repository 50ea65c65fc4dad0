"""Jobs that a supervisor was fed and has not started, as index ranges."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mpiflux.model.messages import Chunk
from mpiflux.node.launch import Group


@dataclass(frozen=True)
class Waiting:
    """One job that waits."""

    group: Group
    index: int
    attempt: int
    alone: bool = False

    @property
    def id(self) -> int:
        return self.group.first_id + self.index

    def chunk(self) -> Chunk:
        return Chunk(self.group.number, self.index, self.index + 1, 1, self.attempt, self.alone)


class Span:
    """What is left of a chunk that was fed."""

    __slots__ = ("alone", "attempt", "group", "next", "step", "stop")

    def __init__(self, group: Group, chunk: Chunk) -> None:
        self.group, self.attempt, self.alone = group, chunk.attempt, chunk.alone
        self.next, self.stop, self.step = chunk.start, chunk.stop, chunk.step

    def __len__(self) -> int:
        return len(range(self.next, self.stop, self.step))

    def chunk(self) -> Chunk:
        return Chunk(self.group.number, self.next, self.stop, self.step, self.attempt, self.alone)


class Backlog:
    """Jobs of one shape that wait for a lease, in order; ``owner`` is the scheduler that fed them."""

    __slots__ = ("count", "low", "moved", "owner", "spans")

    def __init__(self, owner: int, now: float) -> None:
        self.owner = owner
        self.spans: deque[Span] = deque()
        self.count = 0
        """Jobs in it."""
        self.low = 0
        """A count at which it is time to report, so that more come before it is empty."""
        self.moved = now
        """When it last grew or shrank."""

    def feed(self, spans: Iterable[Span], now: float) -> None:
        for span in spans:
            self.spans.append(span)
            self.count += len(span)
        self.low = self.count // 3
        self.moved = now

    def next(self, now: float) -> tuple[Group, int, int]:
        """Take the first job: (group, index, attempt)."""
        span = self.spans[0]
        index = span.next
        span.next = index + span.step
        if span.next >= span.stop:
            self.spans.popleft()
        self.count -= 1
        self.moved = now
        return span.group, index, span.attempt

    def advance(self, jobs: int, now: float) -> None:
        """The first ``jobs``, all of the first span, have been taken."""
        span = self.spans[0]
        span.next += jobs * span.step
        if span.next >= span.stop:
            self.spans.popleft()
        self.count -= jobs
        self.moved = now

    def put_back(self, job: Waiting) -> None:
        """Let a job that was taken be the next one again."""
        self.spans.appendleft(Span(job.group, job.chunk()))
        self.count += 1

    def remove(self, wanted: Callable[[int], bool]) -> list[Waiting]:
        """Take out every job for whose id ``wanted`` holds."""
        removed, kept = [], []
        for span in self.spans:
            for index in range(span.next, span.stop, span.step):
                job = Waiting(span.group, index, span.attempt, span.alone)
                if wanted(job.id):
                    removed.append(job)
                else:
                    kept.append(Span(span.group, job.chunk()))
        if removed:
            self.spans = deque(kept)
            self.count = len(kept)
        return removed
