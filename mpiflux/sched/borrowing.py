"""The borrower's side: jobs that none of a scheduler's children can hold.

The lowest scheduler whose R holds such a job chooses a place for it on its whole R, asks the children for exactly
that, waits until all have lent it, runs the job there by itself, and gives everything back. One place is borrowed at
a time, in the order of the queue, so that two large jobs never hold half of what the other needs.
"""

from __future__ import annotations

from mpiflux.model import messages as m
from mpiflux.model.jobspec import Request
from mpiflux.sched.leasing import Leasing
from mpiflux.sched.owners import Owners
from mpiflux.sched.pool import ResourcePool
from mpiflux.sched.queue import Entry

Action = tuple[int, m.Message]
_NONE = -1, -1


class Borrower:
    """Runs oversized jobs on what it borrows. ``own`` starts with nothing free."""

    def __init__(self, number: int, parent: int, own: Leasing, whole: ResourcePool, owners: Owners) -> None:
        self.number, self.parent, self.own = number, parent, own
        self._whole = whole
        """All of R, less what is borrowed: where places are chosen."""
        self._owners = owners
        self._next_token = number << 24
        self._asked: dict[int, int] = {}
        """Who has not lent yet, by token."""
        self._asker = _NONE
        """The group for which that is, and the node if its jobs are for one each."""
        self._place: m.ResourceSet | None = None
        """What is being borrowed; None while nothing is."""
        self._for = _NONE
        """The same of whom a place was borrowed for and has not been offered yet."""
        self._began = 0.0
        self._idle = 0.0
        self._held: list[m.ResourceSet] = []
        """What is borrowed and was not returned."""
        self._now = 0.0
        self._out: list[Action] = []
        own.pool.remove(own.pool.free_set())

    def can_ever(self, request: Request) -> bool:
        return self._whole.can_ever(request) is None

    def start(self, entry: Entry) -> int:
        """Start jobs on what is borrowed already; else begin to borrow for the first one."""
        started = self.own.start(entry)
        group = self.own.catalog.group(entry.chunk.group)
        asker = group.number, group.node_of(entry.chunk.start)
        if asker == self._for:
            self._for = _NONE
        if started or self._place is not None or self._for != _NONE:
            # whoever is first in the queue would else give back, time and again, what another has waited for
            return started
        # now, as nothing may ever happen again after the decision that this belongs to
        self.give_back()
        request, node = group.request, asker[1]
        place = self._whole.alloc(request) if node < 0 else self._whole.alloc_on(node, request)
        if place is None:
            return 0
        # only chosen, not taken: what is borrowed leaves ``_whole`` when it has been lent
        self._whole.free(place, request)
        self._ask(place)
        self._asker = asker
        return 0

    def _ask(self, place: m.ResourceSet) -> None:
        self._place, self._began, self._idle = place, self._now, 0.0
        for child, shares in self._owners.split(place.shares).items():
            self._next_token += 1
            self._asked[self._next_token] = child
            self._out.append((child, m.Borrow(self._next_token, shares)))

    def lent(self, src: int, message: m.Lend) -> None:
        """A child has freed its part."""
        if self._asked.pop(message.token, None) is None:
            return
        self._idle += message.idle
        if self._asked or self._place is None:
            return
        place, self._place = self._place, None
        self._for = self._asker
        whole = _without_tasks(place)
        self.own.regain(whole.shares)
        self._whole.remove(whole)
        self._held.append(whole)
        cores = sum(len(share.cores) for share in place.shares)
        self._out.append((self.parent, m.Borrowed(self.number, cores, self._now - self._began, self._idle)))

    def give_back(self) -> None:
        """Return every place on which nothing runs any more."""
        for place in list(self._held):
            if not self.own.pool.is_free(place):
                continue
            self._held.remove(place)
            self.own.pool.remove(place)
            self._whole.restore(place)
            self._out += [(child, m.Return(shares)) for child, shares in self._owners.split(place.shares).items()]

    def split(self, shares: tuple[m.NodeShare, ...]) -> dict[int, tuple[m.NodeShare, ...]]:
        """Resources by the child that owns them."""
        return self._owners.split(shares)

    def unclaimed(self) -> bool:
        """Whether who waited for a place has not come for it in this round: others, told to wait, may ask now."""
        unclaimed, self._for = self._for != _NONE, _NONE
        return unclaimed

    def at(self, now: float) -> None:
        self._now = now
        self.own.at(now)

    def collect(self, now: float) -> list[Action]:
        self.at(now)
        if self._held:
            self.give_back()
        out, self._out = self._out, []
        return out + self.own.collect(now)


def _without_tasks(place: m.ResourceSet) -> m.ResourceSet:
    return m.ResourceSet(tuple(m.NodeShare(s.node, s.cores, s.gpus, s.memory, 0, s.named) for s in place.shares))
