"""Signals before a run can act upon them. Each case is a process of its own, which sends them to itself."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BEGIN = """\
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from mpiflux.instance import early
from mpiflux.instance.early import held
def send(*numbers):
    for number in numbers: os.kill(os.getpid(), number)
"""
TERM, HUP, USR1, INT = signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT


def status(code: str, says: str = "") -> int:
    done = subprocess.run([sys.executable, "-c", BEGIN + code, str(ROOT)], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (says, "")
    return done.returncode


@pytest.mark.parametrize("guard", ["", "held.guard()\n"])
def test_what_came_is_taken_once_and_nothing_is_kept_after(guard: str) -> None:
    code = "held.hold()\nheld.add(signal.SIGINT)\nsend(10, 12, 10)\n" + guard + (
        "send(10, 2)\nprint(sorted(map(int, held.take())), held.take())\nsignal.signal(10, signal.SIG_DFL)\nsend(10)\n")
    assert status(code, "[2, 10, 12] []\n") == -USR1


def test_what_was_ignored_stays_so() -> None:
    code = "signal.signal(1, signal.SIG_IGN)\nheld.hold()\nsend(1, 15)\nprint(held.take() == [15])\n"
    assert status(code, "True\n") == 0


@pytest.mark.parametrize(("number", "code"), [(TERM, -TERM), (HUP, -HUP), (USR1, -USR1)])
def test_released_signals_do_what_they_did_before(number: int, code: int) -> None:
    assert status(f"held.hold()\nsend({number:d})\nprint('held', flush=True)\nheld.release()\ntime.sleep(60)\n",
                  "held\n") == code


def test_kept_twice_is_released_once_and_for_all() -> None:
    """A rank keeps INT from its first line on, and again once it knows that it is one."""
    code = "held.hold()\nheld.add(2)\nheld.add(2)\nheld.release()\n"
    assert status(code + "assert signal.getsignal(2) is signal.default_int_handler\n") == 0


def test_without_hold_nothing_is_kept() -> None:
    """As for programs that use the package and are no ranks."""
    code = "held.add(2)\nheld.guard()\nheld.release()\nassert held.take() == []\nwith held.elsewhere(): send(15)\n"
    assert status(code + "time.sleep(60)\n") == -TERM


DEEP = "held.hold()\nheld.guard()\nwith held.elsewhere():\n    {}\n    time.sleep(60)\n"


@pytest.mark.parametrize(("sent", "code"), [("early.PATIENCE = 0.1; send(15)", TERM), ("send(15); send(15)", TERM),
                                            ("early.PATIENCE = 0.1; send(10, 1)", HUP), ("send(15); send(1)", TERM)])
def test_a_start_that_does_not_end_is_ended(sent: str, code: int) -> None:
    """Signals of the same number that come together are one: the second is sent once the first has been read."""
    sent = sent.replace("; send", "\n    time.sleep(0.3)\n    send")
    assert status(DEEP.format(sent)) == 128 + code


def test_a_warning_does_not_end_a_start() -> None:
    code = "early.PATIENCE = 0.05\nheld.hold()\nheld.guard()\nsend(10)\ntime.sleep(0.3)\nprint(held.take() == [10])\n"
    assert status(code, "True\n") == 0


@pytest.mark.parametrize(("words", "code"), [(["--version"], 0), (["jobs", "nowhere"], 2)])
def test_other_commands_die_of_them(words: list[str], code: int) -> None:
    """``jobs`` is no rank; what is kept is given back before its module is loaded."""
    program = ("held.hold()\nsend(15)\nfrom mpiflux.cli import main\n"
               f"sys.exit(main.main({words!r}))\n")
    done = subprocess.run([sys.executable, "-c", BEGIN + program, str(ROOT)], capture_output=True, timeout=60)
    assert done.returncode == (code if words == ["--version"] else -TERM)
