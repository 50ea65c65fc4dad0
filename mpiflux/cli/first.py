"""What a command does before anything else is loaded."""

from __future__ import annotations

from mpiflux.instance.early import held


def begin() -> None:
    """Keep signals, for a run that they may be meant for; other commands give them back as soon as they know."""
    held.hold()
