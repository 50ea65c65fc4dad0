"""How long jobs run, as a workflow or ``mpiflux simulate --duration`` says it: a distribution, or one duration."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mpiflux.spec.scalars import as_duration, as_float

_CALL = re.compile(r"([a-z]+)\(([^()]*)\)", re.ASCII)
_ARGUMENTS = {"fixed": ("seconds",), "uniform": ("least", "most"), "exponential": ("mean",),
              "lognormal": ("median", "sigma")}
HELP = "write a duration such as 90s, or uniform(5,20), exponential(1m) or lognormal(1h,0.5)"
LONGEST = 1e12
"""Seconds, some thirty thousand years: what is longer is a slip, and too long for a clock of microseconds."""
_WIDEST = 10.0
"""Of ``sigma``: e to the 400 is no number any more."""


class DurationError(ValueError):
    """A distribution, or the name of a job group, is wrong."""


@dataclass(frozen=True)
class Distribution:
    """``arguments`` are in seconds; ``lognormal`` is by its median and the standard deviation of the logarithm."""

    kind: str
    arguments: tuple[float, ...]


def parse_distribution(text: str) -> Distribution:
    """``lognormal(1h,0.5)``, or a plain duration. Raises DurationError."""
    squeezed = text.replace(" ", "")
    match = _CALL.fullmatch(squeezed)
    kind, inside = (match[1], match[2]) if match else ("fixed", squeezed)
    if kind not in _ARGUMENTS:
        raise DurationError(f"{text!r}: there is no distribution {kind!r}; {HELP}")
    parts, names = inside.split(","), _ARGUMENTS[kind]
    numbers = [as_float(part) if name == "sigma" else as_duration(part)
               for part, name in zip(parts, [*names, *parts], strict=False)]
    if not inside or None in numbers:
        raise DurationError(f"{text!r} is not a duration; {HELP}")
    if len(numbers) != len(names):
        raise DurationError(f"{text!r}: {kind} takes {', '.join(names)}; {HELP}")
    found = tuple(number for number in numbers if number is not None and 0 <= number < LONGEST)
    if len(found) < len(numbers) or (kind == "uniform" and found[0] > found[1]):
        raise DurationError(f"{text!r}: numbers are seconds from 0 on, the smaller one first")
    if kind == "lognormal" and found[1] > _WIDEST:
        raise DurationError(f"{text!r}: sigma is the standard deviation of the duration's logarithm, at most "
                            f"{_WIDEST:.0f}: with 0.5 two thirds of the jobs run for 0.6 to 1.6 times the median")
    return Distribution(kind, found)
