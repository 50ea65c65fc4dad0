"""All that happened to jobs, in order and numbered, so that a subscriber can go on from wherever it was.

Facts come in batches, as rank 0 gets them: a group, the packed records of attempts. They are kept like that, the
older ones compressed (about 20 bytes a job), and told as events only to who asks: a feed that nobody reads costs
next to nothing. Every fact takes as many numbers as it can have events, so an event's number depends on nothing but
the facts before it, and ``read(since)`` gives the same events whenever it is called. Pure.
"""

from __future__ import annotations

import bisect
import zlib
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mpiflux.model.jobspec import JobGroup
from mpiflux.model.records import FIELDS, FLAG_STREAMED
from mpiflux.store.eventlog import Event, Record, attempt_begin, attempt_end, attempt_events

Array = npt.NDArray[Any]
RECORD = np.dtype(list(FIELDS))

STARTED, FINAL, TOLD, DEPENDED = 1, 2, 4, 8
"""Flags of a record: it says that the attempt runs; that it was the job's last; that its start was told before; that
the job's dependencies are met, and nothing else."""
WIDTH = 8
"""Numbers that a record takes: alloc, start, output, exception, finish, release, and clean or retry."""
_BLOCK = 4096
_DECOMPRESSED = 16

Told = tuple[int, int, str, float, dict[str, Any]]
"""(number, job, name, timestamp, context)."""


