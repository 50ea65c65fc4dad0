"""Endpoints: whom a message can be sent to, as plain numbers.

Schedulers have their number in the plan, from 0; executors (supervisors) follow from a rank and a position; the
master, which owns the store, is above the root scheduler.
"""

from __future__ import annotations

from mpiflux.model.apart import EXECUTORS, executor_of, is_apart

MASTER = 1 << 40
EVERYBODY = -1
"""The communicator of all ranks, where others are named by their scheduler."""
_RANKS = 1 << 36
EXECUTORS_A_RANK = 64


def executor(rank: int, position: int) -> int:
    """The endpoint of the ``position``-th supervisor of a rank."""
    return EXECUTORS + rank * EXECUTORS_A_RANK + position


def is_executor(endpoint: int) -> bool:
    """Or one beside it (:mod:`mpiflux.model.apart`)."""
    return EXECUTORS <= endpoint < _RANKS or is_apart(endpoint)


def rank_of_executor(endpoint: int) -> int:
    return (executor_of(endpoint) - EXECUTORS) // EXECUTORS_A_RANK


def control(rank: int) -> int:
    """The endpoint that is a rank itself."""
    return _RANKS + rank


def is_control(endpoint: int) -> bool:
    return _RANKS <= endpoint < MASTER


def rank_of_control(endpoint: int) -> int:
    return endpoint - _RANKS


def communicator(dst: int, src: int) -> int:
    """The scheduler in whose communicator both are: whichever of the two is above the other; or :data:`EVERYBODY`."""
    if is_control(dst) or is_control(src):
        return EVERYBODY
    if is_executor(src):
        return dst
    return src if is_executor(dst) else min(dst, src)
