"""Urgency, then age; with an ageing factor, age becomes urgency."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from mpiflux.model.jobspec import PolicySpec
from mpiflux.sched.policies.base import by_age, number_option
from mpiflux.sched.policies.fcfs import Fcfs
from mpiflux.sched.queue import Entry, WorkQueue


class Priority(Fcfs):
    """Highest urgency first, the oldest of equals first.

    ``ageing``: points of urgency that a job gains for every hour in the queue, 1 by default: so a stream of urgent
    jobs holds up others for hours, and not for ever. 0 keeps urgency strict.

    ``queue_depth`` and ``patience`` are those of ``fcfs``; with ``patience: 0`` it is EASY backfilling by priority.
    """

    name: ClassVar[str] = "priority"
    options: ClassVar[tuple[str, ...]] = ("queue_depth", "patience", "ageing")

    def __init__(self, spec: PolicySpec | None = None) -> None:
        super().__init__(spec)
        self.ageing = number_option(spec or PolicySpec(self.name), "ageing", 1.0)

    def order(self, queue: WorkQueue) -> Iterable[Entry]:
        return by_age(queue, self.ageing) if self.ageing else queue
