"""``--restarts N``: a run whose ranks were lost is gone on with by all ranks, started anew.

MPI's world cannot grow, so that a rank which is lost cannot be replaced in it. The others are ended as by TERM instead,
what they ran is lost with it, and all ranks start again with ``--resume`` in the same run directory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from mpiflux.instance.hosts import Layout
from mpiflux.instance.selflaunch import Outcome, start_all


class Plan(NamedTuple):
    """What is started, and how often again."""

    words: Callable[[bool, float], Sequence[str]]
    """The command of a rank: whether it resumes, and the seconds that are left of ``time_limit``."""
    layout: Layout
    restarts: int
    time_limit: float = 0.0
    """Seconds for all together; 0 is no limit."""
    says_ready: bool = False


def launch_again(plan: Plan, environ: Mapping[str, str], tell: Callable[[str], None],
                 clock: Callable[[], float] = time.monotonic,
                 start: Callable[..., Outcome] = start_all) -> int:
    """Start the ranks of a plan until the run has come to an end; the exit status of the last start.

    A start that fails before all ranks are up, because of hosts that have been reached before, is repeated without
    those hosts and does not count: others can go on with the run.
    """
    began, layout, used, resume = clock(), plan.layout, 0, False
    while True:
        left = plan.time_limit - (clock() - began) if plan.time_limit else 0.0
        outcome = start(plan.words(resume, left), environ, tell, layout, plan.says_ready, used < plan.restarts)
        if outcome.over or not outcome.lost:
            return outcome.status
        lost = _named(layout, outcome.lost)
        if not outcome.up:
            smaller = without_hosts(layout, outcome.lost) if resume else None
            if smaller is None:
                return outcome.status
            layout = smaller
            tell(f"{lost} not to be started: going on without {_hosts(plan.layout, layout)}")
            continue
        if plan.time_limit and clock() - began >= plan.time_limit:
            return outcome.status
        if used == plan.restarts:
            if used:
                tell(f"{lost} lost, and all ranks have been started again {_times(used)}, as --restarts has it: "
                     "go on with run --resume")
            return outcome.status
        used, resume = used + 1, True
        tell(f"{lost} lost: going on with the run (restart {used} of {plan.restarts})")


def without_hosts(layout: Layout, ranks: Collection[int]) -> Layout | None:
    """The same without the hosts of these ranks; None when nothing would be left, or nothing is to be left out."""
    gone = {layout.hosts[rank] for rank in ranks} - layout.here
    kept = tuple(host for host in layout.hosts if host not in gone)
    return layout._replace(hosts=kept) if kept and gone else None


def _named(layout: Layout, ranks: Sequence[int]) -> str:
    text = ", ".join(f"rank {rank} on {layout.hosts[rank]}" if layout.rsh else f"rank {rank}" for rank in ranks)
    return f"{text} {'was' if len(ranks) == 1 else 'were'}" if ranks else ""


def _hosts(before: Layout, now: Layout) -> str:
    return ", ".join(host for host in dict.fromkeys(before.hosts) if host not in now.hosts)


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"
