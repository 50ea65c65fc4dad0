"""Processes of a run are killed and stopped at random moments under load: it ends as if nothing had happened.

A seed decides the moments, the victims and the hierarchy. ``MPIFLUX_CHAOS_ROUNDS`` says how many rounds the soak test
plays, from ``MPIFLUX_CHAOS_SEED`` on.
"""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import chaos
from tests.support.mpi import installed_stack
from tests.support.runs import Place

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(
    installed_stack().name != "mpich", reason="--ranks, which lets survivors go on, starts MPICH's ranks only")]

PLANS = (("job", "leaf rank"), ("supervisor", "rank 0"), ("interior rank", "launcher"), ("pause", "everything"))
"""Those of the first rounds: each kind of fault. The others leave it to their seeds."""
ROUNDS, AT_A_TIME = 20, 5


def check(one: chaos.Round, expected: list[chaos.End]) -> None:
    """Every job's end is that of the undisturbed run, recorded once; what was committed did not run again."""
    assert one.ends == expected, one
    assert one.executions >= len(one.ends) and one.recorded_twice == one.ran_again == 0, one
    assert not one.left, one.left


@pytest.mark.timeout(300)
def test_runs_that_are_hit_end_like_one_that_is_not(place: Place) -> None:
    """Several at a time: each waits for most of its time, and a busy machine makes for other moments."""
    place.expected |= {"flow.yaml", "undisturbed", *map(str, range(ROUNDS))}
    expected = chaos.undisturbed(place.path)

    def play(seed: int) -> chaos.Round:
        own = place.path / str(seed)
        own.mkdir()
        one = chaos.play(seed, own, PLANS[seed] if seed < len(PLANS) else ())
        check(one, expected)
        return one

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        rounds = list(pool.map(play, range(ROUNDS)))
    injected = Counter(fault.kind for one in rounds for fault in one.faults)
    assert set(injected) == set(chaos.KINDS), injected
    for one in rounds:
        assert one.resumes or not any(fault.kind in chaos.ENDS_ALL for fault in one.faults), one


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_soak(place: Place) -> None:
    first, rounds = (int(os.environ.get(f"MPIFLUX_CHAOS_{name}", default))
                     for name, default in (("SEED", "1000"), ("ROUNDS", "200")))
    place.expected |= {"flow.yaml", "marks", "undisturbed", *(f"r{seed}" for seed in range(first, first + rounds))}
    expected = chaos.undisturbed(place.path)
    for seed in range(first, first + rounds):
        check(chaos.play(seed, place.path), expected)
