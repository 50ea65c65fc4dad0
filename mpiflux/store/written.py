"""What jobs wrote, read back from a run directory: blobs of whole batches, and what was sent while jobs ran."""

from __future__ import annotations

import zlib
from collections import OrderedDict

from mpiflux.model.records import FLAG_STREAMED
from mpiflux.store import schema
from mpiflux.store.attempts import Attempt
from mpiflux.store.database import Database
from mpiflux.store.eventlog import Record

STDOUT, STDERR = 1, 2
_CACHED = 64 << 20
"""Bytes of output blobs kept at hand."""


class Written:
    """The output in a database. Raises RunError where it is damaged."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._blobs: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._blob_bytes = 0

    def of(self, attempt: Attempt, stream: int) -> bytes:
        """What an ended attempt wrote to stdout (1) or stderr (2)."""
        record = attempt.record
        at, length = attempt.offset, record.out_len
        if stream == STDERR:
            at, length = at + record.out_len, record.err_len
        rest = self._slice(attempt.batch, at, length) if length else b""
        if record.flags & FLAG_STREAMED:
            return self.streamed(record.id, record.attempt, stream) + rest
        return rest

    def streamed(self, id: int, attempt: int, stream: int) -> bytes:
        """Chunks put together at their offsets: what came twice is taken once."""
        out = bytearray()
        for offset, data in self._db.query("ib", "SELECT offset, data FROM chunks WHERE id=? AND attempt=? "
                                        "AND stream=? ORDER BY offset, number", (id, attempt, stream)):
            out += data[max(len(out) - offset, 0):]
        return bytes(out)

    def whole(self, record: Record) -> Record:
        """A record whose lengths count what was sent while it ran too."""
        if not record.flags & FLAG_STREAMED:
            return record
        sent = {STDOUT: 0, STDERR: 0}
        for stream, stop in self._db.query("ii", "SELECT stream, max(offset + length(data)) FROM chunks "
                                        "WHERE id=? AND attempt=? GROUP BY stream", (record.id, record.attempt)):
            sent[stream] = stop
        return record._replace(out_len=record.out_len + sent[STDOUT], err_len=record.err_len + sent[STDERR])

    def _slice(self, batch: int, at: int, length: int) -> bytes:
        out = b""
        while length > 0:
            part, inside = divmod(at, schema.OUTPUT_PART)
            piece = self._part(batch, part)[inside:inside + length]
            if not piece:
                raise self._db.damaged(f"output of batch {batch} ends early")
            out, at, length = out + piece, at + len(piece), length - len(piece)
        return out

    def _part(self, batch: int, part: int) -> bytes:
        key = (batch, part)
        if key in self._blobs:
            self._blobs.move_to_end(key)
            return self._blobs[key]
        rows = self._db.query("ib", "SELECT crc, data FROM output WHERE batch=? AND part=?", key)
        if not rows or zlib.crc32(rows[0][1]) != rows[0][0]:
            raise self._db.damaged(f"output of batch {batch} is missing or changed")
        data: bytes = rows[0][1]
        self._blobs[key] = data
        self._blob_bytes += len(data)
        while self._blob_bytes > _CACHED and len(self._blobs) > 1:
            self._blob_bytes -= len(self._blobs.popitem(last=False)[1])
        return data
