"""What can go wrong between a program and an instance. All of it is a :class:`FluxError`."""

from __future__ import annotations


class FluxError(RuntimeError):
    """Something that an instance could not do; the text says what and why."""


class NotConnected(FluxError):
    """There is no such run, or no connection to it, or what was asked for needs the live instance."""


class ConnectionLost(NotConnected):
    """The connection broke: what was asked last may have been done or not."""


class InstanceEnded(NotConnected):
    """The instance has ended, or is ending, and does no more."""


class NoJob(FluxError, LookupError):
    """The run has no such job or group."""


class NoKey(FluxError, KeyError):
    """The store has no such key."""

    def __str__(self) -> str:
        return RuntimeError.__str__(self)


class Conflict(FluxError):
    """Somebody else changed the key since it was read: read it again and retry."""


class Rejected(FluxError, ValueError):
    """The instance did not take a value or a request; nothing was done."""


class NoService(FluxError):
    """Nobody serves what was called, or who did has died."""


class RemoteError(FluxError):
    """The service's handler raised an exception; the text is what it said."""


class Empty(FluxError):
    """The queue has no item now."""


class HistoryLost(FluxError):
    """What was asked for goes back further than the instance remembers."""


_KINDS: dict[str, type[FluxError]] = {
    "request": Rejected, "value": Rejected, "job": NoJob, "key": NoKey, "conflict": Conflict, "service": NoService,
    "lost": NoService, "remote": RemoteError, "empty": Empty, "history": HistoryLost, "ended": InstanceEnded,
}


def error_of(kind: str, text: str) -> FluxError:
    """The exception for an error that the instance told."""
    return _KINDS.get(kind, FluxError)(text)
