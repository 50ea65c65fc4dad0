"""The lender's side of borrowing: freeing resources that a parent asks for.

What is free of a claim is taken out of the pool at once, the rest as it falls free; jobs that run are not disturbed,
but nothing new starts there. So a stream of small jobs cannot keep a large one waiting for longer than its longest
running job.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mpiflux.model.messages import NodeShare, ResourceSet
from mpiflux.sched.placement import bits, mask_of
from mpiflux.sched.pool import ResourcePool


class _Wanted:
    """What is still missing of a claim on one node."""

    __slots__ = ("cores", "gpus", "memory", "named", "node")

    def __init__(self, share: NodeShare) -> None:
        self.node, self.memory = share.node, share.memory
        self.cores, self.gpus = mask_of(share.cores), mask_of(share.gpus)
        self.named = dict(share.named)

    def take(self, free: NodeShare) -> NodeShare:
        """The part of what is free that is wanted; wanted no more."""
        cores, gpus = self.cores & mask_of(free.cores), self.gpus & mask_of(free.gpus)
        memory, there = min(self.memory, free.memory), dict(free.named)
        named = tuple((name, n) for name, amount in self.named.items() if (n := min(amount, there.get(name, 0))))
        for name, amount in named:
            self.named[name] -= amount
        self.cores ^= cores
        self.gpus ^= gpus
        self.memory -= memory
        return NodeShare(self.node, bits(cores), bits(gpus), memory, 0, named)

    def __bool__(self) -> bool:
        return bool(self.cores or self.gpus or self.memory or any(self.named.values()))


class _Claim:
    __slots__ = ("era", "idle", "missing", "since", "taken")

    def __init__(self, shares: Sequence[NodeShare], now: float, era: int) -> None:
        self.era = era
        self.missing = [_Wanted(share) for share in shares]
        self.taken = 0
        self.idle = 0.0
        self.since = now


class Claims:
    """All claims on one pool, served in the order in which they came."""

    def __init__(self, pool: ResourcePool) -> None:
        self._pool = pool
        self._claims: dict[int, _Claim] = {}

    def __bool__(self) -> bool:
        return bool(self._claims)

    def waits_below(self, token: int) -> bool:
        """Whether a claim of a lower token is not complete yet."""
        return any(one < token for one in self._claims)

    def drop(self, nodes: Collection[int]) -> None:
        """These nodes are lost: nothing of them is waited for, and nothing told."""
        for token, claim in list(self._claims.items()):
            claim.missing = [wanted for wanted in claim.missing if wanted.node not in nodes]
            if not any(claim.missing):
                del self._claims[token]

    def add(self, token: int, shares: Sequence[NodeShare], now: float, era: int) -> None:
        self._claims[token] = _Claim(shares, now, era)

    @property
    def era(self) -> int:
        """That of the oldest claim: what was queued before it (:attr:`mpiflux.sched.queue.Entry.era`) goes first.
        -1: there is none, as all may have been dropped with a lost node."""
        return min((claim.era for claim in self._claims.values()), default=-1)

    def wants(self, share: NodeShare) -> bool:
        """Whether a claim still misses something of this."""
        cores, gpus = mask_of(share.cores), mask_of(share.gpus)
        return any(wanted.node == share.node and (wanted.cores & cores or wanted.gpus & gpus or (
            wanted.memory and share.memory) or any(amount and wanted.named.get(name) for name, amount in share.named))
                   for claim in self._claims.values() for wanted in claim.missing)

    def nodes(self) -> set[int]:
        """Where something is missing of any claim."""
        return {wanted.node for claim in self._claims.values() for wanted in claim.missing if wanted}

    def collect(self, now: float) -> list[tuple[int, float]]:
        """Take what is free; the claims that are complete by that: (token, idle core-seconds)."""
        done: list[tuple[int, float]] = []
        for token, claim in list(self._claims.items()):
            claim.idle += claim.taken * (now - claim.since)
            claim.since = now
            free = {share.node: share for share in self._pool.free_set().shares}
            shares = []
            for wanted in claim.missing:
                here = free.get(wanted.node)
                if here is not None and wanted:
                    share = wanted.take(here)
                    if share.cores or share.gpus or share.memory or share.named:
                        shares.append(share)
                        claim.taken += len(share.cores)
            if shares:
                self._pool.remove(ResourceSet(tuple(shares)))
            if not any(claim.missing):
                done.append((token, claim.idle))
                del self._claims[token]
        return done
