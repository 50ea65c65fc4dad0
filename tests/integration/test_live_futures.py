"""What CPython's own tests of concurrent.futures expect of every executor, of ours: for functions and for commands."""

from __future__ import annotations

import concurrent.futures as cf
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mpiflux
from tests.integration.test_live import instance
from tests.support.runs import Place, place

__all__ = ["place"]

FUNCTIONS = """
import os, sys, time

def double(x, y=0):
    return 2 * x + y

def divide(a, b):
    return a // b

def await_file(path):
    while not os.path.exists(path):
        time.sleep(0.01)
    return path

def die():
    os._exit(3)

class Exits(Exception):
    def __reduce__(self):
        return sys.exit, (9,)

class Stops:
    def __reduce__(self):
        raise KeyboardInterrupt

def give_exits():
    return Exits()

def raise_exits():
    raise Exits
"""


@pytest.fixture
def work(place: Place) -> Iterator[Any]:
    place.write("future_functions.py", FUNCTIONS)
    sys.path.insert(0, str(place.path))
    import future_functions  # type: ignore[import-not-found]

    yield future_functions
    sys.path.remove(str(place.path))
    del sys.modules["future_functions"]


def test_futures(place: Place, work: Any, tmp_path: Path) -> None:
    """One instance for all of them: starting one takes longer than most."""
    with instance(place, "--cores-per-node", "4") as (directory, _):
        with mpiflux.Executor(directory, workers=2) as pool:
            for number, part in enumerate((wait_for_the_first, wait_for_the_first_exception, as_completed, map_,
                                           what_is_done, a_broken_call_breaks_no_other, what_cannot_travel)):
                part(pool, work, tmp_path / f"gate{number}")
        cancelled_futures(directory)
        for functions in (True, False):
            shutdown(directory, work, functions)
        shutdown_cancels_functions_that_wait(directory, work, tmp_path / "gate")


def wait_for_the_first(pool: mpiflux.Executor, work: Any, gate: Path) -> None:
    slow = pool.submit(work.await_file, str(gate))
    quick = pool.submit(work.double, 21)
    done, left = cf.wait([slow, quick], 30, cf.FIRST_COMPLETED)
    assert (done, left) == ({quick}, {slow}) and quick.result() == 42
    assert cf.wait([slow], 0.05) == (set(), {slow})
    assert cf.wait([slow, quick], 30, cf.FIRST_COMPLETED)[0] == {quick}, "what has ended counts"
    gate.touch()
    assert cf.wait([slow, quick], 30) == ({slow, quick}, set())


def wait_for_the_first_exception(pool: mpiflux.Executor, work: Any, gate: Path) -> None:
    slow = pool.submit(work.await_file, str(gate))
    fails = pool.submit(work.divide, 1, 0)
    fine = pool.submit(work.divide, 6, 3)
    done, left = cf.wait([slow, fails, fine], 30, cf.FIRST_EXCEPTION)
    assert fails in done and slow in left
    error = fails.exception()
    assert isinstance(error, ZeroDivisionError) and "divide" in str(error.__cause__)
    with pytest.raises(ZeroDivisionError):
        fails.result()
    gate.touch()
    assert cf.wait([slow, fine], 30, cf.FIRST_EXCEPTION) == ({slow, fine}, set()), "none: all of them"


def as_completed(pool: mpiflux.Executor, work: Any, gate: Path) -> None:
    slow = pool.submit(work.await_file, str(gate))
    quick = [pool.submit(work.double, x) for x in range(5)]
    seen = []
    with pytest.raises(TimeoutError):
        for future in cf.as_completed([slow, *quick, quick[0]], timeout=1):
            seen.append(future)
    assert set(seen) == set(quick) and len(seen) == 5, "each once, though one was given twice"
    gate.touch()
    assert list(cf.as_completed([slow], 30)) == [slow]
    assert set(cf.as_completed([slow, *quick], 0)) == {slow, *quick}, "what has ended is there at once"


def map_(pool: mpiflux.Executor, work: Any, gate: Path) -> None:
    assert list(pool.map(work.double, range(20), range(20), timeout=30)) == [
        3 * x for x in range(20)]
    assert list(pool.map(work.double, range(7), chunksize=3)) == [
        2 * x for x in range(7)]
    results = pool.map(work.divide, [4, 1, 9], [2, 0, 3])
    assert next(results) == 2
    with pytest.raises(ZeroDivisionError):
        next(results)
    waiting = pool.map(work.await_file, [str(gate)], timeout=0.05)
    with pytest.raises(TimeoutError):
        next(waiting)
    gate.touch()


def what_is_done(pool: mpiflux.Executor, work: Any, gate: Path) -> None:
    future = pool.submit(work.double, 1, y=1)
    assert future.result(30) == 3 and future.done() and not future.running() and not future.cancelled()
    assert not future.cancel() and future.exception() is None
    called: list[cf.Future[object]] = []
    future.add_done_callback(called.append)
    assert called == [future], "at once"


def cancelled_futures(directory: Path) -> None:
    with mpiflux.Executor(directory, hold=True) as held:
        future = held.submit(["true"])
        called: list[bool] = []
        future.add_done_callback(lambda one: called.append(one.cancelled()))
        assert future.cancel() and future.cancel() and future.cancelled() and future.done() and called == [True]
        with pytest.raises(cf.CancelledError):
            future.result()
        with pytest.raises(cf.CancelledError):
            future.exception()
        assert cf.wait([future], 0).done == {future} and list(cf.as_completed([future], 0)) == [future]


def a_broken_call_breaks_no_other(pool: mpiflux.Executor, work: Any, gate: Path) -> None:
    dies = pool.submit(work.die)
    others = [pool.submit(work.double, x) for x in range(6)]
    assert isinstance(dies.exception(60), cf.process.BrokenProcessPool)
    assert [one.result(60) for one in others] == [2 * x for x in range(6)]


def shutdown(directory: Path, work: Any, functions: bool) -> None:
    made = mpiflux.Executor(directory, workers=1)
    futures = [made.submit(work.double, x) if functions else made.submit(["true"])
               for x in range(4)]
    made.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        made.submit(["true"])
    assert len(cf.wait(futures, 60).done) == 4 and not any(future.cancelled() for future in futures)
    made.shutdown()
    made.shutdown()


def shutdown_cancels_functions_that_wait(directory: Path, work: Any, gate: Path) -> None:
    made = mpiflux.Executor(directory, workers=1)
    first = made.submit(work.await_file, str(gate))
    others = [made.submit(work.double, x) for x in range(20)]
    deadline = time.monotonic() + 60
    while not first.running() and time.monotonic() < deadline:
        time.sleep(0.01)
    made.shutdown(wait=False, cancel_futures=True)
    gate.touch()
    assert first.result(60) == str(gate)
    cf.wait(others, 60)
    cancelled = [one.cancelled() for one in others]
    assert sum(cancelled) >= 18 and cancelled == sorted(cancelled), "but for what was under way"
    made.shutdown()


def what_cannot_travel(pool: mpiflux.Executor, work: Any, gate: Path) -> None:
    with pytest.raises((AttributeError, TypeError, Exception), match="pickle"):
        pool.submit(lambda: 1).result(30)
    with pytest.raises(ValueError, match="at most"):
        pool.submit(work.double, bytes(40 << 20)).result(30)
    assert isinstance(pool.submit(work.give_exits).exception(30), SystemExit)
    assert "Exits" in str(pool.submit(work.raise_exits).exception(30))
    with pytest.raises(KeyboardInterrupt):
        pool.submit(work.double, work.Stops())
    assert pool.submit(work.double, 4).result(30) == 8
