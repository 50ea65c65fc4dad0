"""What a person asked of ``run``, and what the instance tells back while it goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mpiflux.instance.view import View
    from mpiflux.model.jobspec import Workflow
    from mpiflux.overlay.plan import Plan


@dataclass(frozen=True)
class RunOptions:
    """The options of ``run``; see ``mpiflux run --help``."""

    workflow: str
    """Path of the workflow file; empty with ``initial_program`` alone."""
    run_dir: str | None = None
    resume: bool = False
    rerun: tuple[str, ...] = ()
    """With ``resume``: which ended jobs run again, as results, names and ids."""
    rerun_changed: bool = False
    """With ``resume``: those too that ended before the workflow file changed what they are."""
    hierarchy: str | None = None
    policy: str | None = None
    overrides: dict[str, str] = field(default_factory=dict)
    dry_run: bool = False
    fail_fast: bool = False
    time_limit: float = 0.0
    """Seconds from the start of the run; 0 is unlimited."""
    cores_per_node: int | None = None
    gpus_per_node: int | None = None
    allocation_end: float = 0.0
    """Unix seconds when the batch system ends all this; 0: it does not say."""
    trouble: str = ""
    """What is wrong with the environment, so that nothing can be started."""
    notes: tuple[str, ...] = ()
    """What a person should hear about it."""
    null_exec: bool = False
    """Schedule everything and start nothing."""
    sync_window: float = 0.05
    """Seconds of finished work that a kill may lose."""
    rank_timeout: float = 60.0
    """Seconds after which a rank that gives no sign of life is taken for lost."""
    kvs_limit: int = 1 << 30
    """Bytes that the keys and values of the KVS may take in rank 0's memory."""
    initial_program: tuple[str, ...] = ()
    """A command that rank 0 runs beside the jobs; the instance ends with it, and with its status."""


@dataclass(frozen=True)
class RunInfo:
    """What is known once the tree stands."""

    workflow: Workflow
    plan: Plan
    run_dir: str
    """Empty for a dry run."""
    ranks: int
    nodes: tuple[str, ...]
    cores: int
    gpus: int
    notes: tuple[str, ...] = ()
    """Sentences that a person should hear: about binding, declared resources, pruned schedulers."""
    misfits: tuple[str, ...] = ()
    """Jobs that no scheduler can ever hold, and why (a dry run only; otherwise they are an error)."""
    resumed: int = 0
    """Jobs that an earlier instance had finished."""


class RunObserver(Protocol):
    """Rank 0 tells it how the run goes; it prints. Other ranks have none."""

    def begin(self, info: RunInfo) -> None:
        """The tree stands, jobs start now."""

    def dry_run(self, info: RunInfo) -> None:
        """Instead of ``begin``, when nothing is to be started."""

    def progress(self, view: View) -> None:
        """About ten times a second."""

    def note(self, text: str) -> None:
        """Something a person should hear of, in a sentence."""

    def error(self, text: str) -> None:
        """Why nothing was started, or why the instance failed; may have several lines."""

    def end(self, view: View, status: int) -> None:
        """All is committed; ``status`` is the exit status."""


class RunError(Exception):
    """The run cannot start. ``status`` is the exit status: 2 for wrong input, 3 for a failure of the instance."""

    def __init__(self, text: str, status: int = 2) -> None:
        super().__init__(text)
        self.status = status
