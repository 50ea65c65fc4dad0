"""Signs of life in virtual time: what :mod:`mpiflux.instance.keeper` and supervisors do about each other's silence.

The clocks of it are the real ones (:mod:`mpiflux.overlay.heartbeat`); what a supervisor does is that of
:mod:`mpiflux.node.patience`, which a test holds together with this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpiflux.model import messages as m
from mpiflux.overlay import address
from mpiflux.overlay.heartbeat import Heartbeat

if TYPE_CHECKING:
    from mpiflux.sim.cluster import Cluster
    from mpiflux.sim.executor import SimExecutor

FENCE = 2 / 3
AGAIN = 1 / 8
"""As in the instance and the node room; a test holds them together."""
_QUIET = 8
"""Time-outs without any other event after which nothing will ever happen again."""


class Lives:
    """All ranks of a cluster watch over each other, with this time-out. ``fenced`` false is a mistake to be found:
    who is cut off from rank 0 goes on for ever, and so do the supervisors of a rank that is stopped."""

    def __init__(self, cluster: Cluster, timeout: float, fenced: bool = True) -> None:
        self.cluster, self.timeout, self.fenced = cluster, timeout, fenced
        self.given_up = self.left = self.impatient = self.frozen = 0
        """Living ranks that rank 0 gave up; ranks that left by themselves; supervisors that did; executors that were
        stopped together with their rank for so long that it was given up while they had jobs."""
        now, ranks = cluster.engine.now, range(len(cluster.ranks))
        self._hearts = [Heartbeat((0,), timeout, now, patience=timeout * FENCE) if rank else
                        Heartbeat(ranks[1:], timeout, now) for rank in ranks]
        self._own_events = self._own_pending = 0
        self._seen = 0
        self._over = False
        self._stirred = now
        for rank in ranks:
            self._at(now, self._beat, rank)

    # -- own events, which are nothing that anybody waits for ----------------------------------------------------

    def _at(self, when: float, action: object, *args: object) -> None:
        self._own_pending += 1
        self.cluster.engine.at(when, self._own, action, *args)

    def _own(self, action: object, *args: object) -> None:
        self._own_pending -= 1
        self._own_events += 1
        assert callable(action)
        action(*args)

    def _is_over(self) -> bool:
        """Nothing is left to watch, for good: the run has ended, or nothing has happened for long."""
        self._over = self._over or self._nothing_left()
        return self._over

    def _nothing_left(self) -> bool:
        cluster, engine = self.cluster, self.cluster.engine
        others = engine.events - self._own_events
        if others != self._seen or engine.pending > self._own_pending:
            self._seen, self._stirred = others, engine.now
        # rank 0 may be stopped, and has to notice what it missed
        if engine.now > max(self._stirred, cluster.ranks[0].busy_until) + _QUIET * self.timeout:
            return True
        if not (cluster.master.over or cluster.master.stopped):
            return False
        network, now = cluster.network, engine.now
        return all(cluster.ranks[rank].alive and not network.never(rank, 0, now) and not network.never(0, rank, now)
                   for rank in cluster.regrouping.living)

    # -- ranks ---------------------------------------------------------------------------------------------------

    def _beat(self, rank: int) -> None:
        cluster, now = self.cluster, self.cluster.now
        one, heart = cluster.ranks[rank], self._hearts[rank]
        if not one.alive or self._is_over():
            return
        if one.busy_until > now:
            self._at(one.busy_until, self._beat, rank)
            return
        if heart.beat(now):
            if rank:
                self._send(rank, 0, now)
            else:
                self._told(0, 0.0)
        silent = heart.silent(now)
        if silent and rank == 0:
            self._give_up([one for one in silent if one in cluster.regrouping.living])
        elif silent and self.fenced:
            self.left += 1
            cluster.end_rank(rank)
            return
        self._at(heart.next, self._beat, rank)

    def _send(self, src: int, dst: int, sent: float) -> None:
        self._own_pending += self.cluster.network.send((address.EVERYBODY, src, dst), src, dst, self.cluster.now,
                                                       self._own, self._arrived, dst, src, sent)

    def _arrived(self, dst: int, src: int, sent: float) -> None:
        cluster, now = self.cluster, self.cluster.now
        one = cluster.ranks[dst]
        if not one.alive or src in one.lost:
            return
        if one.busy_until > now:
            self._at(one.busy_until, self._arrived, dst, src, sent)
        elif dst:
            self._hearts[dst].heard(0, sent)
            self._told(dst, now - sent)
        else:
            self._hearts[0].heard(src, now)
            self._send(0, src, sent)

    def _give_up(self, ranks: list[int]) -> None:
        cluster, now = self.cluster, self.cluster.now
        for rank in ranks:
            self._hearts[0].forget(rank)
            one = cluster.ranks[rank]
            if not one.alive:
                continue
            self.given_up += 1
            cluster.to_rank(address.EVERYBODY, 0, rank,
                            [(address.control(rank), address.control(0), m.Dismissed())], now)
            for number in cluster.executors_of(rank):
                if self._is_frozen(rank, cluster.executors[number]):
                    self.frozen += 1
                    cluster.executors[number].unwatch()
            one.unwatch()
        if ranks:
            cluster.ranks[0].lose(ranks)

    # -- supervisors ---------------------------------------------------------------------------------------------

    def _is_frozen(self, rank: int, executor: SimExecutor) -> bool:
        """Neither the supervisor nor its rank could end anything: they were stopped, or are just awake again."""
        since = self.cluster.now - self.timeout * FENCE / 2
        stopped = self.cluster.ranks[rank].stalled_until
        return stopped > since and (executor.stalled_until > since or executor.born >= stopped)

    def _told(self, rank: int, age: float) -> None:
        """Supervisors hear that their rank lives."""
        for number in self.cluster.executors_of(rank):
            executor = self.cluster.executors[number]
            executor.heard = max(executor.heard, self.cluster.now - age)

    def born(self, executor: SimExecutor) -> None:
        """A supervisor begins to wait for signs of life."""
        executor.heard = self.cluster.now
        if self.fenced:
            self._at(executor.heard + self.timeout * FENCE, self._look, executor, False)

    def _look(self, executor: SimExecutor, doubts: bool) -> None:
        now, patience = self.cluster.now, self.timeout * FENCE
        if not executor.alive or self._is_over():
            return
        if executor.busy_until > now:
            self._at(executor.busy_until, self._look, executor, doubts)
        elif now < executor.heard + patience:
            self._at(executor.heard + patience, self._look, executor, False)
        elif not doubts:
            self._at(now + patience * AGAIN, self._look, executor, True)
        else:
            self.impatient += 1
            self.cluster.kill_executor(executor.number)
