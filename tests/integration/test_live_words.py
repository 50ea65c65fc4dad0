"""Flux's words at a live instance: bulksubmit, submit --watch --cc, queue, uptime, cancel --all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import mpiflux
from tests.integration.test_live import RANKS, instance
from tests.support.runs import Place, place, until

__all__ = ["place"]

Done = subprocess.CompletedProcess[str]


class Shell:
    def __init__(self, directory: Path, flux: mpiflux.Flux) -> None:
        self.directory, self.flux = directory, flux

    def __call__(self, command: str, *words: str, stdin: str = "", status: int = 0) -> Done:
        line = [sys.executable, "-m", "mpiflux", *command.split(), "--run-dir", str(self.directory), *words]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60, input=stdin)
        assert done.returncode == status, done.stderr
        return done


@contextmanager
def shell(place: Place, ranks: int) -> Iterator[Shell]:
    with instance(place, "--cores-per-node", "4", ranks=ranks) as (directory, _), mpiflux.connect(directory) as flux:
        yield Shell(directory, flux)


@pytest.mark.parametrize("ranks", RANKS)
def test_bulksubmit_and_submit_watch(place: Place, ranks: int) -> None:
    with shell(place, ranks) as call:
        done = call("bulksubmit --watch", "echo", "{0}", "{1}", ":::", "a b", "{x}", ":::", "1", "2")
        lines = done.stdout.splitlines()
        assert lines[:4] == ["1", "2", "3", "4"] and sorted(lines[4:]) == ["a b 1", "a b 2", "{x} 1", "{x} 2"]
        assert call("bulksubmit --dry-run", "echo", "{}", stdin="x\ny z\n").stdout == "echo x\necho 'y z'\n"
        assert "no inputs" in call("bulksubmit", "echo", ":::", status=2).stderr
        script = "echo $MPIFLUX_JOB_CC {cc}; echo e{cc} >&2; exit $MPIFLUX_JOB_CC"
        done = call("submit --watch -q --cc=5-7", "sh", "-c", script, status=7)
        assert sorted(done.stdout.splitlines()) == ["5 5", "6 6", "7 7"]
        assert sorted(done.stderr.splitlines()) == ["e5", "e6", "e7"]
        assert call("submit --dry-run --cc=0-1", "echo", "{cc}", "a b").stdout == "echo 0 'a b'\necho 1 'a b'\n"
        call("submit --watch -q", "sh", "-c", "kill -9 $$", status=137)
        place.expected.add("job-sh.txt")
        call("submit --wait -q --env=-HOME --env=X=1 --env=PATH --output=job-{{name}}.txt", f"--cwd={place.path}",
             "sh", "-c", "echo ${HOME-none} $X $PATH")
        assert (place.path / "job-sh.txt").read_text() == f"none 1 {os.environ['PATH']}\n"
        assert "after is not there" in call("submit --dependency=after:1", "true", status=1).stderr
        fed = call("submit --input=-", "cat").stdout.strip()
        assert call(f"job attach {fed}", stdin="typed").stdout == "typed"


@pytest.mark.parametrize("ranks", RANKS)
def test_queue_stop_start_disable_enable(place: Place, ranks: int) -> None:
    with shell(place, ranks) as call:
        running = call.flux.submit(["sleep", "600"])
        until(lambda: running.record().state == "RUN", "a running job")
        assert "stopped: upgrade" in call("queue stop --message upgrade").stdout
        waits = call.flux.submit_many([["true"]] * 20)
        call("queue disable")
        assert "the queue is disabled" in call("submit", "true", status=1).stderr
        assert json.loads(call("queue status --json").stdout) == {
            "enabled": False, "started": False, "reason": "upgrade"}
        call("queue disable --message full")
        assert "takes no jobs: full (" in call("submit", "true", status=1).stderr
        assert call.flux.gate(started=False)["reason"] == "upgrade; full"
        call("queue enable")
        assert call.flux.gate() == {"enabled": True, "started": False, "reason": "upgrade"}
        last = int(call("submit", "true").stdout)
        # a job that could start would have by now: the ranks have exchanged messages for each of these
        for _ in range(20):
            call.flux.status()
        assert call.flux.status()["jobs"]["run"] == 1 and call.flux.status()["jobs"]["inactive"] == 0
        call("queue start")
        assert waits.wait(30).completed == 20 and call.flux.job(last).result(30).ok
        assert running.record().state == "RUN"
        assert "1 run, 0 wait, 21 ended" in call("uptime").stdout
        assert call("cancel --all").stdout == "1 job cancelled\n"
        call("queue drain")
        assert running.record().result == "CANCELED"
