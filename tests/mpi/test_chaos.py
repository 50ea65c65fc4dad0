"""Processes of a run are killed and stopped at random moments under load: it ends as if nothing had happened.

A seed decides the moments, the victims and the hierarchy. ``MPIFLUX_CHAOS_ROUNDS`` says how many rounds the soak test
plays, from ``MPIFLUX_CHAOS_SEED`` on.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import chaos
from tests.support.mpi import installed_stack
from tests.support.runs import Place

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(
    installed_stack().name != "mpich", reason="--ranks, which lets survivors go on, starts MPICH's ranks only")]

PLANS = (("job", "leaf rank"), ("supervisor", "rank 0"), ("interior rank", "launcher"), ("pause", "everything"))
_UNDISTURBED: list[chaos.End] = []


def check(one: chaos.Round, place: Path) -> None:
    """Every job's end is that of the undisturbed run, recorded once; what was committed did not run again."""
    if not _UNDISTURBED:
        _UNDISTURBED.extend(chaos.undisturbed(place))
    assert one.ends == _UNDISTURBED, one
    assert one.executions >= len(one.ends) and one.recorded_twice == one.ran_again == 0, one
    assert not one.left, one.left


@pytest.mark.parametrize("plan", PLANS, ids=" and ".join)
def test_a_run_that_is_hit_ends_like_one_that_is_not(place: Place, plan: tuple[str, ...]) -> None:
    place.expected |= {"flow.yaml", "marks", "undisturbed", "r7"}
    one = chaos.play(7, place.path, plan)
    check(one, place.path)
    if any(fault.kind in chaos.ENDS_ALL for fault in one.faults):
        assert one.resumes, one


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_soak(place: Place) -> None:
    first, rounds = (int(os.environ.get(f"MPIFLUX_CHAOS_{name}", default))
                     for name, default in (("SEED", "1000"), ("ROUNDS", "200")))
    place.expected |= {"flow.yaml", "marks", "undisturbed", *(f"r{seed}" for seed in range(first, first + rounds))}
    for seed in range(first, first + rounds):
        check(chaos.play(seed, place.path), place.path)
