"""Jobs whose next try has to wait, those of an earlier instance too."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpiflux.instance.postponed import Postponed


def ids(*jobs: int) -> Any:
    return np.array(jobs, "i8")


def test_what_an_earlier_instance_tried_rests_until_it_is_due() -> None:
    postponed = Postponed([(90.0, ids(1, 2)), (110.0, ids(3, 4)), (120.0, ids(5))], 100.0)
    assert postponed.awake(ids(1, 2, 3, 4, 5, 6)).tolist() == [1, 2, 6], "the time of 1 and 2 has come meanwhile"
    assert postponed.next == 110.0 and postponed.when(4) == 110.0 and postponed.when(1) == 0.0
    assert [found.tolist() for found in postponed.due(110.0)] == [[3, 4]]
    assert postponed.awake(ids(3, 4, 5)).tolist() == [3, 4] and postponed.when(3) == 0.0


def test_what_this_instance_tried_does_not_rest() -> None:
    """Its group has been handed out: it comes again by itself."""
    postponed = Postponed([], 100.0)
    postponed.add(105.0, ids(7))
    assert postponed.when(7) == 105.0 and postponed.awake(ids(7)).tolist() == [7] and not postponed.resting
    postponed.clear()
    assert postponed.due(200.0) == [] and postponed.when(7) == 0.0


def test_who_is_nobody_s_any_more_still_rests() -> None:
    postponed = Postponed([(110.0, ids(3))], 100.0)
    postponed.clear()
    assert postponed.next == float("inf") and not len(postponed.awake(ids(3)))
