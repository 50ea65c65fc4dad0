"""The keys of a live instance, for programs that wait for what they ask."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mpiflux.client import plans
from mpiflux.client.connection import Connection, Subscription
from mpiflux.client.names import Names
from mpiflux.client.records import Value
from mpiflux.store import kvs as store


class Kvs:
    """The keys of the instance, or of a namespace. Values are JSON or bytes. Keys are names joined by dots: ``a.b.c``.
    """

    def __init__(self, connection: Connection, namespace: str = "") -> None:
        self._connection = connection
        self._names = Names(namespace)

    def namespace(self, name: str) -> Kvs:
        """The keys below a name, without it; an empty name: all keys. Raises ValueError."""
        return Kvs(self._connection, self._names.inner(name))

    def get(self, key: str) -> Any:
        """A value. ``job.ID.stdout`` and the like show a job. Raises NoKey, which is a KeyError."""
        return self._connection.do(plans.kvs_get(self._names.full(key))).value

    def get_versioned(self, key: str) -> Value:
        """A value with its version, for :meth:`put` with ``version``."""
        return self._connection.do(plans.kvs_get(self._names.full(key)))

    def wait(self, key: str, timeout: float | None = None) -> Any:
        """The value, once the key exists. Raises TimeoutError."""
        return self._connection.do(plans.kvs_get(self._names.full(key), wait=True), timeout).value

    def ls(self, prefix: str = "", *, recursive: bool = False) -> list[str]:
        """The keys below ``prefix``; directories end in a dot. Raises NoKey."""
        keys = self._connection.do(plans.kvs_ls(self._names.full(prefix), recursive))
        return [self._names.short(key) for key in keys]

    def put(self, key: str, value: object, *, version: int | None = None) -> int:
        """Set a key; returns the store's new version.

        ``version``: only if the key still has it (0: does not exist), else Conflict is raised.
        """
        return self._connection.do(plans.kvs_put(self._names.full(key), value, version))

    def rm(self, key: str, *, recursive: bool = False) -> int:
        """Delete a key, or with ``recursive`` all below it. Raises NoKey."""
        return self.commit([store.Delete(key, recursive)])

    def rename(self, key: str, to: str) -> int:
        """Move a value or all below a prefix to where nothing is yet."""
        return self.commit([store.Rename(key, to)])

    def commit(self, ops: Iterable[store.Op]) -> int:
        """All of these operations (``put``, ``Delete``, ``Rename``, ``Check`` of :mod:`mpiflux.kvs`) at once, or none.

        Returns the store's new version. Raises Conflict when a ``Check`` does not hold, NoKey, Rejected.
        """
        return self._connection.do(plans.kvs_commit(self._names.ops(ops)))

    def fence(self, name: str, n: int, ops: Iterable[store.Op] = (), timeout: float | None = None) -> int:
        """Wait until ``n`` participants have come here; what all of them bring is committed as one.

        ``ops``: as for :meth:`commit`. Returns the store's version after it. Raises as that does, and TimeoutError.
        """
        return self._connection.do(plans.kvs_fence(name, n, self._names.ops(ops)), timeout)

    def watch(self, key: str = "", *, since: int = -1) -> Subscription:
        """Every change of a key, and of all below it, once and in order: an iterator of :class:`Change`.

        It begins with the values as they are, or after version ``since``.
        """
        return self._connection.subscribe(plans.watching(self._names.full(key)), since,
                                          convert=self._names.change, resumes=True)
