"""What a workflow asks for: typed, immutable, and small enough to be sent once.

A *job group* is one entry of the workflow file's ``jobs`` mapping. Its elements share everything but their
parameters, so a group of a million jobs is one :class:`JobGroup`: a command template, parameter columns and a
count. Elements are expanded only where they start (see :mod:`mpiflux.model.template`).
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from mpiflux.model.params import ParamTable
from mpiflux.model.retry import Retry

STDIN = "-"
"""As ``input`` of a job: what clients write to it."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Resources that one job asks for. Two jobs with equal requests can take each other's place."""

    tasks: int = 1
    """Processes to start. With ``nodes`` > 0: in all, spread evenly over the nodes."""
    cores: int = 1
    """Cores for each task."""
    gpus: int = 0
    """GPUs for each task."""
    nodes: int = 0
    """Number of nodes; 0 lets the tasks fall where they fit."""
    memory: int = 0
    """Bytes for each task; 0 asks for none."""
    exclusive: bool = False
    """Whole nodes, beside nobody else's job."""
    layout: str = "pack"
    """``pack`` fills nodes one after the other, ``spread`` takes the emptiest first."""
    per_node: bool = False
    """One job on every node of the scheduler's R."""
    consumables: dict[str, int] = {}
    """Named resources of the whole job, such as ``burst_buffer``."""

    @property
    def key(self) -> tuple[object, ...]:
        """A hashable name of this shape."""
        return (self.tasks, self.cores, self.gpus, self.nodes, self.memory, self.exclusive, self.layout,
                self.per_node, tuple(sorted(self.consumables.items())))

    @property
    def total_cores(self) -> int:
        return self.tasks * self.cores


class Dependency(msgspec.Struct, frozen=True):
    """``group`` must have ended in a way that satisfies ``kind`` before the dependent may start."""

    group: str
    kind: str = "ok"
    """``ok`` all elements COMPLETED, ``any`` all elements ended in any way, ``not_ok`` at least one failed,
    ``each`` element by element."""
    ids: tuple[int, ...] = ()
    """These jobs instead of the whole group; ``group`` is then only what people read."""
    on: str = "ok"
    """Of kind ``each``: how the element must have ended, ``ok``, ``any`` or ``not_ok``."""


class JobGroup(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of ``jobs``: the template of ``count`` jobs with ids ``first_id … first_id + count - 1``."""

    number: int
    """Position in the workflow, from 0; the wire name of the group."""
    name: str
    first_id: int
    count: int
    command: tuple[str, ...] = ()
    """Argument vector, each item a template. Empty when ``script`` is given. With ``shell`` it is one item."""
    script: str | None = None
    shell: bool = False
    params: ParamTable = ParamTable()
    env: dict[str, str] = {}
    """Values are templates. Merged over the workflow's ``env`` by the loader."""
    secrets: tuple[str, ...] = ()
    """Names of variables whose values come from mpiflux's own environment and are stored nowhere."""
    cwd: str = ""
    """Absolute directory, a template; empty means the directory mpiflux was started in."""
    input: str = ""
    output: str = ""
    """File templates; empty keeps the stream in the store. Relative to ``cwd``."""
    error: str = ""
    request: Request = Request()
    time_limit: float = 0.0
    """Seconds; 0 is unlimited."""
    retries: int = 0
    retry: Retry = Retry()
    """After which failures, and after how long a wait."""
    priority: int = 16
    """Flux's urgency, 0–31; higher starts first, 16 is the default."""
    after: tuple[Dependency, ...] = ()
    begin_time: float = 0.0
    """Unix seconds before which it does not start; with it ``after`` has a dependency of kind ``begin``."""
    begin_after: float = 0.0
    """The same in seconds from its submission."""
    mpi: str = "none"
    """How the tasks of a parallel job find each other: ``none``, ``pmi1``, ``pmix``."""
    duration: str = ""
    """How long it runs in a simulation, a distribution; nothing else looks at it."""
    submitted: bool = False
    """Submitted while the instance ran: not in the workflow file, and its name may be another group's too."""

    base: int = 0
    """Index of its first job: where an entry has got longer, its further jobs are a group of their own, of its name."""

    on: tuple[int, ...] = ()
    """Nodes of a ``per: node`` group, as numbers in the instance's table; see :meth:`node_of`."""

    @property
    def stop_id(self) -> int:
        return self.first_id + self.count

    def node_of(self, index: int) -> int:
        """The only node where an element may run; −1: any."""
        return self.on[index % len(self.on)] if self.on else -1


class PolicySpec(msgspec.Struct, frozen=True):
    name: str = "fcfs"
    """One of mpiflux's own, the name of an entry point, or ``package.module:Class``."""
    options: dict[str, int | float | str | bool] = {}
    directory: str = ""
    """Absolute directory of the workflow file, where a user's own policy is looked for too."""


class LevelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One level of a regular hierarchy."""

    by: str = "node"
    """``node``, ``numa``, ``core``, or ``width``."""
    width: int = 0
    """Number of children of each scheduler of the level above, when ``by`` is ``width``."""
    policy: PolicySpec | None = None
    distribution: str = ""
    """How the level above deals jobs to this one; empty: inherit ``HierarchySpec.distribution``."""


class NestedSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One scheduler of an explicit, possibly uneven hierarchy."""

    name: str = ""
    share_nodes: int = 0
    """What this child takes of its parent's R; all three 0: an even share of what siblings left."""
    share_cores: int = 0
    share_gpus: int = 0
    policy: PolicySpec | None = None
    distribution: str = ""
    children: tuple[NestedSpec, ...] = ()


class HierarchySpec(msgspec.Struct, frozen=True, kw_only=True):
    """The shape of the tree. Neither ``levels`` nor ``nested``: one scheduler (depth 1)."""

    levels: tuple[LevelSpec, ...] | None = None
    nested: NestedSpec | None = None
    distribution: str = "pull"
    """``pull`` or ``round_robin``."""


class Place(NamedTuple):
    """Where something stands."""

    source: str
    """A file, or an option."""
    line: int = 0
    """From 1, as ``column``; 0: the source has no lines."""
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


class Workflow(msgspec.Struct, frozen=True, kw_only=True):
    """A whole workflow file, checked and typed."""

    name: str
    source: str = ""
    """Path of the file it came from, for messages."""
    directory: str = ""
    """Absolute directory of that file; ``{workflow.dir}`` in templates."""
    hierarchy: HierarchySpec | None = None
    """None: one scheduler a node."""
    policy: PolicySpec = PolicySpec()
    groups: tuple[JobGroup, ...] = ()
    controller: tuple[str, ...] = ()
    """A program that rank 0 runs beside the jobs, and that submits more."""
    consumables: dict[str, int] = {}
    """Named resources of the whole instance, such as licences."""
    node_consumables: dict[str, int] = {}
    """Named resources of each node, such as ``burst_buffer``."""
    output_limit: int = 16 << 20
    """Bytes kept of each job's stdout and of its stderr; what is over is dropped and marked."""
    places: dict[str, Place] = {}
    """Where stands what only a machine can find wrong: ``hierarchy``, ``policy NAME``, ``distribution NAME`` and
    ``job NAME`` (its resources, or itself where it says none)."""

    @property
    def total(self) -> int:
        return sum(g.count for g in self.groups)
