"""All that happened to jobs, in order and numbered, so that a subscriber can go on from wherever it was.

Facts come in batches, as rank 0 gets them: a group, the packed records of attempts. They are kept like that, the
older ones compressed (about 20 bytes a job), and told as events only to who asks: a feed that nobody reads costs
next to nothing. Every fact takes as many numbers as it can have events, so an event's number depends on nothing but
the facts before it, and ``read(since)`` gives the same events whenever it is called. Pure.
"""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from mpiflux.instance.broker_facts import WIDTH, Archive, Block, Fact, GroupFact, Submitted
from mpiflux.model.jobspec import JobGroup
from mpiflux.model.records import FIELDS, FLAG_STREAMED
from mpiflux.store.applied import Applied
from mpiflux.store.eventlog import Event, Record, attempt_begin, attempt_end, attempt_events

Array = npt.NDArray[Any]
RECORD = np.dtype(list(FIELDS))

STARTED, FINAL, TOLD, DEPENDED = 1, 2, 4, 8
"""Flags of a record: it says that the attempt runs; that it was the job's last; that its start was told before; that
the job's dependencies are met, and nothing else."""
_FULL = 4096
"""Records from which on a block is compressed."""
_DECOMPRESSED = 16
_LOOSE = 512
"""Facts that are kept as they are; of more, half are made one archive."""

_T = TypeVar("_T")

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


