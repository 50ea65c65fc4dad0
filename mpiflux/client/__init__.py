"""What user programs import: the run they are part of, any other live instance, or a run directory.

Names are loaded when first asked for: a steering script that only submits needs no NumPy.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mpiflux.client.entry import connect
    from mpiflux.client.errors import (
        Conflict,
        ConnectionLost,
        Empty,
        FluxError,
        HistoryLost,
        InstanceEnded,
        NoJob,
        NoKey,
        NoService,
        NotConnected,
        Rejected,
        RemoteError,
    )
    from mpiflux.client.executor import Executor, FluxFuture
    from mpiflux.client.live import Flux, Job, Jobs
    from mpiflux.client.records import Change, Counts, JobEvent, Message, Record, Result
    from mpiflux.store.eventlog import Event

MODULES = {
    "mpiflux.client.entry": "connect",
    "mpiflux.client.errors": "Conflict ConnectionLost Empty FluxError HistoryLost InstanceEnded NoJob NoKey NoService "
                             "NotConnected Rejected RemoteError",
    "mpiflux.client.executor": "Executor FluxFuture",
    "mpiflux.client.live": "Flux Job Jobs",
    "mpiflux.client.records": "Change Counts JobEvent Message Record Result",
    "mpiflux.store.eventlog": "Event",
}
"""Where each public name is."""

_HOME = {name: module for module, names in MODULES.items() for name in names.split()}

__all__ = ["Change", "Conflict", "ConnectionLost", "Counts", "Empty", "Event", "Executor", "Flux", "FluxError",
           "FluxFuture", "HistoryLost", "InstanceEnded", "Job", "JobEvent", "Jobs", "Message", "NoJob", "NoKey",
           "NoService", "NotConnected", "Record", "Rejected", "RemoteError", "Result", "connect"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
