"""The run as rank 0 sees it, and whom the master tells: one who prints for people, one who deals with clients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from mpiflux.model import messages as m
from mpiflux.model.jobspec import JobGroup
from mpiflux.store.jobtable import Counts


class Observer(Protocol):
    """Whom the master tells how the run goes; prints for people."""

    def progress(self, view: View) -> None:
        """Called about ten times a second."""

    def note(self, text: str) -> None:
        """Something a person should hear of."""


class Lives(Protocol):
    """Who deals with the loss of ranks."""

    def regrown(self, jobs: int) -> None:
        """The root scheduler goes on without what was lost, and with it so many jobs."""

    def misfit(self, group: JobGroup) -> str | None:
        """Why a job can never run on what is left; None when it can, or nothing was lost."""


class Desk(Protocol):
    """Who deals with clients, and hears what happens to jobs."""

    def handle(self, src: int, message: m.Message, now: float) -> None: ...
    def work(self, now: float) -> None: ...
    def collect(self) -> list[tuple[int, m.Message]]: ...
    def farewell(self, reason: str) -> None: ...
    def descriptors(self) -> list[int]: ...
    def ended(self, place: tuple[int, int], records: Any, report: m.Report, ids: Any) -> None: ...
    def started(self, records: Any) -> None: ...
    def output(self, message: m.Output) -> None: ...
    def stdin_taken(self, message: m.StdinTaken) -> None: ...
    def resources(self, message: m.NewR) -> None: ...
    def explained(self, message: m.Explained) -> None: ...
    def lost(self, endpoint: int) -> None: ...
    def close(self) -> None: ...


@dataclass
class View:
    """The run as rank 0 sees it."""

    counts: Counts
    now: float
    t_start: float
    cores: int
    busy: float = 0.0
    """Core-seconds of ended attempts."""
    failures: list[int] = field(default_factory=list)
    """Ids of the first jobs that failed."""
    interrupted: int = 0
    """The signal that ended the run early, 0 while none did."""
    time_is_up: bool = False
    """It was not a signal but the clock, and that has been said."""
    journal_error: str | None = None
    retried: int = 0
    signalled: int = 0
    """Attempts that a signal from outside has ended."""
    doubtful: int = 0
    """Jobs that ended by themselves so close to it that they are to run again."""
    lost: int = 0
    lost_ranks: int = 0
