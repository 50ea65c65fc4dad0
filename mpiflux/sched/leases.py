"""What :mod:`mpiflux.sched.leasing` knows of equal requests, and of who runs jobs of theirs on what."""

from __future__ import annotations

from mpiflux.model import messages as m
from mpiflux.model.jobspec import Request


class Slot:
    """What an executor has of one shape."""

    __slots__ = ("fed", "leases")

    def __init__(self) -> None:
        self.leases: dict[int, Lease] = {}
        self.fed = 0
        """Jobs that it has and has not reported."""


class Shape:
    """Everything about equal requests."""

    def __init__(self, number: int, request: Request, node: int) -> None:
        self.number, self.request = number, request
        self.node = node
        """The only node where such jobs may run; −1: any."""
        self.slots: dict[int, Slot] = {}
        """By executor; gangs have none."""
        self.open: dict[int, None] = {}
        """Executors that may have room for more: a request is often asked for when none has."""
        self.each = 1
        """Jobs that a lease may have by which ``open`` was last looked through."""
        self.full_at = -1
        """The state of the pool at which there was no place for it."""
        self.refused_at = -1
        """The state of pool, reservations and time at which there was none for a job of ``refused_limit`` seconds."""
        self.refused_limit = 0.0


class Lease:
    __slots__ = ("end", "executor", "r", "shape")

    def __init__(self, shape: Shape, executor: int, r: m.ResourceSet, end: float) -> None:
        self.shape, self.executor, self.r = shape, executor, r
        self.end = end
        """When it is expected to end, by the time limits of what was fed to it."""
