"""The usual batch of records, at half the price: rank 0 pays for each NumPy call, whatever the number of records.

:meth:`mpiflux.store.jobtable.JobTable.apply` does the same for any batch; a test holds the two together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mpiflux.model.records import SIZE
from mpiflux.model.states import Result, State
from mpiflux.store.applied import Applied

if TYPE_CHECKING:
    from mpiflux.store.jobtable import JobTable

Array = npt.NDArray[Any]

_NOBODY = 0xFFFFFFFF
_NONE = np.zeros(0, "i8")


def words(records: Array) -> Array:
    """Records as rows of eight-byte words: id; attempt, result, flags, returncode and tasks; where; times; and so on.
    They must lie in one piece."""
    return records.view("<u8").reshape(len(records), SIZE // 8)


def complete(table: JobTable, records: Array, batch: int | Array, pos: int | Array) -> Applied | None:
    """End the jobs of a batch of records of current attempts of one group, all alike, completed, without flags and
    found in one state; totals are left to the caller. None, with nothing that matters changed, for any other batch."""
    n = len(records)
    if not n or not len(table) or not records.flags.c_contiguous or not isinstance(batch, int):
        return None
    columns = words(records)
    how = columns[:, 1]
    first = int(how[0])
    if first >> 16 & 0xFFFFFFFF != Result.COMPLETED or not (how == first).all():
        return None
    rows = columns[:, 0].astype("i8") - 1
    low, high = int(rows.min()), int(rows.max())
    if low < 0 or high >= len(table):
        return None
    group = table.group_of(low + 1)
    if not (group == table.group_of(high + 1) and (table.attempt[rows] == first & 0xFFFF).all()):
        return None
    states = table.state[rows]
    state = int(states[0])
    # an attempt of number 0 was never handed out
    if state not in (State.SCHED, State.RUN) or not first & 0xFFFF or not (states == state).all():
        return None
    place = np.arange(n, dtype="u4")
    table.pos[rows] = place
    if not (table.pos[rows] == place).all():
        return None  # a job is in it twice
    table.pos[rows] = place + pos
    # what comes in one piece is written in one piece
    where: Array | slice = slice(low, high + 1) if high - low + 1 == n else rows
    table.batch[where] = batch
    table.returncode[where] = 0
    table.owner[where] = _NOBODY
    table.state[where] = State.INACTIVE
    table.result[where] = Result.COMPLETED
    no = np.zeros(n, bool)
    return Applied(no, no, rows + 1, np.full(n, Result.COMPLETED, "u1"), _NONE, ~no if state == State.RUN else no,
                   {group: (n, 0, 0, 0)}, plain=True)
