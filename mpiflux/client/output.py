"""What a client knows of a job's output, so that it hears every byte once, also across a lost connection."""

from __future__ import annotations

from typing import Any

from mpiflux.client.records import Piece
from mpiflux.model import requests as r

STREAMS = ("stdout", "stderr")


class Output:
    """What is known of a job's output, to go on from it after a lost connection."""

    def __init__(self, id: int, stream: str = "") -> None:
        if stream not in ("", *STREAMS):
            raise ValueError(f"stream {stream!r}: there are stdout and stderr")
        self.id = id
        self._streams = (STREAMS.index(stream) + 1,) if stream else (1, 2)
        self._attempt = 0
        self._next = [0, 0]

    def op(self, sub: int, since: int) -> r.Follow:
        return r.Follow(sub, self.id, self._streams, self._attempt, (self._next[0], self._next[1]))

    def piece(self, item: list[Any]) -> Piece | None:
        """What is new of an item, if anything is: after a lost connection some come twice."""
        attempt, stream, offset, data = item
        if attempt < self._attempt:
            return None
        if attempt > self._attempt:
            self._attempt, self._next = attempt, [0, 0]
        known = self._next[stream - 1] - offset
        if known >= len(data):
            return None
        if known > 0:
            offset, data = offset + known, data[known:]
        self._next[stream - 1] = offset + len(data)
        return Piece(STREAMS[stream - 1], data, offset, attempt)
