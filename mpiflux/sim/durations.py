"""How long simulated jobs run: drawn from distributions, the same for every variant of one seed."""

from __future__ import annotations

import random
from array import array
from collections.abc import Mapping, Sequence

from mpiflux.model.jobspec import JobGroup
from mpiflux.sim.executor import Outcome
from mpiflux.spec.distributions import HELP, LONGEST, Distribution, DurationError, parse_distribution

__all__ = ["DEFAULT", "Distribution", "DurationError", "Durations", "Listed", "draw", "parse_distribution"]

DEFAULT = "default"


def draw(distribution: Distribution, rng: random.Random) -> float:
    """Seconds, at least 0."""
    a = distribution.arguments
    if distribution.kind == "fixed":
        return a[0]
    if distribution.kind == "uniform":
        return rng.uniform(a[0], a[1])
    if distribution.kind == "exponential":
        return rng.expovariate(1 / a[0]) if a[0] else 0.0
    return a[0] * rng.lognormvariate(0.0, a[1])


class Durations:
    """Implements :class:`mpiflux.sim.executor.Behaviour`: every job completes after its time.

    ``given`` is by group name. A group that it does not name runs for what its own ``duration`` says, else for
    ``default`` of ``given``, else for its time limit. Raises DurationError for a group with none of these, or a name
    that is no group's.
    """

    def __init__(self, groups: Sequence[JobGroup], given: Mapping[str, Distribution], seed: int) -> None:
        names = [group.name for group in groups]
        for name in given:
            if name != DEFAULT and name not in names:
                raise DurationError(f"--duration {name}=…: the workflow has no job {name}; it has {', '.join(names)}")
        self._by_number: dict[int, Distribution] = {}
        self.guessed: list[str] = []
        """Names of groups of which only the time limit is known."""
        for group in groups:
            found = given.get(group.name)
            if found is None and group.duration:
                found = parse_distribution(group.duration)
            found = found or given.get(DEFAULT)
            if found is None and group.time_limit:
                self.guessed.append(group.name)
                found = Distribution("fixed", (group.time_limit,))
            if found is None:
                raise DurationError(f"nothing says how long jobs of {group.name} run: give --duration "
                                    f"{group.name}=… or --duration default=…, or the job the key 'duration'; {HELP}")
            self._by_number[group.number] = found
        self._seed = seed
        self._drawn: dict[int, Sequence[float]] = {}

    def seconds(self, group: JobGroup) -> Sequence[float]:
        """For each element, in their order: one that is added changes no other. Raises DurationError when one of
        them is :data:`LONGEST` or longer."""
        drawn = self._drawn.get(group.number)
        if drawn is None:
            distribution = self._by_number[group.number]
            # not by its number: another entry before it in the file is no reason for other jobs
            rng = random.Random(f"{self._seed}/{group.name}")
            count = 1 if distribution.kind == "fixed" else group.count
            drawn = self._drawn[group.number] = array("d", [draw(distribution, rng) for _ in range(count)])
            if max(drawn, default=0.0) >= LONGEST:
                raise DurationError(f"a job of {group.name} would run for {max(drawn):.3g} s; the most is "
                                    f"{LONGEST:.0e} s: give it shorter durations")
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
