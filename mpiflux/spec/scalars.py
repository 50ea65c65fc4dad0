"""What the text of a scalar means: numbers, truth values, durations, sizes.

Plain scalars follow YAML 1.2's core rules rather than 1.1's: ``yes`` and ``off`` are texts unless a key wants a
truth value, ``10:00`` is no sexagesimal number, ``1e-3`` is a number, and ``007`` keeps its zeros.
"""

from __future__ import annotations

import math
import re

from mpiflux.model.params import Value

_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)", re.ASCII)
_BASED = re.compile(r"[-+]?0(?:x[0-9a-fA-F_]+|o[0-7_]+|b[01_]+)", re.ASCII)
_FLOAT = re.compile(r"[-+]?(?:\.\d+|\d[\d_]*(?:\.\d*)?)(?:[eE][-+]?\d+)?", re.ASCII)
_SPECIAL = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", re.ASCII)
_ZEROS = re.compile(r"[-+]?0\d", re.ASCII)

TRUE = frozenset(("true", "True", "TRUE"))
FALSE = frozenset(("false", "False", "FALSE"))
_YES = TRUE | {"yes", "Yes", "YES", "on", "On", "ON"}
_NO = FALSE | {"no", "No", "NO", "off", "Off", "OFF"}

INT_MIN, INT_MAX = -(1 << 63), (1 << 63) - 1


def as_int(text: str) -> int | None:
    """A whole number; ``1e6`` counts as one."""
    if len(text) > 100:
        return None
    if _INT.fullmatch(text):
        return int(text.replace("_", ""))
    if _BASED.fullmatch(text):
        try:
            return int(text.replace("_", ""), 0)
        except ValueError:
            return None
    if "e" in text.lower() and _FLOAT.fullmatch(text):
        number = float(text.replace("_", ""))
        if number.is_integer() and abs(number) <= 1 << 53:
            return int(number)
    return None


def as_float(text: str) -> float | None:
    """A number, perhaps not finite."""
    if len(text) > 1000:
        return None
    if _FLOAT.fullmatch(text):
        return float(text.replace("_", ""))
    if _SPECIAL.fullmatch(text):
        return float(text.replace(".", "").lower())
    number = as_int(text)
    return None if number is None else float(number)


def as_bool(text: str) -> bool | None:
    """A truth value where a key asks for one: YAML 1.1's words are taken here."""
    return True if text in _YES else False if text in _NO else None


def resolve(text: str) -> Value:
    """The value of a plain scalar where any is welcome. Numbers that would not come out as they went in (leading
    zeros, more than 64 bits) stay texts; raises ValueError for a number that is not finite."""
    if text in TRUE:
        return True
    if text in FALSE:
        return False
    if _ZEROS.match(text) and "." not in text:
        return text
    number = as_int(text) if "e" not in text.lower() or text[:2].lower() == "0x" else None
    if number is not None:
        return number if INT_MIN <= number <= INT_MAX else text
    real = as_float(text)
    if real is None:
        return text
    if not math.isfinite(real):
        raise ValueError("not a finite number")
    return real


_UNITS = {"ms": 0.001, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "hr": 3600.0, "d": 86400.0,
          "w": 604800.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-z]+)\s*", re.ASCII)
_CLOCK = re.compile(r"(?:(\d{1,6})-)?(\d{1,9})(?::(\d{1,2}))?(?::(\d{1,2}))?", re.ASCII)


def as_duration(text: str) -> float | None:
    """Seconds in ``90``, ``90s``, ``10m``, ``1h30m``, ``10:00``, ``00:10:00`` or ``1-00:00:00``.

    A bare number is seconds, as in Flux. With colons it is read as Slurm reads it: minutes:seconds,
    hours:minutes:seconds, days-hours, days-hours:minutes, days-hours:minutes:seconds.
    """
    text = text.strip()
    if len(text) > 60:
        return None
    number = as_float(text)
    if number is not None:
        return number
    total, position = 0.0, 0
    for match in _PART.finditer(text):
        if match.start() != position or match.group(2) not in _UNITS:
            return None
        total += float(match.group(1)) * _UNITS[match.group(2)]
        position = match.end()
    if position and position == len(text):
        return total
    clock = _CLOCK.fullmatch(text)
    if not clock:
        return None
    days, first, second, third = (int(g) if g is not None else None for g in clock.groups())
    if (second or 0) > 59 or (third or 0) > 59:
        return None
    if days is not None:
        return days * 86400.0 + (first or 0) * 3600.0 + (second or 0) * 60.0 + (third or 0)
    if third is not None:
        return (first or 0) * 3600.0 + (second or 0) * 60.0 + third
    return (first or 0) * 60.0 + (second or 0)


_SIZE = re.compile(r"(\d[\d_]*(?:\.\d+)?)\s*([kmgtpe]?)(i?)(b?)", re.ASCII | re.IGNORECASE)
_POWERS = " kmgtpe"


def as_size(text: str) -> int | None:
    """Bytes in ``4096``, ``500MB`` (10^6), ``2GiB`` (2^30) or ``2G`` (2^30, as Slurm reads it)."""
    match = _SIZE.fullmatch(text.strip()) if len(text) <= 60 else None
    if not match:
        return None
    number, prefix, binary, unit = match.groups()
    if binary and not prefix:
        return None
    power = _POWERS.index(prefix.lower()) if prefix else 0
    scale = 1000 ** power if unit and not binary else 1024 ** power
    number = number.replace("_", "")
    return int(number) * scale if number.isdigit() else int(float(number) * scale)
