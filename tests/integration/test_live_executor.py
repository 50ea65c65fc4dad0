"""The executor: what concurrent.futures promises, commands as jobs, functions in workers."""

from __future__ import annotations

import concurrent.futures as cf
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import mpiflux
from mpiflux.client.connection import Connection
from tests.integration.test_live import instance
from tests.support.runs import ROOT, Place, place, until

__all__ = ["place"]

FUNCTIONS = """
import os, time

def add(a, b=0):
    return a + b

def fail(text):
    raise ValueError(text)

def die():
    os.kill(os.getpid(), 9)

def where():
    return os.getpid(), os.environ["MPIFLUX_JOB_ID"], sorted(os.sched_getaffinity(0))

def touch(path):
    time.sleep(0.2)
    open(path, "w").close()

def await_file(path):
    while not os.path.exists(path):
        time.sleep(0.02)

class Odd(Exception):
    def __init__(self, a, b):
        super().__init__(a)

def odd():
    raise Odd(1, 2)
"""


@pytest.fixture
def directory(place: Place) -> Iterator[Path]:
    with instance(place, "--cores-per-node", "2") as (path, _):
        yield path


@pytest.fixture
def functions(place: Place, monkeypatch: pytest.MonkeyPatch) -> object:
    place.write("work_functions.py", FUNCTIONS)
    monkeypatch.syspath_prepend(str(place.path))
    sys.modules.pop("work_functions", None)
    import work_functions  # type: ignore[import-not-found]

    return work_functions


