"""Endpoints of supervisors that have one job each: where a job is tried alone that may be what ended others. Pure.

A job whose supervisor has died with it more than once is a suspect (:mod:`mpiflux.store.crashes`). Its scheduler gives
it to an endpoint of its own beside that of the executor it would have gone to: the rank of that one makes a supervisor
for it when the job comes, and hangs up when it has ended.
"""

from __future__ import annotations

EXECUTORS = 1 << 32
"""From here on are the endpoints of executors; the end of their range is :mod:`mpiflux.overlay.address`'s to say."""
_APART = 1 << 57
_SCHEDULERS, _PLACES = 36, 24
_MOST_PLACES, _MOST_EXECUTORS = 1 << (_SCHEDULERS - _PLACES), 1 << _PLACES


def apart(scheduler: int, executor: int, place: int) -> int:
    """The ``place``-th endpoint (from 0) that a scheduler has beside an executor."""
    assert place < _MOST_PLACES and executor - EXECUTORS < _MOST_EXECUTORS
    return _APART + (scheduler << _SCHEDULERS) + (place << _PLACES) + executor - EXECUTORS


def is_apart(endpoint: int) -> bool:
    return endpoint >= _APART


def executor_of(endpoint: int) -> int:
    """The executor that an endpoint is beside; of an executor, itself."""
    return EXECUTORS + (endpoint - _APART) % _MOST_EXECUTORS if is_apart(endpoint) else endpoint


def scheduler_of(endpoint: int) -> int:
    """Whose endpoint it is."""
    return (endpoint - _APART) >> _SCHEDULERS
