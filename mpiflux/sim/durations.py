"""How long simulated jobs run: drawn from distributions, the same for every variant of one seed."""

from __future__ import annotations

import random
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mpiflux.model.jobspec import JobGroup
from mpiflux.sim.executor import Outcome

DEFAULT = "default"
_CALL = re.compile(r"([a-z]+)\(([^()]*)\)", re.ASCII)
_ARGUMENTS = {"fixed": ("seconds",), "uniform": ("least", "most"), "exponential": ("mean",),
              "lognormal": ("median", "sigma")}
_HELP = "write fixed(10), uniform(5,20), exponential(60) or lognormal(60,0.5), in seconds"


class DurationError(ValueError):
    """A distribution, or the name of a job group, is wrong."""


@dataclass(frozen=True)
class Distribution:
    """``lognormal`` is by its median in seconds and the standard deviation of the logarithm."""

    kind: str
    arguments: tuple[float, ...]

    def draw(self, rng: random.Random) -> float:
        """Seconds, at least 0."""
        a = self.arguments
        if self.kind == "fixed":
            return a[0]
        if self.kind == "uniform":
            return rng.uniform(a[0], a[1])
        if self.kind == "exponential":
            return rng.expovariate(1 / a[0]) if a[0] else 0.0
        return a[0] * rng.lognormvariate(0.0, a[1])


def parse_distribution(text: str) -> Distribution:
    """``lognormal(60,0.5)``, or a plain number of seconds. Raises DurationError."""
    text = text.replace(" ", "")
    match = _CALL.fullmatch(text)
    kind, inside = (match[1], match[2]) if match else ("fixed", text)
    if kind not in _ARGUMENTS:
        raise DurationError(f"{text!r}: there is no distribution {kind!r}; {_HELP}")
    try:
        numbers = tuple(float(part) for part in inside.split(","))
    except ValueError:
        raise DurationError(f"{text!r} is not a duration; {_HELP}") from None
    names = _ARGUMENTS[kind]
    if len(numbers) != len(names):
        raise DurationError(f"{text!r}: {kind} takes {', '.join(names)}; {_HELP}")
    if not all(0 <= number < 1e12 for number in numbers) or (kind == "uniform" and numbers[0] > numbers[1]):
        raise DurationError(f"{text!r}: numbers are seconds from 0 on, the smaller one first")
    return Distribution(kind, numbers)


class Durations:
    """Implements :class:`mpiflux.sim.executor.Behaviour`: every job completes after its time.

    ``given`` is by group name; ``default`` stands for all others. Raises DurationError for a group without one, or
    a name that is no group's.
    """

    def __init__(self, groups: Sequence[JobGroup], given: Mapping[str, Distribution], seed: int) -> None:
        names = [group.name for group in groups]
        for name in given:
            if name != DEFAULT and name not in names:
                raise DurationError(f"--duration {name}=…: the workflow has no job {name}; it has {', '.join(names)}")
        self._by_number: dict[int, Distribution] = {}
        for group in groups:
            found = given.get(group.name, given.get(DEFAULT))
            if found is None:
                raise DurationError(f"nothing says how long jobs of {group.name} run: give --duration "
                                    f"{group.name}=… or --duration default=…; {_HELP}")
            self._by_number[group.number] = found
        self._seed = seed
        self._drawn: dict[int, Sequence[float]] = {}

    def seconds(self, group: JobGroup) -> Sequence[float]:
        """For each element."""
        drawn = self._drawn.get(group.number)
        if drawn is None:
            distribution = self._by_number[group.number]
            rng = random.Random(f"{self._seed}/{group.number}")
            count = 1 if distribution.kind == "fixed" else group.count
            drawn = self._drawn[group.number] = array("d", [distribution.draw(rng) for _ in range(count)])
        return drawn

    def outcome(self, group: JobGroup, index: int, attempt: int) -> Outcome:
        drawn = self.seconds(group)
        return Outcome(drawn[index] if len(drawn) > 1 else drawn[0])


class Listed:
    """Durations that are known job by job, by group number."""

    def __init__(self, seconds: Sequence[Sequence[float]]) -> None:
        self._seconds = seconds

    def outcome(self, group: JobGroup, index: int, attempt: int) -> Outcome:
        return Outcome(self._seconds[group.number][index])
