"""Connections in a forked process: it has none of their threads, and what it wrote would be taken for its parent's."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

INHERITED = "this connection is that of the process that this one was forked from: connect again in this one"


class Inherited(Protocol):
    """What is told of a fork."""

    def forked(self) -> None:
        """Called in the child: leave the parent's connection alone from now on."""


_living: weakref.WeakSet[Inherited] = weakref.WeakSet()


def tell_of_forks(connection: Inherited) -> None:
    """Let a connection hear of it in forked processes, as long as it lives."""
    _living.add(connection)


def _forked() -> None:
    for connection in list(_living):
        connection.forked()
    _living.clear()


os.register_at_fork(after_in_child=_forked)
