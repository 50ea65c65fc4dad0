"""What :mod:`mpiflux.instance.broker_feed` remembers: facts, of which each is one or many events, and old ones by the
hundred in a few bytes. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import msgspec

from mpiflux.store.eventlog import Event

WIDTH = 8
"""Numbers that a record takes: alloc, start, output, exception, finish, release, and clean or retry."""


class Block:
    """Facts of one kind with consecutive numbers."""

    __slots__ = ("flags", "high", "low", "n", "number", "pieces", "reasons", "sealed", "sent")

    def __init__(self, number: int) -> None:
        self.number, self.n = number, 0
        self.low, self.high = 1 << 62, 0
        self.pieces: list[bytes] = []
        self.flags: list[bytes] = []
        self.reasons: dict[tuple[int, int], str] = {}
        self.sent: dict[tuple[int, int], tuple[int, int]] = {}
        """Bytes of stdout and of stderr that an attempt had sent before its record, by (job, attempt)."""
        self.sealed = b""

    def seal(self) -> None:
        self.sealed = zlib.compress(b"".join(self.flags) + b"".join(self.pieces), 1)
        self.pieces, self.flags = [], []

    def data(self) -> tuple[bytes, bytes]:
        """(flags, records)."""
        if not self.sealed:
            if len(self.pieces) > 1:
                self.pieces, self.flags = [b"".join(self.pieces)], [b"".join(self.flags)]
            return self.flags[0], self.pieces[0]
        both = zlib.decompress(self.sealed)
        return both[:self.n], both[self.n:]

    @property
    def stop(self) -> int:
        return self.number + self.n * WIDTH

    def pack(self) -> tuple[Any, ...]:
        flags, records = self.data()
        return "b", self.number, self.n, self.low, self.high, flags, records, [
            (*key, text) for key, text in self.reasons.items()], [(*key, *sizes) for key, sizes in self.sent.items()]

    @classmethod
    def unpack(cls, number: int, n: int, low: int, high: int, flags: bytes, records: bytes, reasons: Sequence[Any],
               sent: Sequence[Any]) -> Block:
        block = cls(number)
        block.n, block.low, block.high = n, low, high
        block.flags, block.pieces = [flags], [records]
        block.reasons = {(job, attempt): text for job, attempt, text in reasons}
        block.sent = {(job, attempt): (out, err) for job, attempt, out, err in sent}
        return block


class GroupFact:
    """Something that is the same for every job of a range: two numbers a job, ``events`` for each."""

    __slots__ = ("events", "first", "n", "number")

    def __init__(self, number: int, first: int, n: int, events: tuple[Event, ...]) -> None:
        self.number, self.first, self.n, self.events = number, first, n, events

    @property
    def stop(self) -> int:
        return self.number + self.n * len(self.events)

    def pack(self) -> tuple[Any, ...]:
        return "g", self.number, self.first, self.n, [tuple(event) for event in self.events]

    @classmethod
    def unpack(cls, number: int, first: int, n: int, events: Sequence[Any]) -> GroupFact:
        return cls(number, first, n, tuple(Event(*event) for event in events))


class Submitted:
    """The same of jobs that were submitted, of which there may be as many as jobs: their events are made when they are
    told."""

    __slots__ = ("_name", "_now", "_urgency", "_waits", "first", "n", "number")

    def __init__(self, number: int, first: int, n: int, now: float, urgency: int, name: str, waits: bool) -> None:
        self.number, self.first, self.n = number, first, n
        self._now, self._urgency, self._name, self._waits = now, urgency, name, waits

    @property
    def events(self) -> tuple[Event, ...]:
        submit = Event("submit", self._now, {"urgency": self._urgency, "name": self._name})
        return (submit,) if self._waits else (submit, Event("depend", self._now, {}))

    @property
    def stop(self) -> int:
        return self.number + self.n * (1 if self._waits else 2)

    def pack(self) -> tuple[Any, ...]:
        return "s", self.number, self.first, self.n, self._now, self._urgency, self._name, self._waits


Fact = Block | GroupFact | Submitted
_MAKE: dict[str, Any] = {"b": Block.unpack, "g": GroupFact.unpack, "s": Submitted}


class Archive:
    """Old facts in a row. Where jobs are submitted one by one there are as many as jobs, and nobody asks for most."""

    __slots__ = ("data", "number", "stop")

    def __init__(self, facts: Sequence[Fact]) -> None:
        self.number, self.stop = facts[0].number, facts[-1].stop
        self.data = zlib.compress(msgspec.msgpack.encode([fact.pack() for fact in facts]), 1)

    def facts(self) -> list[Fact]:
        return [_MAKE[kind](*rest) for kind, *rest in msgspec.msgpack.decode(zlib.decompress(self.data))]
