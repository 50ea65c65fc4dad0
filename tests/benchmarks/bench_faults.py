"""What runs survive: kill -9 and SIGSTOP of real processes at random moments, and what became of the jobs.

    python tests/benchmarks/bench_faults.py [ROUNDS] [FIRST_SEED]

A round is 60 jobs in two groups on 4 ranks, with one to four faults of the seed's choice, and ``run --resume`` as
often as it takes. "Running again": until the first of the lost jobs began once more, from the fault on, or from the
start of ``run --resume`` where that is needed. Each job's end is compared with that of an undisturbed run. Exits with 1
when something is lost.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from _common import machine

from tests.support import chaos


def in_directory(seed: int, rounds: list[chaos.Round], expected: list[chaos.End]) -> None:
    """Play a seed; ``expected`` is filled by the first."""
    place = Path(tempfile.mkdtemp(prefix="faults-"))
    os.environ["TMPDIR"] = str(place)
    try:
        if not expected:
            expected += chaos.undisturbed(place)
        rounds.append(chaos.play(seed, place))
    finally:
        shutil.rmtree(place)


def shown(times: Sequence[float | None]) -> str:
    """Their median and maximum."""
    known = [one for one in times if one is not None]
    return f"{statistics.median(known):>27.2f} s{max(known):>8.2f} s" if known else f"{'-':>29}{'-':>10}"


def main() -> int:
    count, first = (int(given or usual) for given, usual in zip([*sys.argv[1:3], "", ""], ("20", "0"), strict=False))
    rounds: list[chaos.Round] = []
    expected: list[chaos.End] = []
    base = os.environ.get("TMPDIR")
    for seed in range(first, first + count):
        in_directory(seed, rounds, expected)
        if base is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = base
    print(machine())
    heads = (f"{what + ' after, median':>29}{'longest':>10}" for what in ("noticed", "running again"))
    print(f"{'fault':<14}{'injected':>9}{''.join(heads)}")
    for kind in chaos.KINDS:
        faults = [fault for one in rounds for fault in one.faults if fault.kind == kind]
        print(f"{kind:<14}{len(faults):>9}{shown([f.noticed for f in faults])}{shown([f.recovered for f in faults])}")
    lost = sum(end not in one.ends for one in rounds for end in expected)
    bad = {"ends other than the undisturbed run's": lost,
           "jobs with two results recorded": sum(one.recorded_twice for one in rounds),
           "jobs run again though their end was committed": sum(one.ran_again for one in rounds),
           "processes left": sum(len(one.left) for one in rounds)}
    for what, number in {"rounds": len(rounds), "jobs": len(expected) * len(rounds),
                         "resumptions": sum(one.resumes for one in rounds),
                         "attempts begun": sum(one.executions for one in rounds), **bad}.items():
        print(f"{what}: {number}")
    return int(any(bad.values()))


if __name__ == "__main__":
    sys.exit(main())
