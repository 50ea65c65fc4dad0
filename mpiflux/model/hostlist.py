"""Lists of host names as Slurm and Flux print them, such as ``node[001-032],login`` (Flux RFC 29).

A hostlist is a list: order and repetition are kept. Besides what the RFC asks for, ``decode`` takes several
bracketed parts in one name (``rack[0-1]n[0-3]``, the last varies fastest), as Slurm does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

MAX_NAMES = 1 << 20
"""Names that ``decode`` expands to at most: a typing error must not take the machine's memory."""

_TAIL = re.compile(r"[0-9]+\Z")
_UNFIT = re.compile(r"[\[\],\s]")


def encode(names: Iterable[str]) -> str:
    """The list as text; empty for no names. Raises ValueError on a name that a hostlist cannot hold."""
    out: list[str] = []
    prefix, width = "", -1
    ranges: list[list[int]] = []
    for name in names:
        if not name or _UNFIT.search(name):
            raise ValueError(f"{name!r} cannot stand in a hostlist: empty, or with a blank, comma or bracket")
        tail = _TAIL.search(name)
        if tail is None:
            _close(out, prefix, width, ranges)
            ranges = []
            out.append(name)
            continue
        digits = tail.group()
        number, head = int(digits), name[:tail.start()]
        if ranges and head == prefix and digits == str(number).zfill(width):
            if number == ranges[-1][1] + 1:
                ranges[-1][1] = number
            else:
                ranges.append([number, number])
            continue
        _close(out, prefix, width, ranges)
        # The first number's leading zeros hold for the whole bracket, so that alone sets the width.
        prefix, width, ranges = head, len(digits) if digits[0] == "0" else 1, [[number, number]]
    _close(out, prefix, width, ranges)
    return ",".join(out)


def _close(out: list[str], prefix: str, width: int, ranges: list[list[int]]) -> None:
    if not ranges:
        return
    parts = [str(low).zfill(width) if low == high else f"{str(low).zfill(width)}-{str(high).zfill(width)}"
             for low, high in ranges]
    if len(parts) == 1 and ranges[0][0] == ranges[0][1]:
        out.append(prefix + parts[0])
    else:
        out.append(f"{prefix}[{','.join(parts)}]")


def decode(text: str) -> list[str]:
    """The names in order. Raises ValueError that quotes what it cannot read."""
    names: list[str] = []
    if not text:
        return names
    for expression in _expressions(text):
        if not expression:
            raise ValueError(f"hostlist {text!r}: empty name between commas")
        names.extend(_expand(expression, text))
        if len(names) > MAX_NAMES:
            raise ValueError(f"hostlist {text!r}: more than {MAX_NAMES} names")
    return names


def _expressions(text: str) -> list[str]:
    """Split at the commas outside of brackets."""
    parts: list[str] = []
    start = 0
    inside = False
    for i, char in enumerate(text):
        if char == "[" or char == "]":
            if inside == (char == "["):
                raise ValueError(f"hostlist {text!r}: a bracket has no partner")
            inside = char == "["
        elif char == "," and not inside:
            parts.append(text[start:i])
            start = i + 1
        elif char.isspace():
            raise ValueError(f"hostlist {text!r}: a blank in it; separate names by commas only")
    if inside:
        raise ValueError(f"hostlist {text!r}: a bracket has no partner")
    return [*parts, text[start:]]


def _expand(expression: str, whole: str) -> list[str]:
    names = [""]
    rest = expression
    while rest:
        head, bracket, rest = rest.partition("[")
        if not bracket:
            return [name + head for name in names]
        inner, _, rest = rest.partition("]")
        numbers = _numbers(inner, whole)
        if len(names) * len(numbers) > MAX_NAMES:
            raise ValueError(f"hostlist {whole!r}: more than {MAX_NAMES} names")
        names = [name + head + number for name in names for number in numbers]
    return names


def _numbers(inner: str, whole: str) -> list[str]:
    """The numbers of one bracket, as text with their leading zeros."""
    numbers: list[str] = []
    shared = 0
    for part in inner.split(","):
        first, dash, second = part.partition("-")
        last = second if dash else first
        for digits in (first, last):
            if not (digits.isascii() and digits.isdigit()):
                raise ValueError(f"hostlist {whole!r}: {part!r} in brackets is no number or range")
        low, high = int(first), int(last)
        if high < low:
            raise ValueError(f"hostlist {whole!r}: range {part!r} runs backwards")
        if high - low + len(numbers) >= MAX_NAMES:
            raise ValueError(f"hostlist {whole!r}: more than {MAX_NAMES} names")
        own = len(first) if first[0] == "0" else 1
        shared = shared or own
        width = max(shared, own)
        numbers.extend(str(n).zfill(width) for n in range(low, high + 1))
    return numbers
