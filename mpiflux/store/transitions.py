"""What a record, or a batch of them, does to the states of jobs: arrays made of the one table of legal transitions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mpiflux.model.states import TRANSITIONS, State

Array = npt.NDArray[Any]

_ENDED = {State.DEPEND: ("alloc",), State.SCHED: ("alloc", "start", "finish"), State.RUN: ("finish",)}
_UNSTARTED = {State.DEPEND: ("exception",), State.SCHED: ("exception",), State.RUN: ("exception", "finish")}
"""The events that an ended record stands for, by the state it finds and by FLAG_NOT_STARTED."""


def _walk(state: State, events: Iterable[str]) -> int:
    """The state after ``events``, or 0 when the transition table forbids one of them."""
    here = state
    for event in events:
        after = TRANSITIONS.get((here, event))
        if after is None:
            return 0
        here = after
    return int(here)


def _lookup(paths: Mapping[State, tuple[str, ...]], last: str) -> Array:
    """State → state after its path and then ``last``; 0 where that is illegal."""
    table = np.zeros(len(State) + 1, "u1")
    for state, events in paths.items():
        table[state] = _walk(state, (*events, last))
    return table


END = np.stack([[_lookup(paths, last) for last in ("clean", "retry")] for paths in (_ENDED, _UNSTARTED)])
"""[not started][again][state] → state; 0: illegal."""
END[:, 1, State.DEPEND] = 0  # a job that waits for others has no attempt that could be repeated
START = _lookup({State.DEPEND: ("alloc",), State.SCHED: ("alloc",)}, "start")
ALLOC = _lookup(dict.fromkeys(State, ()), "alloc")
"""State → state when an attempt starts, and when a job is handed out; 0: illegal."""
