"""Starts that fail for want of something that may come back, such as processes or descriptors: tried again for a while.

The leases wait here; their jobs are the next ones of their backlog again.
"""

from __future__ import annotations

from mpiflux.node.launch import Lease

AGAIN = 0.1
"""Seconds before another try."""
PATIENCE = 10.0
"""Seconds of such trying, in which nothing could be started, after which the job fails."""


class Shortage:
    """Of one supervisor. Times are of its clock."""

    def __init__(self) -> None:
        self.leases: list[Lease] = []
        """Those whose next job could not be started."""
        self.since = 0.0
        """When starts began to fail; 0: the last one went well, as who starts says."""
        self.at = 0.0
        """When to try again, while there are leases."""

    def bears(self, lease: Lease, now: float) -> bool:
        """A start on this lease has failed. True: it is tried again at :attr:`at`. False: that has been long enough."""
        self.since = self.since or now
        if now - self.since >= PATIENCE:
            self.since = 0.0
            return False
        self.leases.append(lease)
        self.at = now + AGAIN
        return True

    def take(self) -> list[Lease]:
        """Take the leases, for another try."""
        leases, self.leases = self.leases, []
        return leases
