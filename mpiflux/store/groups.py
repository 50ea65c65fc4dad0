"""The job groups of a run in order of their numbers, those that are long over as a few bytes each.

A program that submits jobs one by one makes a group of each, and an instance lives for days. So the groups of a block
are packed and compressed once all of them are over, and unpacked when somebody asks for one. Groups of several jobs are
few for their jobs, and stay as they are. Pure, and safe to read while another thread appends.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import msgspec

from mpiflux.model.jobspec import JobGroup

BLOCK = 256
_CACHED = 64

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[JobGroup | None])

_Packed = tuple[bytes, dict[int, JobGroup]]
"""The groups of one job each, None for the others; and these, by their place."""


class _Numbered(Sequence[JobGroup]):
    """Groups by number, from 0 or from the end."""

    def _at(self, number: int) -> JobGroup:
        """The group of a number that there is."""
        raise NotImplementedError

    @overload
    def __getitem__(self, number: int) -> JobGroup: ...
    @overload
    def __getitem__(self, number: slice) -> list[JobGroup]: ...

    def __getitem__(self, number: int | slice) -> JobGroup | list[JobGroup]:
        n = len(self)
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(n))]
        if number < 0:
            number += n
        if not 0 <= number < n:
            raise IndexError(f"group {number} of {n}")
        return self._at(number)


class Groups(_Numbered):
    """A list of groups, to which is only ever added."""

    def __init__(self, groups: Iterable[JobGroup] = ()) -> None:
        self._blocks: list[list[JobGroup] | _Packed] = []
        self._n = 0
        self._over: dict[int, int] = {}
        """Groups that are over, by block, of those that are not packed yet."""
        self._cache: list[tuple[int, list[JobGroup]]] = [(-1, [])] * _CACHED
        """(block, its groups): each has one place where it may be, so that readers need no lock."""
        for group in groups:
            self.append(group)

    def append(self, group: JobGroup) -> None:
        if self._n % BLOCK == 0:
            self._blocks.append([])
        block = self._blocks[-1]
        assert isinstance(block, list), "a block that is not full is not packed"
        block.append(group)
        self._n += 1

    def replace(self, group: JobGroup) -> None:
        """Another description of a group that is not packed, with its number."""
        block = self._blocks[group.number // BLOCK]
        assert isinstance(block, list), "groups are described anew before any is over"
        block[group.number % BLOCK] = group

    def over(self, number: int) -> None:
        """All jobs of a group have ended; said once for each."""
        at = number // BLOCK
        count = self._over.get(at, 0) + 1
        if count < BLOCK:
            self._over[at] = count
            return
        self._over.pop(at, None)
        block = self._blocks[at]
        if isinstance(block, list) and len(block) == BLOCK:
            singles = [group if group.count == 1 else None for group in block]
            kept = {place: group for place, group in enumerate(block) if group.count != 1}
            self._blocks[at] = zlib.compress(_encoder.encode(singles), 1), kept

    def current(self, start: int = 0) -> Iterator[JobGroup]:
        """The groups from number ``start`` on that may not be over, and some that are."""
        for at in range(start // BLOCK, len(self._blocks)):
            block = self._blocks[at]
            if isinstance(block, list):
                yield from block[start - at * BLOCK if at == start // BLOCK else 0:]

    def _unpacked(self, at: int) -> list[JobGroup]:
        block = self._blocks[at]
        if isinstance(block, list):
            return block
        held, groups = self._cache[at % _CACHED]
        if held != at:
            packed, kept = block
            groups = [kept[place] if group is None else group
                      for place, group in enumerate(_decoder.decode(zlib.decompress(packed)))]
            self._cache[at % _CACHED] = at, groups
        return groups

    def __len__(self) -> int:
        return self._n

    def _at(self, number: int) -> JobGroup:
        return self._unpacked(number // BLOCK)[number % BLOCK]


def by_name(groups: Iterable[JobGroup]) -> dict[str, list[JobGroup]]:
    """The groups of each name in order; several have one where programs submit more of what they submitted."""
    found: dict[str, list[JobGroup]] = {}
    for group in groups:
        found.setdefault(group.name, []).append(group)
    return found


class Instead(_Numbered):
    """The same groups, but for the first ones: a workflow file may have changed what does not matter to the table."""

    def __init__(self, first: Sequence[JobGroup], groups: Groups) -> None:
        self._first, self._groups = first, groups

    def __len__(self) -> int:
        return max(len(self._first), len(self._groups))

    def _at(self, number: int) -> JobGroup:
        return self._first[number] if number < len(self._first) else self._groups[number]
