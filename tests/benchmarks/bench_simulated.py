"""Instances in virtual time under trouble that a seed decides: how much was simulated, and of what kind.

Each seed is a machine, a tree, a workflow and what befalls them (mpiflux/sim/chaos.py, trouble.py), run to its end
with the invariants checked at every step. A seed that fails is named, and fails again by itself.

usage: bench_simulated.py [SEEDS] [FIRST_SEED] [SECONDS]     no seed is begun after so many seconds, 0: all are played
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from _common import machine

from mpiflux.sim.chaos import play


def main() -> int:
    seeds, first, limit = (int(given or usual) for given, usual in zip(
        [*sys.argv[1:4], "", "", ""], ("200", "0", "0"), strict=False))
    seen: Counter[str] = Counter()
    failed: list[int] = []
    jobs, began, seed = 0, time.process_time(), first
    while seed < first + seeds and not (limit and time.process_time() - began > limit):
        try:
            one = play(seed)
        except (AssertionError, RuntimeError, KeyError) as error:
            failed.append(seed)
            print(error, file=sys.stderr)
        else:
            seen += one.seen
            jobs += len(one.cluster.master.table)
        seed += 1
    print(machine())
    spent = time.process_time() - began
    hours = seen.pop("milliseconds") / 3.6e6
    print(f"seeds {first} to {seed - 1}: {hours:.1f} hours of cluster time in {spent:.0f} s of CPU")
    print(f"jobs: {jobs}")
    for what, number in sorted(seen.items()):
        print(f"{what}: {number}")
    print(f"seeds in which an invariant did not hold: {failed or 0}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
