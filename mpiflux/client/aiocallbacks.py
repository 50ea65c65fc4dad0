"""Functions and coroutine functions that are called with what comes, in an event loop."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from mpiflux.client.aioconnection import Subscription
from mpiflux.client.callbacks import LOG


class Callbacks:
    """The same as :class:`mpiflux.client.callbacks.Callbacks` in a task."""

    def __init__(self, items: Subscription, callback: Callable[[Any], object]) -> None:
        self._items, self._callback = items, callback
        self._task = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        async for item in self._items:
            try:
                given = self._callback(item)
                if inspect.isawaitable(given):
                    await given
            except Exception:
                LOG.exception("exception calling %r with %r", self._callback, item)

    async def join(self) -> None:
        """Wait until the last call has returned. Raises what ended it."""
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()

    def close(self) -> None:
        """Call no more."""
        self._task.cancel()
        self._items.close()

    async def __aenter__(self) -> Callbacks:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
