"""Moments as people write them. Not pure: a time without a zone is one of the machine's own zone."""

from __future__ import annotations

import datetime

from mpiflux.spec.scalars import as_duration


def as_moment(text: str) -> tuple[float, float] | None:
    """(Unix seconds, 0) for ``2026-11-23T08:00`` or ``2026-11-23 08:00:00+01:00``, (0, seconds) for ``+10m``: so long
    after submission. None when it is neither."""
    text = text.strip()
    if text.startswith("+"):
        seconds = as_duration(text[1:]) if text[1:2].isdigit() or text[1:2] == "." else None
        return None if seconds is None else (0.0, seconds)
    if text.endswith(("Z", "z")):
        text = text[:-1] + "+00:00"  # Python 3.10 does not read the letter
    try:
        moment = datetime.datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
    return (moment, 0.0) if moment > 0 else None
