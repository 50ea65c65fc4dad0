"""The fixture ``slurm``: one sandbox for all tests that ask for the same shape.

    def test_x(slurm): ...                                                      # 4 nodes, 4 cores each, no GPU

    @pytest.mark.parametrize("slurm", [{"nodes": 2, "gpus": 2}], indirect=True)   # another shape
    def test_y(slurm): ...
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.slurm import Slurm, unavailable


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "slurm" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def slurm(request: pytest.FixtureRequest) -> Iterator[Slurm]:
    if reason := unavailable():
        pytest.skip(f"real Slurm: {reason}")
    cluster = Slurm(**getattr(request, "param", {}))
    yield cluster
    cluster.stop()
