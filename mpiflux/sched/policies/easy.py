"""EASY backfilling: the head has a reservation, everything else may start that does not delay it.

Lifka, The ANL/IBM SP scheduling system, 1995; Mu'alem and Feitelson, IEEE TPDS 12(6), 2001.
"""

from __future__ import annotations

from typing import ClassVar

from mpiflux.sched.policies.fcfs import Fcfs


class Easy(Fcfs):
    """First come, first served; when the head does not fit, it gets the earliest place that the time limits of what
    runs promise, and jobs behind it may start where they leave it that place. The promise is made anew, never later,
    after every change.

    ``queue_depth``: how many entries that do not fit it looks at, the head among them.

    Between schedulers there are no reservations: there it is ``fcfs`` of the same depth, and the policies of those
    that have resources plan.
    """

    name: ClassVar[str] = "easy"
    options: ClassVar[tuple[str, ...]] = ("queue_depth",)
    default_depth: ClassVar[int] = 128
    default_patience: ClassVar[float] = 0.0
