"""How a scheduler deals jobs to its children: which job belongs to whom.

A distribution splits a chunk among the children that can hold such jobs. It never decides *when*: what it assigns
beyond a child's credit window waits in that child's own line at the parent. ``pull`` is the exception that needs no
line: it assigns only what there is room for, and leaves the rest in the queue for whoever has room next.
"""

from __future__ import annotations

import importlib
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Protocol

from mpiflux.model.jobspec import JobGroup
from mpiflux.model.messages import Chunk
from mpiflux.sched.own import told


class Receiver(Protocol):
    """What a distribution may know of a child."""

    endpoint: int
    outstanding: int

    def capacity_of(self, group: JobGroup) -> int:
        """How many jobs of this group its R holds at once; never 0 here."""

    def room_for(self, group: JobGroup) -> int:
        """How many more it should be sent now."""

    @property
    def waiting(self) -> int:
        """Jobs in its line at the parent."""


Assignment = tuple[Receiver, Chunk]


class Distribution(Protocol):
    """A user's own is a class with this method, named ``package.module:Class`` in the workflow file.

    ``split`` returns chunks that together are a prefix of ``chunk``: jobs that it leaves stay queued. Chunks may be
    strided. It must be a function of its arguments and its own state only. With an attribute ``binding`` that is
    true, a job stays with the child that it was given; else an idle child gets jobs that others have not started.
    """

    def split(self, chunk: Chunk, group: JobGroup, children: Sequence[Receiver]) -> list[Assignment]: ...


class Pull:
    """Jobs go where there is room; where there are fewer than room, everybody gets a share of them."""

    def split(self, chunk: Chunk, group: JobGroup, children: Sequence[Receiver]) -> list[Assignment]:
        rooms = [(child, child.room_for(group)) for child in children]
        rooms = [(child, room) for child, room in rooms if room > 0]
        rooms.sort(key=lambda pair: pair[0].outstanding / pair[0].capacity_of(group))
        return _proportionally(chunk, rooms)


class LeastLoaded:
    """The next job goes to the child that has the least to do for its size, within a bounded line each."""

    def split(self, chunk: Chunk, group: JobGroup, children: Sequence[Receiver]) -> list[Assignment]:
        loads = [(child, child.outstanding + child.waiting, child.capacity_of(group)) for child in children]
        # the level to which all could be filled: twice what each runs at once, or what there is to give
        total = sum(load for _, load, _ in loads) + len(chunk)
        level = min(2.0, total / sum(capacity for _, _, capacity in loads))
        rooms = [(child, math.ceil(level * capacity) - load) for child, load, capacity in loads]
        rooms = [(child, room) for child, room in rooms if room > 0]
        rooms.sort(key=lambda pair: -pair[1])
        return _in_order(chunk, rooms)


class RoundRobin:
    """The n-th job belongs to the n-th child, whatever the others do: the paper's default."""

    binding = True

    def __init__(self) -> None:
        self._turn = 0

    def split(self, chunk: Chunk, group: JobGroup, children: Sequence[Receiver]) -> list[Assignment]:
        n = len(children)
        assignments = [
            (children[(self._turn + offset) % n],
             Chunk(chunk.group, chunk.start + offset * chunk.step, chunk.stop, chunk.step * n, chunk.attempt,
                   chunk.alone))
            for offset in range(min(n, len(chunk)))]
        self._turn = (self._turn + len(chunk)) % n
        return assignments


class ByKey:
    """Jobs with the same value of a parameter always go to the same child, so that its caches stay warm.

    ``parameter`` empty: the first one; a group without it is dealt by index. Stable across runs and versions: a
    CRC-32 of the value's text, over the children in the tree's order.
    """

    binding = True
    AT_ONCE = 4096
    """Jobs looked at in one call, since each has to be looked at by itself."""

    def __init__(self, parameter: str = "") -> None:
        self.parameter = parameter

    def split(self, chunk: Chunk, group: JobGroup, children: Sequence[Receiver]) -> list[Assignment]:
        head = chunk.split(self.AT_ONCE)[0]
        key = self._key(group)
        assignments: list[Assignment] = []
        for index in range(head.start, head.stop, head.step):
            child = children[zlib.crc32(key(index).encode()) % len(children)]
            last = assignments[-1] if assignments else None
            if last is not None and last[0] is child:
                longer = Chunk(chunk.group, last[1].start, index + 1, chunk.step, chunk.attempt, chunk.alone)
                assignments[-1] = (child, longer)
            else:
                one = Chunk(chunk.group, index, index + 1, chunk.step, chunk.attempt, chunk.alone)
                assignments.append((child, one))
        return assignments

    def _key(self, group: JobGroup) -> Callable[[int], str]:
        params = group.params
        name = self.parameter or (params.names[0] if params.names else "")
        if name not in params.names:
            return str
        return lambda index: str(params.row(index)[name])


class DistributionError(ValueError):
    """A distribution's name is wrong."""


_NAMED: dict[str, Callable[[], Distribution]] = {
    "pull": Pull, "least_loaded": LeastLoaded, "round_robin": RoundRobin, "by_key": ByKey}
KNOWN = tuple(sorted(_NAMED))


def make(name: str) -> Distribution:
    """The distribution that a workflow names: one of :data:`KNOWN`, ``by_key:PARAMETER``, or ``module:Class``.

    Raises DistributionError.
    """
    if name in _NAMED:
        return _NAMED[name]()
    before, colon, after = name.partition(":")
    if before == "by_key" and after.isidentifier():
        return ByKey(after)
    if not colon or not after.isidentifier():
        raise DistributionError(f"no distribution is called {name!r}; there is: {', '.join(KNOWN)}, "
                                "by_key:PARAMETER, or your own as module:Class")
    try:
        made = getattr(importlib.import_module(before), after)()
    except Exception as error:
        raise DistributionError(f"distribution {name}: cannot be loaded: {told(error)}; is {before} on "
                                "PYTHONPATH of every rank?") from error
    if not callable(getattr(made, "split", None)):
        raise DistributionError(f"distribution {name}: {after} has no method split(chunk, group, children)")
    return made  # type: ignore[no-any-return]  # checked as far as it can be


def _proportionally(chunk: Chunk, rooms: list[tuple[Receiver, int]]) -> list[Assignment]:
    """Cut the front of a chunk into parts in proportion to the rooms, none larger than its room."""
    left, room_left = len(chunk), sum(room for _, room in rooms)
    sized = []
    for child, room in rooms:
        n = min(room, max(1, math.ceil(left * room / room_left)), left)
        room_left -= room
        left -= n
        sized.append((child, n))
    return _in_order(chunk, sized)


def _in_order(chunk: Chunk, sizes: list[tuple[Receiver, int]]) -> list[Assignment]:
    """Cut the front of a chunk into parts of these sizes, as far as it reaches."""
    assignments: list[Assignment] = []
    rest: Chunk | None = chunk
    for child, size in sizes:
        if rest is None or size <= 0:
            continue
        part, rest = rest.split(size)
        assignments.append((child, part))
    return assignments
