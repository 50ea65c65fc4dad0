"""What of a scheduler's own resources goes to others: lent to the parent while it wants them, or given up for good with
a rank that was lost. What is in use goes when it falls free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mpiflux.model import messages as m
from mpiflux.model.resources import NodeResources
from mpiflux.sched.claims import Claims
from mpiflux.sched.handed import Action
from mpiflux.sched.leases import Lease
from mpiflux.sched.pool import ResourcePool

_GIVEN_UP = -(1 << 60)
"""From here down are the tokens of what is given up, which nobody asked for."""


class Lender:
    """Claims on the resources of ``pool``, in the order in which they are served."""

    def __init__(self, parent: int, pool: ResourcePool) -> None:
        self._parent, self._pool = parent, pool
        self._claims = Claims(pool)
        self._era = 0
        """How often the parent has claimed something."""
        self.pending = False
        """Something became free that a claim may want."""
        self.owned = pool.nodes
        """What there is, less what was lost with a rank."""
        self._drained: set[int] = set()
        """Nodes that were lost."""
        self._given_up = _GIVEN_UP
        self._then: dict[int, Sequence[Action]] = {}
        """What is to be sent when something that was given up is free, by token."""

    @property
    def era(self) -> int:
        """Who came before this has the first choice of what becomes free."""
        return self._claims.era

    @property
    def giving_up(self) -> bool:
        """Whether something that was given up is still in use."""
        return self._claims.waits_below(_GIVEN_UP)

    def nodes(self) -> set[int]:
        """Where something is claimed."""
        return self._claims.nodes()

    def lend(self, message: m.Borrow, now: float, leases: Mapping[int, Lease]) -> list[Action]:
        """The parent wants something. Gives what executors are told: to start nothing more on it."""
        self._era += 1
        return self._claim(message.token, message.shares, now, self._era, leases)

    def _claim(self, token: int, shares: Sequence[m.NodeShare], now: float, era: int,
               leases: Mapping[int, Lease]) -> list[Action]:
        self._claims.add(token, shares, now, era)
        self.pending = True
        # a gang ends by itself with its one job
        return [(lease.executor, m.Revoke(number)) for number, lease in leases.items()
                if lease.executor >= 0 and any(self._claims.wants(share) for share in lease.r.shares)]

    def freed(self) -> None:
        """Something became free."""
        self.pending = bool(self._claims)

    def collect(self, now: float) -> list[Action]:
        """What is said of claims that are free now."""
        self.pending = False
        out: list[Action] = []
        for token, idle in self._claims.collect(now):
            out += self._then.pop(token) if token in self._then else [(self._parent, m.Lend(token, idle))]
        return out

    def lose(self, left: Sequence[NodeResources]) -> None:
        """Nothing is left of nodes that are not in ``left``."""
        self._drained = {part.node for part in self.owned} - {part.node for part in left}
        for node in self._drained:
            self._pool.drain(node)
        self._claims.drop(self._drained)

    def keep(self, left: Sequence[NodeResources]) -> list[m.NodeShare]:
        """Of nodes in ``left`` this is left. Gives what is missing, which is to be given up."""
        missing = _less(self.owned, left)
        kept = {part.node: part for part in left}
        self.owned = tuple(kept.get(part.node, part) for part in self.owned)
        return missing

    def give_up(self, shares: Sequence[m.NodeShare], now: float, then: Sequence[Action],
                leases: Mapping[int, Lease]) -> list[Action] | None:
        """Take these out for good; ``then`` is sent when all of it is free. Gives what executors are told; None when
        there is nothing left of these."""
        shares = [share for share in shares if share.node not in self._drained]
        if not shares:
            return None
        self._given_up -= 1
        self._then[self._given_up] = then
        return self._claim(self._given_up, shares, now, 0, leases)


def _less(before: Sequence[NodeResources], after: Sequence[NodeResources]) -> list[m.NodeShare]:
    """What is missing of nodes of which something is left."""
    left = {part.node: part for part in after}
    shares = []
    for old in before:
        new = left.get(old.node)
        if new is None or new == old:
            continue
        shares.append(m.NodeShare(
            old.node, tuple(sorted(set(old.cores) - set(new.cores))), tuple(sorted(set(old.gpus) - set(new.gpus))),
            old.memory - new.memory, 0,
            tuple((name, less) for name, amount in old.consumables.items()
                  if (less := amount - new.consumables.get(name, 0)))))
    return shares
