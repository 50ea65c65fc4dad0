"""Messages between clients: topics, services, queues. Nothing of it outlives the instance. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from mpiflux.instance.broker import Handler


class Messages:
    """Implements :class:`mpiflux.instance.broker.DeskPart`."""

    def handlers(self) -> Mapping[type, Handler]:
        return {}

    def turn(self, now: float) -> None:
        return
