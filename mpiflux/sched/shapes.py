"""Which jobs ask for the same: the :class:`~mpiflux.sched.leases.Shape` of each group, and its number. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from mpiflux.model import messages as m
from mpiflux.model.jobspec import Request
from mpiflux.sched.catalog import Catalog
from mpiflux.sched.leases import Shape
from mpiflux.sched.profile import UNLIMITED


class Shapes:
    """Those of scheduler ``scheduler``: executors serve several, so numbers are different in each."""

    def __init__(self, scheduler: int, catalog: Catalog) -> None:
        self._first, self._catalog = scheduler << 24, catalog
        self._by_key: dict[tuple[object, ...], Shape] = {}
        self.by_number: dict[int, Shape] = {}
        self.of_group: dict[int, tuple[Shape, float]] = {}
        """What :meth:`known` says of groups whose jobs may run anywhere, once it was asked."""

    def known(self, chunk: m.Chunk) -> tuple[Shape, float]:
        """Shape and time limit, in seconds, of a chunk's jobs."""
        group = self._catalog.group(chunk.group)
        key, node = group.request.key, group.node_of(chunk.start)
        if node >= 0:
            key = (*key, node)
        shape = self._by_key.get(key)
        if shape is None:
            shape = self._by_key[key] = self._new(group.request, node)
        found = shape, group.time_limit or UNLIMITED
        if not group.on:
            self.of_group[chunk.group] = found
        return found

    def beside(self, shape: Shape) -> Shape:
        """The same shape under another number: executors tell by that which jobs are for which leases."""
        if shape.beside is None:
            shape.beside = self._new(shape.request, shape.node)
        return shape.beside

    def _new(self, request: Request, node: int) -> Shape:
        number = self._first + len(self.by_number)
        shape = self.by_number[number] = Shape(number, request, node)
        return shape

    def forget(self, groups: Sequence[int]) -> None:
        """These groups are over."""
        for group in groups:
            self.of_group.pop(group, None)