def test_commands(directory: Path) -> None:
    with mpiflux.Executor(directory, name="sim") as pool:
        futures = [pool.submit(["sh", "-c", f"echo {i}; exit {i % 3}"]) for i in range(60)]
        for i, future in enumerate(futures):
            result = future.result(30)
            assert (result.stdout, result.returncode, result.name) == (f"{i}\n", i % 3, "sim")
        assert {future.jobid() for future in futures} == set(range(1, 61))
        assert set(cf.as_completed(futures)) == set(futures)
        assert cf.wait(futures).not_done == set()
        named = pool.submit(["true"], name="other", cores=2)
        assert named.result(30).cores == "0-1" and named.result().name == "other"
        wrong = pool.submit(["true"], cores=1000)
        right = pool.submit(["true"])
        assert isinstance(wrong.exception(30), mpiflux.Rejected) and right.result(30).ok
        with pytest.raises(mpiflux.Rejected):
            wrong.jobid()
        ids = [one.jobid_future for one in (right, futures[0], pool.submit(["true"]))]
        assert cf.wait(ids, 30).not_done == set() and [one.result() for one in ids] == [62, 1, 63]
        assert isinstance(wrong.jobid_future.exception(30), mpiflux.Rejected)
        with pytest.raises(TypeError):
            pool.submit("true")
        with pytest.raises(TypeError):
            pool.submit(["true"], nonsense=1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(["true"])
    with pytest.raises(TypeError, match="nonsense"):
        mpiflux.Executor(directory, nonsense=1)


def test_cancelling(directory: Path) -> None:
    with mpiflux.Executor(directory) as pool:
        runs = pool.submit(["sleep", "60"])
        until(lambda: runs.jobid(30) and pool.flux.job(runs.jobid()).record().state == "RUN", "it runs")
        assert runs.cancel() and runs.cancelled() and runs.done()
        with pytest.raises(cf.CancelledError):
            runs.result()
        assert pool.flux.job(runs.jobid()).result(30).result == "CANCELED"
        done = pool.submit(["true"])
        assert done.result(30).ok and not done.cancel()
        outside = pool.submit(["sleep", "60"])
        pool.flux.cancel(outside.jobid(30))
        assert outside.result(30).result == "CANCELED"


def test_shutdown_cancels_what_has_not_begun(directory: Path, place: Place) -> None:
    place.expected.add("end")
    with mpiflux.Executor(directory) as pool:
        runs = pool.submit(["sh", "-c", "while ! [ -e end ]; do sleep 0.05; done; echo fin"], cores=2,
                           cwd=str(place.path))
        waits = [pool.submit(["sleep", "60"]) for _ in range(10)]
        until(runs.running, "it runs")
        assert not waits[0].jobid(30) or not waits[0].running()
        pool.shutdown(wait=False, cancel_futures=True)
        cf.wait(waits, 30)
        assert all(future.cancelled() for future in waits) and runs.running()
        place.write("end", "")
    assert runs.result(0).stdout == "fin\n" and not runs.running()


def test_a_callback_that_raises_ends_nothing(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    def exits(*_: object) -> None:
        sys.exit(3)

    with mpiflux.Executor(directory) as pool:
        future = pool.submit(["true"])
        future.add_jobid_callback(lambda one: 1 / 0)
        future.add_event_callback("start", exits)
        future.add_done_callback(exits)
        assert future.result(30).ok and pool.submit(["true"]).result(30).ok
        future.add_jobid_callback(exits)
        future.add_event_callback("start", lambda one, event: [][0])
    assert "ZeroDivisionError" in caplog.text and "SystemExit: 3" in caplog.text and "IndexError" in caplog.text


@pytest.mark.parametrize("workers", [0, -3])
def test_no_workers_are_refused(directory: Path, workers: int) -> None:
    with pytest.raises(ValueError, match="workers"):
        mpiflux.Executor(directory, workers=workers)


def lose(connection: Connection) -> None:
    """What a broken connection is to a client."""
    connection._sock.shutdown(socket.SHUT_RDWR)


def test_a_lost_connection(directory: Path, functions: object, place: Place) -> None:
    place.expected.add("end")
    with mpiflux.Executor(directory, workers=1) as pool:
        command = pool.submit(["sh", "-c", "while ! [ -e end ]; do sleep 0.05; done; echo fin"], cwd=str(place.path))
        until(command.running, "it runs")
        first = pool.submit(functions.where).result(30)[0]
        waiting = [pool.submit(functions.await_file, str(place.path / "end")) for _ in range(10)]
        for _ in range(2):
            waiting = [one for one in waiting if not one.done()]
            until(waiting[0].running, "one is under way")
            lose(pool._connection)
            until(waiting[0].done, "it is lost")
        place.write("end", "")
        assert isinstance(waiting[0].exception(), mpiflux.ConnectionLost)
        assert command.result(30).stdout == "fin\n"
        assert waiting[-1].result(30) is None
        assert pool.submit(functions.where).result(30)[0] != first
        assert pool.submit(["true"]).result(30).ok


UNFINISHED = """
import sys, mpiflux
from work_functions import touch

if __name__ == "__main__":
    pool = mpiflux.Executor(sys.argv[1])
    for i in range(4):
        pool.submit(["sh", "-c", f"sleep 0.2; touch {sys.argv[3]}.c{i}"])
        pool.submit(touch, f"{sys.argv[3]}.f{i}")
    if sys.argv[2] == "shutdown":
        pool.shutdown(wait=False)
"""


@pytest.mark.parametrize("how", ["shutdown", "no-shutdown"])
def test_the_program_ends_when_what_it_submitted_has(directory: Path, place: Place, how: str) -> None:
    place.write("work_functions.py", FUNCTIONS)
    place.write("unfinished.py", UNFINISHED)
    names = [f"done.{kind}{i}" for kind in "cf" for i in range(4)]
    place.expected.update(names)
    subprocess.run([sys.executable, "unfinished.py", str(directory), how, str(place.path / "done")], check=True,
                   cwd=place.path, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert [name for name in names if not (place.path / name).exists()] == []


def test_callbacks_may_call_anything(directory: Path) -> None:
    with mpiflux.Executor(directory) as pool:
        seen: list[str] = []
        more: list[cf.Future[object]] = []
        over = threading.Event()

        def then(future: cf.Future[object]) -> None:
            more.append(pool.submit(["echo", str(pool.flux.status()["groups"])]))
            over.set()

        future = pool.submit(["echo", "x"])
        future.add_event_callback("start", lambda one, event: seen.append(f"{event.name} {one.jobid()}"))
        future.add_jobid_callback(lambda one: seen.append(f"id {one.jobid()}"))
        future.add_done_callback(then)
        assert over.wait(30) and more[0].result(30)
        until(lambda: len(seen) == 2, "both are told")
        assert set(seen) == {"start 1", "id 1"}
        future.add_event_callback("clean", lambda one, event: seen.append(event.name))
        until(lambda: seen[-1] == "clean", "what is past is told too")
        with pytest.raises(ValueError, match="nonsense"):
            future.add_event_callback("nonsense", print)


def test_functions(directory: Path, functions: object, place: Place) -> None:
    with mpiflux.Executor(directory) as pool:
        assert pool.submit(functions.add, 1, b=2).result(30) == 3
        assert list(pool.map(functions.add, range(200), range(200))) == [2 * i for i in range(200)]
        homes = {pool.submit(functions.where).result(30) [0] for _ in range(20)}
        assert 1 <= len(homes) <= 2
        with pytest.raises(ValueError, match="no luck") as caught:
            pool.submit(functions.fail, "no luck").result(30)
        assert 'raise ValueError(text)' in str(caught.value.__cause__)
        with pytest.raises(RuntimeError, match="Odd"):
            pool.submit(functions.odd).result(30)
        with pytest.raises(Exception, match=r"[Pp]ickle"):
            pool.submit(functions.add, lambda: 1).result(30)
        with pytest.raises(Exception, match=r"[Pp]ickle"):
            pool.submit(lambda: 1).result(30)
        before = [pool.submit(functions.add, i) for i in range(20)]
        broken = pool.submit(functions.die)
        after = [pool.submit(functions.add, i) for i in range(20)]
        with pytest.raises(cf.process.BrokenProcessPool, match="only this call"):
            broken.result(30)
        assert [future.result(30) for future in (*before, *after)] == [*range(20), *range(20)]
    assert pool.submit is not None


def test_a_cancelled_function_is_not_called(directory: Path, functions: object, place: Place) -> None:
    names = [str(place.path / f"touched{i}") for i in range(12)]
    place.expected.update(Path(name).name for name in names)
    with mpiflux.Executor(directory, workers=1) as pool:
        futures = [pool.submit(functions.touch, name) for name in names]
        cancelled = [future.cancel() for future in futures]
        assert any(cancelled) and not all(cancelled)
    assert [os.path.exists(name) for name in names] == [not one for one in cancelled]


def test_workers_end_when_their_executor_is_killed(directory: Path, place: Place) -> None:
    place.write("killed.py", "import mpiflux, math, os\n"
                             f"pool = mpiflux.Executor({str(directory)!r})\n"
                             "assert pool.submit(math.sqrt, 4).result(30) == 2\n"
                             "pool.submit(['sleep', '1000'], cores=2, name='mine').jobid(30)\n"
                             "keeps = mpiflux.Executor(pool.flux.run_dir, keep_jobs=True)\n"
                             "keeps.submit(['sleep', '1000'], cores=2, name='kept').jobid(30)\n"
                             "os.kill(os.getpid(), 9)\n")
    with mpiflux.connect(directory) as flux:
        killed = flux.submit([sys.executable, "killed.py"], cwd=str(place.path), cores=1)
        assert killed.result(60).returncode == -9
        mine, kept = flux.job("mine"), flux.job("kept")
        assert mine.result(60).result == "CANCELED" and "has gone" in mine.result().reason
        assert kept.record().state in ("SCHED", "RUN")
        kept.cancel()
        assert flux.wait(None, 30).completed >= 1


MAIN = """
import mpiflux

class Point:
    def __init__(self, x): self.x = x

def double(point): return Point(2 * point.x)

if {condition}:
    with mpiflux.Executor(workers=1) as pool:
        try: print(pool.submit(double, Point(21)).result(60).x)
        except RuntimeError as error: print(error)
"""


@pytest.mark.parametrize(("condition", "said"), [("__name__ == '__main__'", "42\n"),
                                                 ("True", "if __name__ == '__main__'")])
def test_functions_of_the_steering_program_itself(place: Place, condition: str, said: str) -> None:
    place.write("main.py", MAIN.replace("{condition}", condition))
    done = place.call("start", "--run-dir", place.new(), "--", sys.executable, "main.py")
    assert said in done.stdout, done.stdout + done.stderr
