"""The process that forks supervisors, and the end of its rank."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from mpiflux.node.zygote import BELL, fork_zygote
from tests.support.leaks import LeakCheck
from tests.support.runs import until


@pytest.mark.parametrize("unheard", [b"", b"bury 0", b"supervisor 0"], ids=["idle", "burying", "forking"])
def test_it_tidies_up_when_its_rank_is_gone(tmp_path: Path, no_leaks: LeakCheck, unheard: bytes) -> None:
    """Also when the rank has not heard the answer to its last request."""
    door = tmp_path / "door"
    door.mkdir()
    (door / f"{BELL}0").touch()
    zygote = fork_zygote(preload=False)
    zygote.tidy(str(door))
    os.kill(zygote.pid, signal.SIGSTOP)
    if unheard:
        zygote.control.send(unheard)
    zygote.control.close()
    os.kill(zygote.pid, signal.SIGCONT)
    until(lambda: os.waitpid(zygote.pid, os.WNOHANG)[0], "the zygote has left")
    assert not door.exists()
