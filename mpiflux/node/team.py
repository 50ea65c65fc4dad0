"""The tasks that a parallel job has on this node: who they are, what only one of them is told, and their PMI server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mpiflux.model import messages as m
from mpiflux.model.pmi import Abort, PmiServer, mpich_segments, nobody_asked, process_mapping
from mpiflux.node.pmi import PmiService, remove_named


class Team:
    """Made for one attempt; :meth:`close` once nothing of it runs here any more.

    ``tasks`` counts those of each node, and ``part`` says which of the nodes is this one; ``hosts`` is the list of
    their names as jobs see it, ``host`` this one's. With ``kvsname`` the tasks are served PMI-1.
    """

    starts_all = False
    """Its one process here starts all tasks of this node."""

    def __init__(self, tasks: Sequence[int], part: int, hosts: str, host: str, kvsname: str = "") -> None:
        self.size, self.part, self.parts, self.hosts, self.host = sum(tasks), part, len(tasks), hosts, host
        self.first = sum(tasks[:part])
        self.local = tasks[part]
        self.message: m.Part | None = None
        """Whose answer is due, where other parts are elsewhere."""
        self.null = -1
        """/dev/null, which all tasks read but the first."""
        self.alive: dict[int, int] = {}
        """Ranks by pid."""
        self.kvsname = kvsname
        self.pmi: PmiService | None = None
        if kvsname:
            mapping = process_mapping([node for node, count in enumerate(tasks) for _ in range(count)])
            ranks = range(self.first, self.first + self.local)
            self.pmi = PmiService(PmiServer(self.size, kvsname, mapping, ranks=ranks))

    def variables(self, task: int) -> Mapping[str, str]:
        """What the ``task``-th task of this node is told and others are not. Start it now, and nothing else, and then
        call :meth:`started`. Raises OSError when there are no descriptors left."""
        own = {"MPIFLUX_TASK_COUNT": str(self.size), "MPIFLUX_NODE_LIST": self.hosts}
        if self.pmi is not None:
            own.update(self.pmi.open(self.first + task)[1])
        return own

    def started(self, task: int, pid: int) -> None:
        """A task exists; with ``pid`` 0 it could not be made."""
        rank = self.first + task
        if self.pmi is not None:
            self.pmi.started(rank)
            if not pid:
                self.pmi.close_rank(rank)
        if pid:
            self.alive[pid] = rank

    def name(self, rank: int) -> str:
        """A task, in words."""
        return f"task {rank} on {self.host}"

    def aborted(self, action: Abort) -> tuple[int, str]:
        """(returncode, reason) of a job of which a task has asked for the end."""
        said = f": {action.message}" if action.message else ""
        # as of a process that exits with that code
        return action.code & 0xFF or 1, f"{self.name(action.rank)} aborted with code {action.code}{said}"

    def deserted(self) -> int:
        """A rank that has ended while others of this node wait for it; −1 when there is none."""
        if self.pmi is None or len(self.alive) == self.local or not self.pmi.server.stuck():
            return -1
        there = set(self.alive.values())
        return next((rank for rank in self.pmi.server.ranks if rank not in there), -1)

    def oddity(self) -> str:
        """What is to be said although the job has completed; empty: nothing."""
        silent = self.pmi is not None and self.size > 1 and not self.pmi.server.asked
        return nobody_asked(self.size) if silent else ""

    def close(self) -> None:
        """Close what is open, and give back the memory that MPICH's ranks of this node shared."""
        if self.pmi is not None:
            self.pmi.close()
            remove_named([name for name in mpich_segments(self.kvsname, self.parts) if name.endswith(f"_{self.part}")])
