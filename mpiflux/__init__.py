"""A tree of schedulers in one MPI program: run workflows of up to a million short programs inside a batch allocation.

What programs use is here by name and loaded when first asked for, so that ``import mpiflux`` costs next to nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing itself takes longer to load than all of this
if TYPE_CHECKING:
    from typing import Any

    from mpiflux.client import (
        Change,
        Conflict,
        ConnectionLost,
        Counts,
        Empty,
        Event,
        Executor,
        Flux,
        FluxError,
        FluxFuture,
        HistoryLost,
        InstanceEnded,
        Job,
        JobEvent,
        Jobs,
        Message,
        NoJob,
        NoKey,
        NoService,
        NotConnected,
        Record,
        Rejected,
        RemoteError,
        Result,
        connect,
    )

__version__ = "0.1.0"

__all__ = ["Change", "Conflict", "ConnectionLost", "Counts", "Empty", "Event", "Executor", "Flux", "FluxError",
           "FluxFuture", "HistoryLost", "InstanceEnded", "Job", "JobEvent", "Jobs", "Message", "NoJob", "NoKey",
           "NoService", "NotConnected", "Record", "Rejected", "RemoteError", "Result", "__version__", "connect"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from mpiflux import client

        return getattr(client, name)
    if name in ("aio", "kvs"):
        from importlib import import_module

        return import_module(f"mpiflux.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
