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
    said, results = steer(place, "merlin_steering.py", "--samples", "12", "--first", "6")
    assert results == {"COMPLETED": 12}
    found = re.search(r"12 samples, 6 of them random, 12 starts heard of; best log yield ([\d.]+) "
                      r"\(random ones: ([\d.]+)\)", said)
    assert found, said
    assert float(found[1]) >= float(found[2])
    assert "error of the surrogate" in said
