"""The two programs in ``docs/examples`` that steer, on small inputs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tests.support.runs import Place, Run, place

__all__ = ["place"]

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def steer(place: Place, script: str, *options: str) -> tuple[str, dict[str, int]]:
    name = place.new()
    done = place.call("start", "--run-dir", name, "--cores-per-node", "3", "--", sys.executable,
                      str(EXAMPLES / script), *options, timeout=120)
    return done.stdout, Run(place.path / name).results()


def test_pilot2(place: Place) -> None:
    said, results = steer(place, "pilot2_steering.py", "--patches", "4", "--seconds", "1.2", "--every", "0.4")
    assert results == {"COMPLETED": 5}
    found = re.search(r"4 patches of (\d+) candidates simulated, (\d+) analyses streamed; coupling 0.8 -> ([\d.]+) "
                      r"after (\d+) updates", said)
    assert found, said
    candidates, frames, coupling, updates = found.groups()
    assert int(candidates) > 4 and int(frames) >= 4 and float(coupling) != 0.8 and 1 <= int(updates) <= 4
    novelty = re.search(r"novelty of the first five: (.*)", said)
    assert novelty and [float(word) > 0 for word in novelty[1].split()] == [True] * 3


def test_merlin(place: Place) -> None:
    said, results = steer(place, "merlin_steering.py", "--samples", "16", "--first", "6")
    assert results == {"COMPLETED": 16}
    assert "16 samples, 16 starts heard of" in said, said
    found = re.search(r"best of 6 random samples: ([\d.]+)\n"
                      r"best of 10 that the surrogate chose: ([\d.]+); (\d+) of them are better", said)
    assert found, said
    # 4 to 7 of 10 in every order of ends that was tried; of random ones it would be 1.4
    assert float(found[2]) > float(found[1]) and int(found[3]) >= 3
