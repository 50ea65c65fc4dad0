"""Job states, results, and the one table of what may follow what (Flux RFC 21, plus retries and reruns).

Codes are bytes because a million of them live in one NumPy column.
"""

from __future__ import annotations

import enum


class State(enum.IntEnum):
    DEPEND = 1
    SCHED = 2
    RUN = 3
    CLEANUP = 4
    INACTIVE = 5


class Result(enum.IntEnum):
    """How an attempt, or a job, ended. LOST is an attempt's only: the job runs again."""

    NONE = 0
    COMPLETED = 1
    FAILED = 2
    CANCELED = 3
    TIMEOUT = 4
    LOST = 5


class IllegalTransition(Exception):
    """A job was told something that cannot follow what it already went through."""

    def __init__(self, job: int, state: State, event: str, eventlog: object = ()) -> None:
        super().__init__(f"job {job}: event {event!r} cannot follow state {state.name}; eventlog: {eventlog}")
        self.job, self.state, self.event = job, state, event


TRANSITIONS: dict[tuple[State, str], State] = {
    (State.DEPEND, "depend"): State.SCHED,
    (State.DEPEND, "exception"): State.CLEANUP,
    (State.SCHED, "alloc"): State.RUN,
    (State.SCHED, "exception"): State.CLEANUP,
    (State.RUN, "start"): State.RUN,
    (State.RUN, "output"): State.RUN,
    (State.RUN, "exception"): State.RUN,
    (State.RUN, "finish"): State.CLEANUP,
    (State.CLEANUP, "release"): State.CLEANUP,
    (State.CLEANUP, "exception"): State.CLEANUP,
    (State.CLEANUP, "retry"): State.SCHED,
    (State.CLEANUP, "clean"): State.INACTIVE,
    (State.INACTIVE, "rerun"): State.DEPEND,
}


def advance(job: int, state: State, event: str, eventlog: object = ()) -> State:
    """The state after ``event``. Raises :class:`IllegalTransition` with the job's eventlog."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(job, state, event, eventlog) from None
