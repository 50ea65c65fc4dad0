"""Plain values that a live instance gives: events, changes of keys, messages, job records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple


class JobEvent(NamedTuple):
    """What happened to a job. ``timestamp`` in Unix seconds; ``context`` is JSON."""

    name: str
    timestamp: float
    context: dict[str, Any]
    job: int
    number: int
    """Its place among all events of the instance: ``events(since=number + 1)`` goes on after it."""


class Change(NamedTuple):
    """A key's new value. ``value`` is None where ``deleted``."""

    key: str
    value: Any
    version: int
    """The store's version: the same for all changes of a transaction."""
    deleted: bool = False


class Message(NamedTuple):
    topic: str
    payload: Any


class Value(NamedTuple):
    """A key's value and the version at which it was set, for compare-and-swap."""

    value: Any
    version: int


class Piece(NamedTuple):
    """Something that a job has written."""

    stream: str
    """``stdout`` or ``stderr``."""
    data: bytes
    offset: int
    """Where it begins in what the attempt has written to this stream."""
    attempt: int = 1
    """Higher than that of the piece before: the job runs again, and what it wrote before does not count."""

    @property
    def text(self) -> str:
        """Bytes that are not UTF-8 as surrogateescape shows them; a character may be cut between two pieces."""
        return self.data.decode("utf-8", "surrogateescape")


class Counts(NamedTuple):
    """How jobs ended."""

    completed: int
    failed: int
    canceled: int
    timeout: int

    @property
    def ok(self) -> bool:
        """All of them completed."""
        return not (self.failed or self.canceled or self.timeout)


@dataclass(frozen=True)
class Record:
    """The job record of DESIGN 1.1. Times are Unix seconds, ``utime`` and ``stime`` seconds, ``maxrss`` bytes."""

    id: int
    name: str
    index: int
    """Position in its group, from 0."""
    params: dict[str, int | float | str | bool]
    state: str
    """``DEPEND``, ``SCHED``, ``RUN``, ``CLEANUP`` or ``INACTIVE``."""
    result: str | None
    """``COMPLETED``, ``FAILED``, ``CANCELED``, ``TIMEOUT``; None until it has ended."""
    returncode: int | None
    """As :mod:`subprocess` gives it: −N for signal N. None until it has ended."""
    attempts: int
    tasks: int
    nodes: list[str]
    cores: str | list[str]
    """Logical core numbers as an idset such as ``0-3``; one a node where there are several nodes."""
    gpus: str | list[str]
    t_submit: float
    t_start: float | None
    t_finish: float | None
    utime: float | None
    stime: float | None
    maxrss: int | None
    reason: str
    """Why it ended so, where there is more to say than its returncode."""
    truncated: list[str] = field(default_factory=list)
    """``stdout``, ``stderr``: of which only the first ``output_limit`` bytes were kept."""

    @property
    def ok(self) -> bool:
        return self.result == "COMPLETED"


@dataclass(frozen=True)
class Result(Record):
    """The record of a job that has ended, with what it wrote."""

    stdout: str = ""
    """Text; bytes that are not UTF-8 as Python's surrogateescape shows them."""
    stderr: str = ""
