"""What a command does before anything else is loaded."""

from __future__ import annotations

import os
import signal

from mpiflux.instance.early import held

_OF_A_RANK = ("PMI_FD", "PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")


def begin() -> None:
    """Keep signals, for a run that they may be meant for; other commands give them back as soon as they know."""
    held.hold()
    if any(name in os.environ for name in _OF_A_RANK):
        # Ctrl-C at a launcher goes to all ranks, wherever they are
        held.add(signal.SIGINT)
