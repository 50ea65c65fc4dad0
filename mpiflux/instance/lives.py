"""What rank 0 does when other ranks are lost (:mod:`mpiflux.overlay.regroup`), and whom it tells.

Jobs that were lost run again elsewhere and use up no retry. Those that nothing left can ever hold are ended.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from mpiflux.instance.keeper import Keeper
from mpiflux.instance.master import Master
from mpiflux.instance.rank import Rank
from mpiflux.model import hostlist, idset
from mpiflux.model import messages as m
from mpiflux.model.jobspec import JobGroup
from mpiflux.model.resources import count
from mpiflux.model.states import State
from mpiflux.overlay import address
from mpiflux.overlay.regroup import ROOT, Regrouping, Tree


class Lives:
    """Implements :class:`mpiflux.instance.keeper.Lives`. ``host_of(rank)`` names a rank's node, ``hosts`` are all of
    them, in the order of the node table."""

    def __init__(self, rank: Rank, keeper: Keeper, tree: Tree, master: Master, timeout: float, hosts: Sequence[str],
                 host_of: Callable[[int], str]) -> None:
        self._rank, self._keeper, self._master = rank, keeper, master
        self._timeout, self._hosts, self._host_of = timeout, hosts, host_of
        self._regrouping = Regrouping(tree, range(rank.transport.size))
        self._untold: list[tuple[int, str]] = []
        """Lost ranks of whom the person has not heard, and how they were found out."""
        self._left: set[int] = set()
        self._all_leave = False
        """Every rank has been told that it may leave: who is missing from now on has left."""
        self._lost: list[dict[str, Any]] = []
        master.lives = self

    # -- losses --------------------------------------------------------------------------------------------------

    def missing(self, gone: set[int], silent: Collection[int]) -> None:
        lost = sorted((gone | set(silent)) & self._regrouping.living - {0})
        if not lost or self._all_leave:
            return
        for rank in lost:
            # should it come back, this is the first thing that it reads
            self._rank.transport.send(address.EVERYBODY, rank, m.encode(
                [(address.control(rank), address.control(0), m.Dismissed())]))
            self._keeper.forget(rank)
            self._untold.append((rank, "its process is gone" if rank in gone else
                                 f"no sign of life for {self._timeout:g} s"))
            if self._master.desk is not None:
                self._master.desk.lost(address.control(rank))
        told = self._regrouping.lose(lost)
        if self._master.over:
            self.regrown(0)
            self._check_left()
        else:
            for rank in sorted(self._regrouping.living):
                self._tell(rank, told)

    def regrouped(self, rank: int, generation: int) -> None:
        reason = f"{_ranks(self._untold, self._host_of)} lost" if self._untold else ""
        told = self._regrouping.regrouped(rank, generation, reason) if not self._master.over else None
        if told is not None:
            self._rank.deliver(ROOT, address.MASTER, told)
            self._end_what_cannot_run(reason)

    def _end_what_cannot_run(self, reason: str) -> None:
        master = self._master
        for group in list(master.groups):
            why, indices = self._regrouping.impossible(group)
            ids = np.asarray(indices, "i8") + group.first_id
            ids = ids[master.table.state[ids - 1] != State.INACTIVE]
            if len(ids):
                text = f"{reason}, and the job {why}; go on with run --resume on enough nodes"
                master.observer.note(f"job {group.name!r} {why}, in what is left: {count(len(ids), 'job')} cancelled")
                master.cancel(ids, text)

    def misfit(self, group: JobGroup) -> str | None:
        """Why a job can never run on what is left, in words."""
        why, indices = self._regrouping.impossible(group) if self._lost else ("", ())
        return f"job {group.name!r} {why}, in what is left of the instance" if indices else None

    def regrown(self, jobs: int) -> None:
        """The root scheduler goes on without them; so many jobs were lost."""
        if not self._untold:
            return
        untold, self._untold = self._untold, []
        master, now = self._master, self._master.now()
        hows = ", ".join(dict.fromkeys(how for _, how in untold))
        again = f"{count(jobs, 'job')} run{'s' if jobs == 1 else ''} again elsewhere"
        end = again if jobs else "no job is lost by that"
        master.observer.note(f"{_ranks(untold, self._host_of)} lost ({hows}): {end}")
        for rank, how in untold:
            fact = {"rank": rank, "node": self._host_of(rank), "how": how}
            self._lost.append({**fact, "t": now})
            master.journal.append_event(0, now, "lost", fact)
        master.view.lost_ranks = len(self._lost)
        root = self._regrouping.tree.root
        left = {part.node: part for part in root.resources}
        master.journal.set_meta(
            lost=self._lost, cores=sum(len(part.cores) for part in root.resources),
            gpus=sum(len(part.gpus) for part in root.resources), ranks=len(self._regrouping.living),
            resources=[{"node": name, "cores": idset.encode(left[at].cores), "gpus": idset.encode(left[at].gpus),
                        "memory": left[at].memory, "consumables": left[at].consumables}
                       for at, name in enumerate(self._hosts) if at in left])

    # -- the end -------------------------------------------------------------------------------------------------

    def left(self, rank: int) -> None:
        self._left.add(rank)
        self._check_left()

    def _check_left(self) -> None:
        if 0 in self._left and self._left >= self._regrouping.living and not self._all_leave:
            self._all_leave = True
            for rank in sorted(self._regrouping.living):
                self._tell(rank, m.Leave(self._keeper.clean))

    def _tell(self, rank: int, message: m.Message) -> None:
        self._rank.deliver(address.control(rank), address.control(0), message)


def _ranks(ranks: Sequence[tuple[int, str]], host_of: Callable[[int], str]) -> str:
    """``rank 3 on n1 is``, ``ranks 4-7 on n2 are``."""
    numbers = sorted(rank for rank, _ in ranks)
    hosts = hostlist.encode(dict.fromkeys(map(host_of, numbers)))
    return f"rank {numbers[0]} on {hosts} is" if len(numbers) == 1 else f"ranks {idset.encode(numbers)} on {hosts} are"
