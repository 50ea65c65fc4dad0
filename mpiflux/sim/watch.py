"""What a simulation tells whoever looks on: tests that check invariants, statistics. All methods do nothing here."""

from __future__ import annotations

from mpiflux.model import messages as m


class Watcher:
    def sent(self, src: int, dst: int, message: m.Message) -> None:
        """A scheduler, or the master, has sent a message (an endpoint's number each)."""

    def received(self, dst: int, src: int, message: m.Message) -> None:
        """A scheduler has received a message."""

    def leased(self, executor: int, lease: int, r: m.ResourceSet) -> None:
        """An executor has taken a lease."""

    def released(self, executor: int, lease: int) -> None:
        """It has ended it."""

    def job_started(self, executor: int, lease: int, job: int, attempt: int) -> None: ...

    def job_ended(self, executor: int, job: int, attempt: int, result: int) -> None: ...

    def part_started(self, executor: int, part: m.Part) -> None:
        """A node's part of a job that spans nodes."""

    def part_ended(self, executor: int, part: m.Part) -> None: ...

    def executor_died(self, executor: int) -> None:
        """With all of its leases and jobs."""

    def retired(self, schedulers: set[int], executors: tuple[int, ...]) -> None:
        """These schedulers are no more, nor what these executors had, as the root scheduler is about to hear."""

    def final(self, job: int, result: int) -> None:
        """The master has recorded a job's end."""