class Selection:
    """The jobs that a subscriber wants to hear of."""

    def __init__(self, ranges: Sequence[tuple[int, int]] = (), *, every: bool = False) -> None:
        """``ranges`` are (first, stop); ``every``: all jobs, those to come too."""
        self.every = every
        merged: list[tuple[int, int]] = []
        for first, stop in sorted(ranges):
            if stop <= first:
                continue
            if merged and first <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
            else:
                merged.append((first, stop))
        self.ranges = merged
        self._firsts = [first for first, _ in merged]
        self._bounds: Array | None = None

    def add(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Jobs that are newer than all that it has, as ranges in order."""
        for first, stop in ranges:
            if self.ranges and self.ranges[-1][1] == first:
                self.ranges[-1] = (self.ranges[-1][0], stop)
            else:
                self.ranges.append((first, stop))
                self._firsts.append(first)
        self._bounds = None

    @property
    def size(self) -> int:
        return sum(stop - first for first, stop in self.ranges)

    def ids(self) -> Iterator[int]:
        for first, stop in self.ranges:
            yield from range(first, stop)

    def overlaps(self, low: int, high: int) -> bool:
        """Whether it has jobs in low…high."""
        if self.every:
            return True
        at = bisect.bisect(self._firsts, high) - 1
        return at >= 0 and self.ranges[at][1] > low

    def cut(self, first: int, stop: int) -> list[tuple[int, int]]:
        """Its jobs in first … stop−1, as ranges."""
        if self.every:
            return [(first, stop)]
        at = max(bisect.bisect(self._firsts, first) - 1, 0)
        out = []
        for low, high in self.ranges[at:]:
            if low >= stop:
                break
            if high > first:
                out.append((max(low, first), min(high, stop)))
        return out

    def mask(self, ids: Array) -> Array:
        if self.every:
            return np.ones(len(ids), bool)
        if len(self.ranges) == 1:
            first, stop = self.ranges[0]
            one: Array = (ids >= first) & (ids < stop)
            return one
        if self._bounds is None:
            self._bounds = np.array([edge for pair in self.ranges for edge in pair], "u8")
        inside: Array = np.searchsorted(self._bounds, ids, "right") % 2 == 1
        return inside


class _Block:
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


class _GroupFact:
    """Something that is the same for every job of a range: two numbers a job, ``events`` for each."""

    __slots__ = ("events", "first", "n", "number")

    def __init__(self, number: int, first: int, n: int, events: tuple[Event, ...]) -> None:
        self.number, self.first, self.n, self.events = number, first, n, events

    @property
    def stop(self) -> int:
        return self.number + self.n * len(self.events)


class _Submitted:
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


class Feed:
    """See the module. ``next`` is the number that the next event gets."""

    def __init__(self) -> None:
        self.next = 1
        self._numbers: list[int] = []
        self._facts: list[_Block | _GroupFact | _Submitted] = []
        self._cache: OrderedDict[int, tuple[bytes, bytes]] = OrderedDict()
        self._sent: dict[int, tuple[int, int, int]] = {}
        """(attempt, bytes of stdout, of stderr) that a running job has sent, by job."""

    # -- facts -----------------------------------------------------------------------------------------------------

    def submitted(self, group: JobGroup, now: float, *, waits: bool) -> None:
        """``waits``: it cannot start yet."""
        if group.count:
            self._add(_Submitted(self.next, group.first_id, group.count, now, group.priority, group.name, waits))

    def jobs(self, first: int, n: int, *events: Event) -> None:
        """The same events for jobs first … first+n−1."""
        if n:
            self._add(_GroupFact(self.next, first, n, events))

    def output(self, job: int, attempt: int, stream: int, stop: int) -> None:
        """A running job has sent its stdout (1) or stderr (2) up to byte ``stop``."""
        known, out, err = self._sent.get(job, (0, 0, 0))
        if known != attempt:
            out = err = 0
        self._sent[job] = (attempt, stop, err) if stream == 1 else (attempt, out, stop)

    def records(self, records: Array, flags: Array, reasons: dict[int, str]) -> None:
        """Attempts that began or ended, with their flags, one byte each."""
        n = len(records)
        if not n:
            return
        last = self._facts[-1] if self._facts else None
        if not isinstance(last, _Block) or last.sealed or last.stop != self.next:
            last = _Block(self.next)
            self._add(last)
        ids = records["id"]
        last.low, last.high = min(last.low, int(ids.min())), max(last.high, int(ids.max()))
        if reasons:
            attempts = dict(zip(ids.tolist(), records["attempt"].tolist(), strict=True))
            last.reasons.update({(job, attempts[job]): text for job, text in reasons.items() if job in attempts})
        for position in np.flatnonzero(records["flags"] & FLAG_STREAMED).tolist():
            job = int(ids[position])
            attempt, out, err = self._sent.pop(job, (0, 0, 0))
            last.sent[job, attempt] = out, err
        last.pieces.append(records.tobytes())
        last.flags.append(flags.astype("u1").tobytes())
        last.n += n
        self.next = last.stop
        if last.n >= _BLOCK:
            last.seal()

    def _add(self, fact: _Block | _GroupFact | _Submitted) -> None:
        self._facts.append(fact)
        self._numbers.append(fact.number)
        self.next = fact.stop

    # -- reading ---------------------------------------------------------------------------------------------------

    def read(self, since: int, chosen: Selection, names: Collection[str], most: int) -> tuple[list[Told], int]:
        """Events from number ``since`` on, about ``most`` of them, and the number to go on from."""
        out: list[Told] = []
        at = max(bisect.bisect(self._numbers, since) - 1, 0)
        for place in range(at, len(self._facts)):
            fact = self._facts[place]
            if fact.stop <= since:
                continue
            if not isinstance(fact, _Block):
                upto = self._tell_group(fact, since, chosen, names, most, out)
            else:
                upto = self._tell_records(place, fact, since, chosen, names, most, out)
            if upto < fact.stop:
                return out, upto
            if len(out) >= most:
                return out, fact.stop
        return out, max(self.next, since)

    def jobs_since(self, since: int, wanted: Collection[int]) -> set[int]:
        """Those of the ``wanted`` jobs that something happened to from number ``since`` on."""
        found: set[int] = set()
        at = max(bisect.bisect(self._numbers, since) - 1, 0)
        for place in range(at, len(self._facts)):
            fact = self._facts[place]
            if fact.stop <= since:
                continue
            if not isinstance(fact, _Block):
                stop = fact.first + fact.n
                found.update(job for job in wanted if fact.first <= job < stop)
            else:
                skip = max(since - fact.number, 0) // WIDTH
                ids = np.frombuffer(self._data(place, fact)[1], RECORD)["id"][skip:].tolist()
                found.update(job for job in ids if job in wanted)
        return found

    def _tell_group(self, fact: _GroupFact | _Submitted, since: int, chosen: Selection, names: Collection[str],
                    most: int, out: list[Told]) -> int:
        if not chosen.overlaps(fact.first, fact.first + fact.n - 1):
            return fact.stop
        events = fact.events
        width = len(events)
        wanted = [(k, event) for k, event in enumerate(events) if not names or event.name in names]
        if not wanted:
            return fact.stop
        begin = fact.first + max(since - fact.number, 0) // width
        for low, high in chosen.cut(begin, fact.first + fact.n):
            for job in range(low, high):
                number = fact.number + (job - fact.first) * width
                if len(out) >= most:
                    return number
                out += [(number + k, job, *event) for k, event in wanted if number + k >= since]
        return fact.stop

    def _tell_records(self, place: int, fact: _Block, since: int, chosen: Selection, names: Collection[str],
                      most: int, out: list[Told]) -> int:
        if not chosen.overlaps(fact.low, fact.high):
            return fact.stop
        flags, data = self._data(place, fact)
        records = np.frombuffer(data, RECORD)
        skip = max(since - fact.number, 0) // WIDTH
        picked = np.flatnonzero(chosen.mask(records["id"][skip:])) + skip
        for position in picked.tolist():
            number: int = fact.number + position * WIDTH
            if len(out) >= most:
                return number
            record = Record._make(records[position].item())
            reason = fact.reasons.get((record.id, record.attempt), "") if fact.reasons else ""
            if fact.sent:
                out_sent, err_sent = fact.sent.get((record.id, record.attempt), (0, 0))
                record = record._replace(out_len=record.out_len + out_sent, err_len=record.err_len + err_sent)
            for k, event in _events_of(record, flags[position], reason):
                if number + k >= since and (not names or event.name in names):
                    out.append((number + k, record.id, *event))
        return fact.stop

    def _data(self, place: int, fact: _Block) -> tuple[bytes, bytes]:
        if not fact.sealed:
            return fact.data()
        found = self._cache.get(place)
        if found is None:
            found = self._cache[place] = fact.data()
            if len(self._cache) > _DECOMPRESSED:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(place)
        return found


def _events_of(record: Record, flags: int, reason: str) -> list[tuple[int, Event]]:
    """(position in the record's numbers, event)."""
    if flags & DEPENDED:
        return [(0, Event("depend", record.t_alloc, {}))]
    if flags & STARTED:
        return list(enumerate(attempt_begin(record)))
    told = flags & TOLD
    events = attempt_end(record, reason) if told else attempt_events(record, reason)
    events.append(Event("clean", record.t_finish, {}) if flags & FINAL
                  else Event("retry", record.t_finish, {"attempt": record.attempt + 1}))
    return list(enumerate(events, 2 if told else 0))
