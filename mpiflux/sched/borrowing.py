"""The borrower's side: jobs that none of a scheduler's children can hold.

The lowest scheduler whose R holds such a job chooses a place for it on its whole R, asks the children for exactly
that, waits until all have lent it, runs the job there by itself, and gives everything back. One place is borrowed at
a time, in the order of the queue, so that two large jobs never hold half of what the other needs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mpiflux.model import messages as m
from mpiflux.model.jobspec import JobGroup, Request
from mpiflux.sched.leasing import Leasing
from mpiflux.sched.owners import Owners
from mpiflux.sched.pool import ResourcePool
from mpiflux.sched.queue import Entry

Action = tuple[int, m.Message]
_NONE = -1, -1
Parts = dict[int, tuple[m.NodeShare, ...]]
"""Resources by the child that owns them."""


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
        self._began = self._until = 0.0
        self._idle = 0.0
        self._parts: Parts = {}
        """Whose what is being borrowed is."""
        self._held: list[tuple[m.ResourceSet, Parts]] = []
        """What is borrowed and was not returned, and whose it is."""
        self._abandoned: dict[int, tuple[int, tuple[m.NodeShare, ...]]] = {}
        """(child, what it still is to lend) by token: it is not wanted any more."""
        self._now = 0.0
        self._out: list[Action] = []
        own.pool.remove(own.pool.free_set())

    def can_ever(self, request: Request) -> bool:
        return self._whole.can_ever(request) is None

    def start(self, entry: Entry, waiting: int = 0) -> int:
        """Start jobs on what is borrowed already; else begin to borrow for the first one.

        ``waiting`` is the highest urgency of jobs dealt, or to be dealt before it, that wait; 0: there are none.
        If it is higher than the entry's own, nothing is borrowed. If not, both take turns: what is borrowed is used
        again for as long as it took to borrow it, and then goes back, behind what the children have been given.
        """
        group = self.own.catalog.group(entry.chunk.group)
        asker = group.number, group.node_of(entry.chunk.start)
        outranked = waiting > entry.lane.priority
        if asker == self._for:
            self._for = _NONE
        elif outranked or (waiting and self._now >= self._until):
            return 0 if outranked else self._borrow(asker, group)
        started = self.own.start(entry)
        return started or self._borrow(asker, group)

    def _borrow(self, asker: tuple[int, int], group: JobGroup) -> int:
        """Choose a place and ask for it; 0."""
        if self._place is not None or self._for != _NONE or self.own.giving_up:
            # whoever is first in the queue would else give back, time and again, what another has waited for; and what
            # was lost with a rank must not be borrowed from its new owner while a job still ends that was there too
            return 0
        # now, as nothing may ever happen again after the decision that this belongs to
        self.give_back()
        request, node = group.request, asker[1]
        # a node that was lost is not there
        place = self._whole.alloc(request) if node < 0 else (
            self._whole.alloc_on(node, request) if self._whole.fits_on(node, request) else None)
        if place is None:
            return 0
        # only chosen, not taken: what is borrowed leaves ``_whole`` when it has been lent
        self._whole.free(place, request)
        self._ask(place)
        self._asker = asker
        return 0

    def _ask(self, place: m.ResourceSet) -> None:
        self._place, self._began, self._idle = place, self._now, 0.0
        self._parts = self._owners.split(place.shares)
        for child, shares in self._parts.items():
            self._next_token += 1
            self._asked[self._next_token] = child
            self._out.append((child, m.Borrow(self._next_token, shares)))

    def lent(self, src: int, message: m.Lend) -> None:
        """A child has freed its part."""
        if message.token in self._abandoned:
            child, shares = self._abandoned.pop(message.token)
            self._out.append((child, m.Return(shares)))
        if self._asked.pop(message.token, None) is None:
            return
        self._idle += message.idle
        if self._asked or self._place is None:
            return
        place, self._place = self._place, None
        self._until = 2 * self._now - self._began
        self._for = self._asker
        whole = _without_tasks(place)
        self.own.regain(whole.shares)
        self._whole.remove(whole)
        self._held.append((whole, self._parts))
        cores = sum(len(share.cores) for share in place.shares)
        self._out.append((self.parent, m.Borrowed(self.number, cores, self._now - self._began, self._idle)))

    @property
    def lenders(self) -> set[int]:
        """Children of whom something is borrowed."""
        return {child for _, parts in self._held for child in parts}

    def give_back(self) -> None:
        """Return every place on which nothing runs any more."""
        for one in list(self._held):
            place, parts = one
            if not self.own.pool.is_free(place):
                continue
            self._held.remove(one)
            self.own.pool.remove(place)
            self._whole.restore(place)
            self._out += [(child, m.Return(shares)) for child, shares in parts.items()]

    def regrow(self, children: Sequence[tuple[int, ResourcePool]], message: m.Regrow,
               now: float) -> list[tuple[int, int]]:
        """The children are others than they were. What was lost of what ran on borrowed resources."""
        gone = set(message.lost)
        jobs = self.own.dismiss(message.executors, message.resources, now)
        self._abandon(gone)
        given_up: list[m.NodeShare] = []
        held: list[tuple[m.ResourceSet, Parts]] = []
        for place, parts in self._held:
            kept = {child: shares for child, shares in parts.items() if child not in gone}
            if len(kept) < len(parts):
                given_up += _joined([parts[child] for child in parts if child in gone])
                place = m.ResourceSet(_joined(list(kept.values())))
            if kept:
                held.append((place, kept))
        self._held = held
        self._owners = Owners(children)
        self._give_up(given_up, now)
        self._whole = ResourcePool(message.resources)
        for place, _ in held:
            self._whole.remove(place)
        return jobs

    def _give_up(self, shares: Sequence[m.NodeShare], now: float) -> None:
        """What was borrowed from children that are no more. A job that began on it and on what others have lent may
        still run there: until it has ended, that is borrowed from those who have it now."""
        for share in shares:
            then: list[Action] = []
            for child, kept in self._still_used(share):
                self._next_token += 1
                self._out.append((child, m.Borrow(self._next_token, (kept,))))
                then.append((child, m.Return((kept,))))
            self.own.give_up([share], now, then)

    def _still_used(self, share: m.NodeShare) -> list[tuple[int, m.NodeShare]]:
        """(child, what it has now of a share that a job still uses)."""
        state = next(state for state in self.own.pool.states if state.spec.node == share.node)
        cores = tuple(core for core in share.cores if state.busy_cores >> core & 1)
        gpus = tuple(gpu for gpu in share.gpus if state.busy_gpus >> gpu & 1)
        if not cores and not gpus:
            return []
        return list(self._owners.left_of(m.NodeShare(share.node, cores, gpus, share.memory, 0, share.named)).items())

    def _abandon(self, gone: set[int]) -> None:
        """Do not wait for a place of which some will never be lent; what others have lent for it goes back."""
        if self._place is None or gone.isdisjoint(self._parts):
            return
        missing = {child: token for token, child in self._asked.items()}
        for child, shares in self._parts.items():
            if child in gone:
                continue
            if child in missing:
                self._abandoned[missing[child]] = child, shares
            else:
                self._out.append((child, m.Return(shares)))
        self._asked.clear()
        self._place, self._asker = None, _NONE

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
        return self.actions() + self.own.collect(now)

    def actions(self) -> list[Action]:
        """What is to be sent to children and to our parent."""
        out, self._out = self._out, []
        return out


def _joined(parts: Sequence[Sequence[m.NodeShare]]) -> tuple[m.NodeShare, ...]:
    """Parts of several children as one, a share for each node."""
    by_node: dict[int, list[m.NodeShare]] = {}
    for shares in parts:
        for share in shares:
            by_node.setdefault(share.node, []).append(share)
    joined = []
    for node, shares in sorted(by_node.items()):
        named: Counter[str] = Counter()
        for share in shares:
            named.update(dict(share.named))
        joined.append(m.NodeShare(node, tuple(core for share in shares for core in share.cores),
                                  tuple(gpu for share in shares for gpu in share.gpus),
                                  sum(share.memory for share in shares), 0, tuple(named.items())))
    return tuple(joined)


def _without_tasks(place: m.ResourceSet) -> m.ResourceSet:
    return m.ResourceSet(tuple(m.NodeShare(s.node, s.cores, s.gpus, s.memory, 0, s.named) for s in place.shares))
