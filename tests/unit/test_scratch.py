"""Directories of Open MPI jobs whose supervisors were killed with all that could have taken them away."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mpiflux.node import scratch

NOW = 1e9


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(scratch, "base", lambda: str(tmp_path))
    return tmp_path


def made(base: Path, name: str, age: float) -> int:
    fd = scratch.make_directory(str(base / name))
    (base / name / "segment").touch()
    os.utime(base / name, (NOW - age, NOW - age))
    return fd


def test_what_nobody_has_any_more_is_taken_away(base: Path) -> None:
    os.close(made(base, "mpiflux-pmix-1-left", 3600))
    os.close(made(base, "mpiflux-pmix-2-new", 1))
    os.close(made(base, "another-1-left", 3600))
    held = made(base, "mpiflux-pmix-3-held", 3600)
    (base / "mpiflux-pmix-4-link").symlink_to(base / "another-1-left")
    scratch.remove_abandoned(NOW)
    assert sorted(os.listdir(base)) == ["another-1-left", "mpiflux-pmix-2-new", "mpiflux-pmix-3-held",
                                        "mpiflux-pmix-4-link"]
    os.close(held)
    scratch.remove_abandoned(NOW)
    assert "mpiflux-pmix-3-held" not in os.listdir(base)


def test_there_may_be_no_place_for_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "base", lambda: "/no/such/place")
    scratch.remove_abandoned(NOW)
