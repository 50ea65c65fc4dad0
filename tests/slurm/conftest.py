"""The fixture ``slurm``: one sandbox for all tests, of nodes n0, n1, n2 with 4 cores and n3 with 2, and 2 GPUs each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.runs import place
from tests.support.slurm import Slurm, unavailable

__all__ = ["place"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "slurm" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    if reason := unavailable():
        pytest.skip(f"real Slurm: {reason}")
    cluster = Slurm()
    yield cluster
    cluster.stop()
