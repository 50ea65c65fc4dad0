"""Functions that are called with what comes, for programs that do not want to iterate over it themselves."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from mpiflux.client.connection import Subscription
from mpiflux.client.errors import FluxError

LOG = logging.getLogger("mpiflux")


class Callbacks:
    """Calls a function with each item of a subscription, one after the other, in a thread of its own.

    What the function raises is logged, and ends nothing. A context manager; without :meth:`close` it goes on until
    nothing will come any more.
    """

    def __init__(self, items: Subscription, callback: Callable[[Any], object]) -> None:
        self._items, self._callback = items, callback
        self._closed = False
        self._error: FluxError | None = None
        self._thread = threading.Thread(target=self._work, name="callbacks", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            for item in self._items:
                if self._closed:
                    return
                try:
                    self._callback(item)
                except Exception:
                    LOG.exception("exception calling %r with %r", self._callback, item)
        except FluxError as error:
            self._error = error

    def join(self, timeout: float | None = None) -> None:
        """Wait until the last call has returned. Raises TimeoutError after ``timeout`` seconds, and what ended it."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(f"more may come after {timeout:g} s")
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Call no more; a call that goes on is not waited for."""
        self._closed = True
        self._items.close()

    def __enter__(self) -> Callbacks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
