"""Jobs that stand in line at an executor, and the places that they must not delay.

Any of what an executor has in line for a shape may run on any of its leases for that shape (a
:class:`~mpiflux.sched.leases.Slot`), so each of these leases ends when the last of the line does. Pure.
"""

from __future__ import annotations

from mpiflux.model import messages as m
from mpiflux.sched.catalog import Catalog
from mpiflux.sched.handed import AHEAD, Handed
from mpiflux.sched.leases import Slot
from mpiflux.sched.profile import Timetable


class Lines:
    """Of all executors of a scheduler. Ends of leases are known to ``table``, once there is one."""

    def __init__(self, handed: Handed, catalog: Catalog) -> None:
        self._handed, self._catalog = handed, catalog
        self.table: Timetable | None = None

    def begin(self, table: Timetable, slots: list[tuple[int, Slot]]) -> None:
        """From now on there is a timetable, which knows all leases; (executor, what it has) of those with some."""
        self.table = table
        for executor, slot in slots:
            if slot.until:
                slot.until += self.longest_wait(slot, executor) - AHEAD
            self.expect(slot, executor)

    def may_extend(self, slot: Slot, end: float, group: int) -> bool:
        """Keep the leases for more jobs of a group, of which the last has ended at ``end``, unless that delays a place
        of another."""
        end = max(slot.until, end)
        table = self.table
        if table is not None and table.booked and any(
                table.delays(lease.r, lease.shape.request, table.end(number), end, group)
                for number, lease in slot.leases.items()):
            return False
        slot.until = end
        return True

    def stands_apart(self, slot: Slot, executor: int, lease: tuple[m.ResourceSet, float], chunk: m.Chunk, each: int,
                     waits: bool) -> bool:
        """Whether the job of a new lease, (R, when it ends at the latest), must not stand in line with those that its
        executor has: because that would delay a place, or because it is the first in the queue, and what it was
        promised would go to those in line (``waits``)."""
        table, (r, end) = self.table, lease
        last = slot.until if waits else max(slot.until, end + self.longest_wait(slot, executor))
        if table is not None and not table.booked and waits and each == 1:
            return True
        if table is not None and table.booked and table.delays(
                r, self._catalog.group(chunk.group).request, end, last, -1 if waits else chunk.group):
            return True
        return not waits and not self.may_extend(slot, last, chunk.group)

    def longest_wait(self, slot: Slot, executor: int) -> float:
        """Seconds after which all that an executor has in line has begun: leases with long jobs are no help to it."""
        if self.table is None:
            return AHEAD
        held, leases = self._handed.by(executor), len(slot.leases)
        long = sum(lease.job in held and not self._handed.ahead(self._catalog.locate(lease.job)[0].number)
                   for lease in slot.leases.values())
        return AHEAD * max(leases, 1) / max(leases - long, 1)

    def expect(self, slot: Slot, executor: int) -> bool:
        """Have the timetable know when leases end, after something was fed or reported that may have changed it;
        whether it has."""
        table = self.table
        if table is None or not slot.until:
            return False
        moved = False
        for number, end in slot.expect(self._handed.by(executor)):
            moved = table.move(number, end) or moved
        return moved
