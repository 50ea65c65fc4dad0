"""Sets of small numbers as people read them, such as ``0-3,7`` (Flux RFC 22).

Ids are unique, ascending, decimal without leading zeros; ``decode`` also takes surrounding brackets, as the
RFC allows, and refuses what the RFC does, so that a mistyped set is an error and not another set.
"""

from __future__ import annotations

from collections.abc import Iterable

MAX_IDS = 1 << 24
"""Ids that ``decode`` expands to at most: a typing error must not take the machine's memory."""


def ranges(ids: Iterable[int]) -> list[tuple[int, int]]:
    """The set as ascending inclusive (low, high) pairs. Raises ValueError on a negative id."""
    found: list[tuple[int, int]] = []
    low = high = -1
    for i in sorted(set(ids)):
        if i < 0:
            raise ValueError(f"an idset holds no negative number, got {i}")
        if low < 0:
            low = high = i
        elif i == high + 1:
            high = i
        else:
            found.append((low, high))
            low = high = i
    if low >= 0:
        found.append((low, high))
    return found


def encode(ids: Iterable[int]) -> str:
    """The set as text; empty for the empty set. Order and repetition of ``ids`` do not matter."""
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges(ids))


def decode(text: str) -> tuple[int, ...]:
    """The ids, ascending. Raises ValueError that quotes what it cannot read."""
    inner = text
    if inner.startswith("[") or inner.endswith("]"):
        if not (inner.startswith("[") and inner.endswith("]")):
            raise ValueError(f"idset {text!r}: a bracket has no partner")
        inner = inner[1:-1]
    if not inner:
        return ()
    ids: list[int] = []
    last = -1
    for part in inner.split(","):
        first, dash, second = part.partition("-")
        low = _number(first, text)
        high = _number(second, text) if dash else low
        if dash and high <= low:
            raise ValueError(f"idset {text!r}: range {part!r} does not ascend")
        if low <= last:
            raise ValueError(f"idset {text!r}: {part!r} does not come after {last}; ids must ascend")
        if high - low + len(ids) >= MAX_IDS:
            raise ValueError(f"idset {text!r}: more than {MAX_IDS} ids")
        ids.extend(range(low, high + 1))
        last = high
    return tuple(ids)


def _number(text: str, whole: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"idset {whole!r}: {text!r} is not a number")
    if len(text) > 1 and text[0] == "0":
        raise ValueError(f"idset {whole!r}: {text!r} has a leading zero")
    return int(text)
