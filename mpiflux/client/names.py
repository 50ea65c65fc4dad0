"""Namespaces of keys: a prefix that a program need not write."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from mpiflux.client import plans
from mpiflux.client.records import Change
from mpiflux.store import kvs as store
from mpiflux.store.kvsview import split_guest

VARIABLE = "MPIFLUX_KVS_NAMESPACE"
"""Environment variable with the namespace that a program begins with."""


def inherited(environ: Mapping[str, str] = os.environ) -> str:
    """The namespace that the environment names; empty for none. Raises ValueError."""
    return checked(environ.get(VARIABLE, ""))


def checked(namespace: str) -> str:
    try:
        if namespace:
            store.check_key(namespace)
    except store.BadKey as error:
        raise ValueError(f"not a namespace: {error}") from None
    return namespace


class Names:
    """Keys as the instance has them, and as a namespace's users see them."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self._prefix = f"{namespace}." if namespace else ""
        own = split_guest(namespace)
        # the instance says a job's number where we may have said its name
        self._own = f".{own[1]}." if own else ""

    def full(self, key: str) -> str:
        """Empty: the namespace itself."""
        return self._prefix + key if key else self.namespace

    def short(self, key: str) -> str:
        if self._prefix and not self._own:
            return key.removeprefix(self._prefix)
        return key.partition(self._own)[2] if self._own and self._own in key else key

    def inner(self, namespace: str) -> str:
        """A namespace in this one; empty: that of all keys."""
        return self.full(checked(namespace)) if namespace else ""

    def ops(self, ops: Iterable[store.Op]) -> Iterable[store.Op]:
        return map(self._op, ops) if self._prefix else ops

    def _op(self, op: store.Op) -> store.Op:
        if isinstance(op, store.Rename):
            return store.Rename(self.full(op.key), self.full(op.to))
        return msgspec.structs.replace(op, key=self.full(op.key))

    def change(self, item: list[Any]) -> Change:
        """An item of a watch."""
        found = plans.change(item)
        return found._replace(key=self.short(found.key))
