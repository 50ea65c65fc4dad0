"""The way in: from a URI, a run directory or the environment to something to talk to."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

from mpiflux.client.calls import check_not_loading
from mpiflux.client.errors import NotConnected
from mpiflux.client.where import Target, locate

if TYPE_CHECKING:
    from mpiflux.client.live import Flux


def connect(target: str | os.PathLike[str] | None = None, *, keep: bool = False) -> Flux:
    """The run that this job is part of, or that of a run directory or a URI. Use it as a context manager.

    Without ``target``: ``MPIFLUX_URI``, then ``MPIFLUX_RUN_DIR``; every job and initial program has both. With
    ``keep`` the instance does not end while this connection lasts, even when all its jobs have.

    A run directory whose instance lives on this machine gives a connection to it; else what is given reads the
    directory (jobs, events, output, keys), and raises NotConnected for what needs the instance. Raises NotConnected.
    """
    check_not_loading()
    found = locate(target)
    if found.socket:
        from mpiflux.client.live import connect as connect_live

        try:
            return connect_live(found.socket, keep=keep)
        except NotConnected as error:
            if not found.run_dir or target is None or str(target).startswith("local://"):
                raise
            found = Target("", found.run_dir, str(error))
    if keep:
        raise NotConnected(f"{found.run_dir}: {found.why or 'there is no live instance'}")
    from mpiflux.client.flux import open_directory

    # it has what a program of the live interface may want of it, and raises NotConnected for the rest
    return cast("Flux", open_directory(found.run_dir, found.why))
