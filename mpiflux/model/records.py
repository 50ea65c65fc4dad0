"""The attempt record: everything that one try at running a job left behind, in 72 fixed bytes.

Records travel from supervisors to rank 0 as one packed byte string a batch, are stored as they are, and are read
by NumPy as a structured array: no step of the way handles jobs one by one. ``PACK`` and ``DTYPE`` describe the
same bytes; a test holds them together.
"""

from __future__ import annotations

import struct

# id attempt result flags | returncode tasks | r_sched r_id | t_alloc t_start t_finish | utime stime maxrss |
# out_len err_len | pid
PACK = struct.Struct("<QHBBhHIIdddffIIII")

FIELDS: tuple[tuple[str, str], ...] = (
    ("id", "<u8"), ("attempt", "<u2"), ("result", "u1"), ("flags", "u1"), ("returncode", "<i2"), ("tasks", "<u2"),
    ("r_sched", "<u4"), ("r_id", "<u4"), ("t_alloc", "<f8"), ("t_start", "<f8"), ("t_finish", "<f8"),
    ("utime", "<f4"), ("stime", "<f4"), ("maxrss", "<u4"), ("out_len", "<u4"), ("err_len", "<u4"), ("pid", "<u4"),
)
"""(name, NumPy type) in order. ``maxrss`` is in KiB, times are Unix seconds, ``out_len``/``err_len`` count the
bytes of this attempt's stdout and stderr that follow, in record order, in the batch's output blob."""

SIZE = PACK.size


def ids(records: bytes) -> list[int]:
    """The job ids of packed records."""
    # the id is the first of a record's eight-byte words
    return memoryview(records).cast("Q")[::SIZE // 8].tolist()


FLAG_STDOUT_TRUNCATED = 1
FLAG_STDERR_TRUNCATED = 2
FLAG_STREAMED = 4
"""Earlier output of this attempt was sent in chunks while it ran; the blob holds only the rest."""
FLAG_NOT_STARTED = 8
"""The attempt ended before a process existed: cancelled in the queue, or the command cannot be executed."""
FLAG_REASON = 16
"""A text in the batch's ``reasons`` says why."""

FLAG_CRASHED = 32
"""The attempt had begun when its supervisor, its rank or the instance died (:mod:`mpiflux.store.crashes`). If it is
FAILED and not LOST, that was once too often: no retries are left to the job."""

FLAG_ALONE = 64
"""Of a LOST attempt: it died with a supervisor that ran nothing else (:mod:`mpiflux.model.apart`)."""

NO_R = 0xFFFFFFFF
"""``r_sched`` of an attempt that never had resources."""
