"""What ``doctor`` finds where something is missing."""

from __future__ import annotations

from typing import Any

import pytest

from mpiflux.cli import doctor
from mpiflux.instance import health
from mpiflux.overlay import mpi
from tests.unit import recorded_environments as recorded


@pytest.mark.parametrize(("environ", "words"), [
    ({}, "there is no MPI: one rank works"), (recorded.SLURM_PMI2, "MPI cannot be used: no mpi4py"),
])
def test_without_mpi(environ: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch,
                     tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def load() -> None:
        raise ImportError("no mpi4py")

    monkeypatch.setattr(mpi, "load", load)
    monkeypatch.setattr(health.os, "environ", {**environ, "SLURM_PROCID": "0", "PATH": ""})
    found: list[dict[str, Any]] = []
    assert health.examine(str(tmp_path), found.append) == 1
    assert any(words in problem for problem in found[0]["problems"])
    doctor._show(found[0], found[0]["rank"])
    assert "MPI            none" in capsys.readouterr().out
