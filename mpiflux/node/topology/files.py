"""Reading the small files of /proc and /sys."""

from __future__ import annotations

import os
from collections.abc import Iterable


def read(root: str, *parts: str) -> str:
    """Stripped text of a file, empty when there is none or it may not be read."""
    try:
        with open(os.path.join(root, *parts), encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def read_int(root: str, *parts: str, default: int) -> int:
    """A file's integer, decimal or ``0x…``; ``default`` when there is none."""
    try:
        return int(read(root, *parts), 0)
    except ValueError:
        return default


def names(root: str, *parts: str) -> list[str]:
    """Sorted names in a directory, none when it does not exist."""
    try:
        return sorted(os.listdir(os.path.join(root, *parts)))
    except OSError:
        return []


def numbered(entries: Iterable[str], prefix: str) -> list[int]:
    """Rising numbers N of the entries that are exactly ``prefixN``."""
    tails = (entry[len(prefix):] for entry in entries if entry.startswith(prefix))
    return sorted(int(tail) for tail in tails if tail.isdecimal())


def parse_list(text: str) -> frozenset[int]:
    """The kernel's list format: ``0-3,8,10-14:2``. Raises ValueError when it is not one."""
    found: set[int] = set()
    for part in filter(None, (p.strip() for p in text.split(","))):
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        found.update(range(int(first), int(last or first) + 1, int(step or 1)))
    return frozenset(found)
