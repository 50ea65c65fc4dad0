"""What the runtime's own work costs, in seconds of CPU or of delay; ``tests/benchmarks/calibrate.py`` measures it."""

from __future__ import annotations

import json
import os

import msgspec

DEFAULT = os.path.join(os.path.dirname(__file__), "costs.json")


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """All in seconds. All 0: an ideal runtime, in which only jobs and messages take time."""

    turn: float = 0.0
    """A turn of a rank's loop, whatever it does."""
    batch: float = 0.0
    """A batch sent or received by MPI, on each side; on a supervisor's socket likewise."""
    message: float = 0.0
    """A message within a batch, on each side."""
    settle: float = 0.0
    """A scheduler's decision, whatever it starts."""
    deal_chunk: float = 0.0
    """A range of jobs sent to a child, and taken into its queue."""
    deal_job: float = 0.0
    """Each job of it, until its record has passed on the way up."""
    grant: float = 0.0
    """Resources placed, leased, and given back."""
    feed_chunk: float = 0.0
    """A range of jobs fed to an executor."""
    feed_job: float = 0.0
    """Each job of it, until its record has passed."""
    master_report: float = 0.0
    """A report applied to job table and journal on rank 0."""
    master_record: float = 0.0
    """Each record of it."""
    spawn: float = 0.0
    """The supervisor's time to start a process; it starts them one after the other."""
    reap: float = 0.0
    """The supervisor's time to end one."""
    process: float = 0.0
    """From a started process that does nothing to its end, on its own core."""
    commit: float = 0.05
    """Longest time until the journal has committed what dependants wait for."""
    poll: float = 0.0
    """First pause of an idle rank between two looks at MPI; they double up to ``poll_longest``. 0: it never misses."""
    poll_longest: float = 0.0
    local: float = 0.0
    """Delay of a message within a node."""
    remote: float = 0.0
    """Delay of a message between nodes."""


def load_costs(path: str = DEFAULT) -> Costs:
    """Costs from JSON: a mapping with at least the key ``costs``. Raises ValueError, OSError."""
    with open(path, encoding="utf-8") as file:
        data = json.load(file)
    try:
        found = msgspec.convert(data["costs"], Costs)
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise ValueError(f"{path} holds no costs: {error}; make it by tests/benchmarks/calibrate.py") from None
    unknown = set(data["costs"]) - set(Costs.__struct_fields__)
    if unknown or any(getattr(found, name) < 0 for name in Costs.__struct_fields__):
        raise ValueError(f"{path}: unknown or negative costs: {', '.join(sorted(unknown)) or 'negative'}")
    return found
