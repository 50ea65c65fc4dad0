"""Services and queues between programs of a live instance, for programs that wait for what they ask."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from mpiflux.client import plans
from mpiflux.client.connection import Connection
from mpiflux.client.errors import FluxError
from mpiflux.model import requests as r


class Service:
    """A service that this program offers; see :meth:`Flux.serve`."""

    def __init__(self, connection: Connection, name: str, handler: Callable[[Any], object], threads: int) -> None:
        self._connection, self._handler = connection, handler
        self._calls = connection.subscribe(lambda sub, _: r.Serve(sub, name), convert=lambda item: item,
                                           resumes=True)
        self._taking = threading.Lock()
        self._threads = [threading.Thread(target=self._work, name=f"service {name}", daemon=True)
                         for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while True:
            try:
                with self._taking:
                    item = self._calls.get()
            except FluxError:
                return
            if item is None:
                return
            number, data = item
            self._connection.tell(plans.answer(number, self._handler, data))

    def close(self) -> None:
        """Serve no more. Calls that have come and are not answered yet fail for their callers."""
        self._calls.close()

    def join(self) -> None:
        """Wait until the service is closed, or the instance has ended."""
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Item:
    """A value of a queue that goes back to it unless this consumer says :meth:`done`, also when it dies."""

    def __init__(self, connection: Connection, number: int, value: Any) -> None:
        self._connection, self._number, self.value = connection, number, value

    def done(self) -> None:
        """It is dealt with."""
        self._connection.do(plans.done(self._number, back=False))

    def back(self) -> None:
        """Let somebody else have it."""
        self._connection.do(plans.done(self._number, back=True))

    def __enter__(self) -> Any:
        return self.value

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.done()
        else:
            self.back()


class Queue:
    """Values that any program pushes and any other pulls, each value once."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection, self.name = connection, name

    def push(self, value: object, *, priority: float = 0.0) -> int:
        """Add a value: those of higher priority are pulled first, equal ones in order. Returns how many wait."""
        return self._connection.do(plans.push(self.name, [value], priority))

    def push_many(self, values: Iterable[object], *, priority: float = 0.0) -> int:
        return self._connection.do(plans.push(self.name, values, priority))

    def pull(self, timeout: float | None = None, *, wait: bool = True) -> Any:
        """Take the next value, waiting for one. Raises TimeoutError, or Empty without ``wait``."""
        return self._connection.do(plans.pull(self.name, ack=True, wait=wait), timeout)[1]

    def take(self, timeout: float | None = None, *, wait: bool = True) -> Item:
        """The same, but it goes back to the queue unless this program says that it is done with it:
        ``with queue.take() as value: …``."""
        number, value = self._connection.do(plans.pull(self.name, ack=False, wait=wait), timeout)
        return Item(self._connection, number, value)

    def __len__(self) -> int:
        """Values that wait."""
        waiting: int = self._connection.do(plans.queues()).get(self.name, [0])[0]
        return waiting
