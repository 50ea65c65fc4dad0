"""Jobs that run: their output as they write it, their stdin, signals, from Python and from the shell."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import mpiflux
import mpiflux.aio
from mpiflux.client.errors import Rejected
from tests.integration.test_live import RANKS, instance
from tests.support.runs import Place, place, until

__all__ = ["place"]

TALKER = 'echo one; echo wrong >&2; while [ ! -e go ]; do sleep 0.02; done; echo two; exit 3'


@pytest.mark.parametrize("ranks", RANKS)
def test_output_is_heard_while_the_job_runs(place: Place, ranks: int) -> None:
    place.expected.add("go")
    with instance(place, "--cores-per-node", "4", ranks=ranks) as (directory, _), \
            mpiflux.connect(directory) as flux:
        job = flux.submit(["sh", "-c", TALKER], cwd=str(place.path))
        heard = {"stdout": "", "stderr": ""}
        with flux.kvs.watch(f"job.{job.id}.stdout") as changes:
            assert changes.get(30).value == b"one\n"
            for piece in job.output():
                heard[piece.stream] += piece.text
                if heard == {"stdout": "one\n", "stderr": "wrong\n"}:
                    assert job.record().state == "RUN"
                    (place.path / "go").touch()
            assert heard == {"stdout": "one\ntwo\n", "stderr": "wrong\n"}
            assert changes.get(30).value == b"two\n" and changes.get(30) is None
        assert [piece.data for piece in job.output("stderr")] == [b"wrong\n"], "also of a job that has ended"
        (place.path / "go").unlink()


@pytest.mark.parametrize("ranks", RANKS)
def test_stdin_and_signals_reach_the_job(place: Place, ranks: int) -> None:
    with instance(place, "--cores-per-node", "4", ranks=ranks) as (directory, _), \
            mpiflux.connect(directory) as flux:
        reader = flux.submit(["sh", "-c", "read line; echo \"$line\"; wc -c"], input="-")
        reader.stdin.write("hello\n")
        reader.stdin.write(b"x" * 3_000_000)
        reader.stdin.close()
        assert reader.result(30).stdout.split() == ["hello", "3000000"]
        with pytest.raises(Rejected, match="has ended"):
            reader.stdin.write("more")
        first_gone = flux.submit(["sh", "-c", "exec <&-; echo deaf; sleep 600"], input="-")
        assert next(first_gone.output()).data == b"deaf\n"
        first_gone.stdin.write(b"x" * 3_000_000)
        assert first_gone.signal(signal.SIGINT)
        assert first_gone.result(30).returncode == -signal.SIGINT
        assert not first_gone.signal(signal.SIGINT)
        # who does not read makes who writes wait, and nobody else
        deaf = flux.submit(["sleep", "600"], input="-")
        with pytest.raises(TimeoutError):
            deaf.stdin.write(b"x" * 3_000_000, timeout=0.3)
        deaf.cancel()
        quick = flux.submit_many([["cat"]] * 20, input="-", retries=1)
        for job in quick:
            job.stdin.close()
        assert quick.wait(30).completed == 20


def test_output_and_stdin_with_asyncio(place: Place) -> None:
    async def talk(directory: Path) -> None:
        async with await mpiflux.aio.connect(directory) as flux:
            job = await flux.submit(["cat"], input="-")
            await job.stdin.write("a\n")
            async for piece in job.output():
                assert piece.data == b"a\n"
                await job.stdin.close()
            assert (await job.result()).ok

    with instance(place) as (directory, _):
        asyncio.run(asyncio.wait_for(talk(directory), 60))


@contextmanager
def attach(job: int, directory: Path, stdin: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "mpiflux", "job", "attach", str(job), str(directory)]
    with subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as attached:
        try:
            yield attached
        finally:
            attached.kill()


@pytest.mark.parametrize("ranks", RANKS)
def test_attach_is_as_if_the_job_ran_here(place: Place, ranks: int) -> None:
    with instance(place, "--cores-per-node", "4", ranks=ranks) as (directory, _), \
            mpiflux.connect(directory) as flux:
        job = flux.submit(["sh", "-c", "trap 'echo usr; exit 4' USR1; read a; echo \"$a\"; read b; "
                                       "while :; do sleep 0.02; done"], input="-")
        with attach(job.id, directory, subprocess.PIPE) as attached:
            assert attached.stdin is not None and attached.stdout is not None
            attached.stdin.write("typed\n")
            attached.stdin.flush()
            assert attached.stdout.readline() == "typed\n"
            attached.stdin.write("more\n")
            attached.stdin.close()
            attached.send_signal(signal.SIGUSR1)
            assert attached.stdout.readline() == "usr\n"
            assert attached.wait(30) == 4

        sleeper = flux.submit(["sh", "-c", "echo up; sleep 600"])
        with attach(sleeper.id, directory, subprocess.DEVNULL) as attached:
            assert attached.stdout is not None and attached.stderr is not None
            assert attached.stdout.readline() == "up\n"
            attached.send_signal(signal.SIGINT)
            assert "Ctrl-C again" in attached.stderr.readline()
            os.kill(attached.pid, signal.SIGINT)
            assert attached.wait(30) == 143
            assert "cancelled by Ctrl-C" in attached.stderr.read()
        assert sleeper.result(30).result == "CANCELED"

        other = flux.submit(["sleep", "600"])
        until(lambda: other.record().state == "RUN", "a running job")
        killed = subprocess.run([sys.executable, "-m", "mpiflux", "job", "kill", "-s", "KILL", str(other.id),
                                 "--run-dir", str(directory)], capture_output=True, text=True, timeout=60)
        assert (killed.returncode, killed.stdout) == (0, "1 job signalled\n"), killed.stderr
        assert other.result(30).returncode == -signal.SIGKILL