class Feed:
    """See the module. ``next`` is the number that the next event gets."""

    def __init__(self) -> None:
        self.next = 1
        self._numbers: list[int] = []
        self._facts: list[Fact | Archive] = []
        self._packed = 0
        """So many of them are archives, or large blocks that need not be in one."""
        self._cache: OrderedDict[int, Any] = OrderedDict()
        """What was uncompressed last, by its first event's number: (flags, records) of a block, facts of an archive."""
        self._sent: dict[int, tuple[int, int, int]] = {}
        """(attempt, bytes of stdout, of stderr) that a running job has sent, by job."""

    # -- facts -----------------------------------------------------------------------------------------------------

    def submitted(self, group: JobGroup, now: float, *, waits: bool) -> None:
        """``waits``: it cannot start yet."""
        if group.count:
            self._add(Submitted(self.next, group.first_id, group.count, now, group.priority, group.name, waits))

    def jobs(self, first: int, n: int, *events: Event) -> None:
        """The same events for jobs first … first+n−1."""
        if n:
            self._add(GroupFact(self.next, first, n, events))

    def output(self, job: int, attempt: int, stream: int, stop: int) -> None:
        """A running job has sent its stdout (1) or stderr (2) up to byte ``stop``."""
        known, out, err = self._sent.get(job, (0, 0, 0))
        if known != attempt:
            out = err = 0
        self._sent[job] = (attempt, stop, err) if stream == 1 else (attempt, out, stop)

    def records(self, records: Array, flags: Array, reasons: dict[int, str],
                bounds: tuple[int, int] | None = None) -> None:
        """Attempts that began or ended, with their flags, one byte each. ``bounds`` are the lowest and the highest job
        of records that have no flags of their own."""
        n = len(records)
        if not n:
            return
        last = self._facts[-1] if self._facts else None
        if not isinstance(last, Block) or last.sealed or last.stop != self.next:
            last = Block(self.next)
            self._add(last)
        ids = records["id"]
        low, high = bounds or (int(ids.min()), int(ids.max()))
        last.low, last.high = min(last.low, low), max(last.high, high)
        if reasons:
            attempts = dict(zip(ids.tolist(), records["attempt"].tolist(), strict=True))
            last.reasons.update({(job, attempts[job]): text for job, text in reasons.items() if job in attempts})
        for position in () if bounds else np.flatnonzero(records["flags"] & FLAG_STREAMED).tolist():
            job = int(ids[position])
            attempt, out, err = self._sent.pop(job, (0, 0, 0))
            last.sent[job, attempt] = out, err
        last.pieces.append(records.tobytes())
        last.flags.append(flags.astype("u1").tobytes())
        last.n += n
        self.next = last.stop
        if last.n >= _FULL:
            last.seal()

    def ended(self, records: Array, applied: Applied, reasons: dict[int, str]) -> None:
        """Attempts that ended, but for those that the table has refused; ``applied`` is what it says of them."""
        flags = applied.ran * np.uint8(TOLD)
        if applied.plain:
            ids = applied.ended
            self.records(records, flags | np.uint8(FINAL), reasons, (int(ids.min()), int(ids.max())))
            return
        if len(applied.again):
            flags |= np.where(np.isin(records["id"], applied.again), np.uint8(0), np.uint8(FINAL))
        else:
            flags |= np.uint8(FINAL)
        refused = applied.late | applied.repeated
        if refused.any():
            records, flags = records[~refused], flags[~refused]
        self.records(records, flags, reasons)

    def _add(self, fact: Fact) -> None:
        self._facts.append(fact)
        self._numbers.append(fact.number)
        self.next = fact.stop
        if len(self._facts) - self._packed > _LOOSE:
            self._archive(self._packed, self._packed + _LOOSE // 2)

    def _archive(self, start: int, stop: int) -> None:
        """Compress old facts, but for blocks that are compressed already."""
        packed: list[Fact | Archive] = []
        loose: list[Fact] = []
        for fact in self._facts[start:stop]:
            if isinstance(fact, Archive) or (isinstance(fact, Block) and fact.sealed):
                packed += [Archive(loose), fact] if loose else [fact]
                loose = []
            else:
                loose.append(fact)
        if loose:
            packed.append(Archive(loose))
        self._facts[start:stop] = packed
        self._numbers[start:stop] = [fact.number for fact in packed]
        self._packed = start + len(packed)

    # -- reading ---------------------------------------------------------------------------------------------------

    def read(self, since: int, chosen: Selection, names: Collection[str], most: int) -> tuple[list[Told], int]:
        """Events from number ``since`` on, about ``most`` of them, and the number to go on from."""
        out: list[Told] = []
        for fact in self._since(since):
            if not isinstance(fact, Block):
                upto = self._tell_group(fact, since, chosen, names, most, out)
            else:
                upto = self._tell_records(fact, since, chosen, names, most, out)
            if upto < fact.stop:
                return out, upto
            if len(out) >= most:
                return out, fact.stop
        return out, max(self.next, since)

    def _since(self, since: int) -> Iterator[Fact]:
        """The facts from the one on that has event number ``since``."""
        at = max(bisect.bisect(self._numbers, since) - 1, 0)
        for place in range(at, len(self._facts)):
            fact = self._facts[place]
            for one in self._uncompressed(fact.number, fact.facts) if isinstance(fact, Archive) else (fact,):
                if one.stop > since:
                    yield one

    def _uncompressed(self, key: int, make: Callable[[], _T]) -> _T:
        found: _T | None = self._cache.get(key)
        if found is None:
            found = self._cache[key] = make()
            if len(self._cache) > _DECOMPRESSED:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(key)
        return found

    def jobs_since(self, since: int, wanted: Collection[int]) -> set[int]:
        """Those of the ``wanted`` jobs that something happened to from number ``since`` on."""
        found: set[int] = set()
        for fact in self._since(since):
            if not isinstance(fact, Block):
                stop = fact.first + fact.n
                found.update(job for job in wanted if fact.first <= job < stop)
            else:
                skip = max(since - fact.number, 0) // WIDTH
                ids = np.frombuffer(self._data(fact)[1], RECORD)["id"][skip:].tolist()
                found.update(job for job in ids if job in wanted)
        return found

    def _tell_group(self, fact: GroupFact | Submitted, since: int, chosen: Selection, names: Collection[str],
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

    def _tell_records(self, fact: Block, since: int, chosen: Selection, names: Collection[str],
                      most: int, out: list[Told]) -> int:
        if not chosen.overlaps(fact.low, fact.high):
            return fact.stop
        flags, data = self._data(fact)
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

    def _data(self, fact: Block) -> tuple[bytes, bytes]:
        return self._uncompressed(fact.number, fact.data) if fact.sealed else fact.data()


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
