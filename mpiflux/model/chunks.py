"""What messages say of work and of resources: ranges of jobs, and parts of nodes. Plain immutable data."""

from __future__ import annotations

import msgspec


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """Elements ``range(start, stop, step)`` of a group, to be tried as attempt ``attempt`` (from 1)."""

    group: int
    start: int
    stop: int
    step: int = 1
    attempt: int = 1
    alone: bool = False
    """Each of them is to have a supervisor of its own (:mod:`mpiflux.model.apart`)."""

    def __len__(self) -> int:
        return len(range(self.start, self.stop, self.step))

    def split(self, n: int) -> tuple[Chunk, Chunk | None]:
        """The first ``n`` elements and the rest (None when nothing is left)."""
        if n >= len(self):
            return self, None
        cut = self.start + n * self.step
        return (Chunk(self.group, self.start, cut, self.step, self.attempt, self.alone),
                Chunk(self.group, cut, self.stop, self.step, self.attempt, self.alone))


class NodeShare(msgspec.Struct, frozen=True, array_like=True):
    """What a resource set holds of one node: logical core and GPU numbers, bytes of memory, tasks to start, and
    amounts of the node's named resources."""

    node: int
    cores: tuple[int, ...] = ()
    gpus: tuple[int, ...] = ()
    memory: int = 0
    tasks: int = 1
    named: tuple[tuple[str, int], ...] = ()


class ResourceSet(msgspec.Struct, frozen=True, array_like=True):
    """R (Flux RFC 20): concrete resources, on one node or several."""

    shares: tuple[NodeShare, ...]
