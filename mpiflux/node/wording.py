"""How processes end, in words."""

from __future__ import annotations

import signal


def ending(code: int) -> str:
    """How a process ended, in words; ``code`` is as ``subprocess`` has it."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"was killed by signal {-code}"
