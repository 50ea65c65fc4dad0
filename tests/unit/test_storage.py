"""When the run directory cannot be written: pause, go on, or give up."""

from __future__ import annotations

from mpiflux.instance.storage import MOST, PATIENCE, SLOW, Storage


def test_it_is_said_once_and_goes_on_by_itself() -> None:
    storage = Storage()
    assert storage.look(None, 0, 3, 0.0) == "" and not storage.paused
    assert storage.look("full (1 bytes wait)", 1, 3, 1.0).startswith("full") and storage.paused
    assert storage.look("full (2 bytes wait)", 2, 3, 100.0) == "" and storage.paused and not storage.given_up
    assert "again" in storage.look(None, 0, 2, 101.0) and not storage.paused


def test_it_ends_only_when_nothing_runs_for_a_while() -> None:
    storage = Storage()
    storage.look("full", 1, 0, 0.0)
    storage.look("full", 1, 0, PATIENCE)
    storage.look("full", 1, 1, PATIENCE + 1)
    storage.look("full", 1, 0, PATIENCE + 2)
    storage.look("full", 1, 0, 2 * PATIENCE + 2)
    assert not storage.given_up
    storage.look("full", 1, 0, 2 * PATIENCE + 2.1)
    assert storage.given_up and storage.look(None, 0, 0, 99.0) == ""


def test_memory_is_bounded() -> None:
    storage = Storage()
    storage.look(None, MOST * 2, 5, 0.0)
    assert storage.paused and not storage.given_up, "slow is not broken"
    storage.look(None, SLOW // 2, 5, 1.0)
    assert storage.paused
    storage.look(None, SLOW // 8, 5, 2.0)
    assert not storage.paused
    storage.look("full", MOST + 1, 5, 3.0)
    assert storage.given_up
