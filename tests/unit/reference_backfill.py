"""FCFS, EASY and conservative backfilling of rigid jobs on one pool of identical cores, as the papers tell them.

Written to be read, and to share nothing with mpiflux: the schedules of both must be the same. ``(size, estimate,
runtime, arrival)`` is a job; ``schedule(name, cores, jobs)`` gives the start of each. At every time at which
something arrives, ends or was promised to start, ends come first.
"""

from __future__ import annotations

from collections.abc import Sequence

Job = tuple[int, int, int, int]


def schedule(name: str, cores: int, jobs: Sequence[Job]) -> list[int]:
    """Start times, in the order of ``jobs``; those that arrive together queue in that order."""
    decide = {"fcfs": fcfs, "easy": easy, "conservative": conservative}[name]
    state = State(cores, jobs)
    while state.advance():
        decide(state)
    assert all(start is not None for start in state.start), "a job never started"
    return state.start


class State:
    def __init__(self, cores: int, jobs: Sequence[Job]) -> None:
        self.cores, self.jobs = cores, jobs
        self.now = -1
        self.queue: list[int] = []
        self.running: list[int] = []
        self.start: list[int] = [None] * len(jobs)  # type: ignore[list-item]
        self.slot: dict[int, int] = {}
        """Reserved start of queued jobs (conservative only)."""

    def end(self, j: int) -> int:
        return self.start[j] + self.jobs[j][2]

    def expected_end(self, j: int) -> int:
        return self.start[j] + self.jobs[j][1]

    def advance(self) -> bool:
        """To the next event; False when there is none."""
        times = {self.end(j) for j in self.running} | {job[3] for job in self.jobs if job[3] > self.now}
        times |= set(self.slot.values())
        if not times:
            return False
        self.now = min(times)
        self.running = [j for j in self.running if self.end(j) > self.now]
        self.queue += [j for j, job in enumerate(self.jobs) if job[3] == self.now]
        return True

    def free(self) -> int:
        return self.cores - sum(self.jobs[j][0] for j in self.running)

    def begin(self, j: int) -> None:
        assert self.jobs[j][0] <= self.free()
        self.queue.remove(j)
        self.running.append(j)
        self.start[j] = self.now


def fcfs(state: State) -> None:
    while state.queue and state.jobs[state.queue[0]][0] <= state.free():
        state.begin(state.queue[0])


def easy(state: State) -> None:
    fcfs(state)
    if not state.queue:
        return
    head, *others = state.queue
    # the shadow time: when enough has ended for the head; the extra cores: what is then left beside it
    available, shadow = state.free(), state.now
    for j in sorted(state.running, key=state.expected_end):
        if available >= state.jobs[head][0]:
            break
        available += state.jobs[j][0]
        shadow = state.expected_end(j)
    extra = sum(state.jobs[j][0] for j in state.running if state.expected_end(j) <= shadow) + state.free()
    extra -= state.jobs[head][0]
    for j in others:
        size, estimate = state.jobs[j][:2]
        if size > state.free():
            continue
        if state.now + estimate <= shadow:
            state.begin(j)
        elif size <= extra:
            state.begin(j)
            extra -= size


def conservative(state: State) -> None:
    for j in list(state.queue):
        state.slot.pop(j, None)
        state.slot[j] = earliest(state, j)
        if state.slot[j] == state.now:
            del state.slot[j]
            state.begin(j)


def earliest(state: State, j: int) -> int:
    """The first time from which the job fits for as long as it may run, beside what runs and what is reserved."""
    size, estimate = state.jobs[j][:2]
    taken = [(state.now, state.expected_end(k), state.jobs[k][0]) for k in state.running]
    taken += [(start, start + state.jobs[k][1], state.jobs[k][0]) for k, start in state.slot.items()]
    for start in sorted({state.now} | {end for _, end, _ in taken}):
        times = [start] + [begin for begin, _, _ in taken if start < begin < start + estimate]
        if all(sum(n for begin, end, n in taken if begin <= time < end) + size <= state.cores for time in times):
            return start
    raise AssertionError("nothing is free for ever")
