"""Options and fixtures of all tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.leaks import no_leaks

__all__ = ["no_leaks"]

for _number, _default in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler),
                          (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        # nohup, or a background job of a script: what tests start must be stoppable as from a terminal
        signal.signal(_number, _default)

# How long an example takes says nothing on a busy machine. A clone's check draws the same examples each time, so that a
# change is judged by itself; `make test` and `make soak` draw others every time.
settings.register_profile("mpiflux", deadline=None, suppress_health_check=[HealthCheck.too_slow],
                          derandomize=bool(os.environ.get("CI")))
settings.load_profile("mpiflux")

REAL = {"mpi", "integration", "slurm"}
"""Directories whose tests start real processes, and so must prove that they leave none."""


def pytest_addoption(parser: pytest.Parser) -> None:
    # pytest-mpi's names and meanings; a test starts its own mpiexec, so pytest itself runs as one plain process
    group = parser.getgroup("mpi")
    group.addoption("--with-mpi", action="store_true", help="run the tests marked mpi too")
    group.addoption("--only-mpi", action="store_true", help="run only the tests marked mpi")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    only = config.getoption("--only-mpi")
    if only:
        chosen = [item for item in items if item.get_closest_marker("mpi")]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
        items[:] = chosen
    for item in items:
        if item.get_closest_marker("mpi") and not (only or config.getoption("--with-mpi")):
            item.add_marker(pytest.mark.skip(reason="starts MPI ranks: run with --with-mpi"))


def pytest_report_header(config: pytest.Config) -> str:
    from tests.support.mpi import installed_stack

    try:
        stack = installed_stack()
    except RuntimeError:
        return "mpi: no wheel in this environment"
    return f"mpi: {stack.name} {stack.version}"


@pytest.fixture(autouse=True)
def _leak_check(request: pytest.FixtureRequest) -> None:
    parts = Path(request.node.path).relative_to(Path(__file__).parent).parts
    if parts[0] in REAL:
        request.getfixturevalue("no_leaks")
