"""Workflows run by the real command, on one rank or on many, in a directory that must hold nothing else afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mpiflux.store.reader import open_run
from tests.support.mpi import MpiRun, clean_environment, installed_stack, start_mpi

ROOT = Path(__file__).parents[2]
LIMIT = 60.0
"""Seconds after which a run is killed and its test fails."""

Done = subprocess.CompletedProcess[str]
Workflow = str | Mapping[str, Any]


def until(true: Callable[[], Any], what: str, seconds: float = LIMIT) -> Any:
    """What ``true`` returns once that is true; fails the test when it never is."""
    end = time.monotonic() + seconds
    while not (value := true()):
        if time.monotonic() > end:
            pytest.fail(f"in {seconds:g} s never: {what}")
        time.sleep(0.02)
    return value


def ended_by(number: int, ranks: int) -> set[int]:
    """Exit statuses of a run that a signal ended.

    Open MPI's mpiexec, when it gets the signal itself, ends its ranks in its own way and with its own status.
    """
    own = {1} if ranks and installed_stack().name == "openmpi" else set()
    return {128 + number} | own


@dataclass
class Run:
    """A run that has ended, or one that goes on."""

    directory: Path
    done: Done | None = None
    """What the command said; None while it goes on."""

    def jobs(self, *, with_output: bool = True) -> list[dict[str, Any]]:
        """Every job record, as ``jobs --json`` prints it."""
        with open_run(str(self.directory)) as reader:
            return list(reader.jobs(with_output=with_output))

    def job(self, name: str, index: int = 0) -> dict[str, Any]:
        return next(job for job in self.jobs() if (job["name"], job["index"]) == (name, index))

    def stdout(self, name: str, index: int = 0) -> bytes:
        return str(self.job(name, index)["stdout"]).encode(errors="surrogateescape")

    def results(self) -> dict[str, int]:
        """How many jobs ended how; those that have not count by their state."""
        found: dict[str, int] = {}
        for job in self.jobs(with_output=False):
            word = job["result"] or job["state"]
            found[word] = found.get(word, 0) + 1
        return found

    def meta(self) -> dict[str, Any]:
        with open_run(str(self.directory)) as reader:
            return dict(reader.meta)


class Place:
    """A current directory for commands. Files that a test asks for are to be named in ``expected``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.expected: set[str] = set()
        self._number = 0

    def write(self, name: str, content: Workflow | bytes) -> Path:
        """A file in the directory; a mapping becomes JSON, which is YAML too."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.expected.add(Path(name).parts[0])
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False))
        return path

    def new(self, stem: str = "r") -> str:
        """The name of a run directory that is not there yet."""
        self._number += 1
        name = f"{stem}{self._number}"
        self.expected.add(name)
        return name

    def start(self, *words: str, ranks: int = 0, env: Mapping[str, str | None] | None = None,
              options: Sequence[str] = ()) -> MpiRun:
        """``python -m mpiflux words…``, running; ``ranks`` of 0 means without an MPI launcher."""
        environ = {"PYTHONPATH": str(ROOT), **(env or {})}
        argv = ["-m", "mpiflux", *words]
        if ranks:
            return start_mpi(ranks, argv, env=environ, cwd=self.path, options=options)
        return MpiRun([sys.executable, *argv], clean_environment(environ), self.path)

    def call(self, *words: str, ranks: int = 0, status: int | None = 0, timeout: float = LIMIT,
             env: Mapping[str, str | None] | None = None, options: Sequence[str] = ()) -> Done:
        """The command to its end, which must be ``status`` unless that is None."""
        with self.start(*words, ranks=ranks, env=env, options=options) as running:
            done = running.wait(timeout)
        if status is not None and done.returncode != status:
            pytest.fail(f"{' '.join(words)} on {ranks} ranks ended with {done.returncode}, not {status}\n"
                        f"-- stdout\n{done.stdout[-3000:]}\n-- stderr\n{done.stderr[-3000:]}")
        return done

    def begin(self, workflow: Workflow, *options: str, ranks: int = 0,
              env: Mapping[str, str | None] | None = None) -> tuple[MpiRun, Run]:
        """``run``, going on."""
        name = self.new()
        running = self.start("run", self._file(workflow, name), "--run-dir", name, *options, ranks=ranks, env=env)
        return running, Run(self.path / name)

    def run(self, workflow: Workflow, *options: str, ranks: int = 0, status: int = 0, timeout: float = LIMIT,
            env: Mapping[str, str | None] | None = None, launch: Sequence[str] = ()) -> Run:
        """``run`` to its end."""
        name = self.new()
        done = self.call("run", self._file(workflow, name), "--run-dir", name, *options, ranks=ranks, status=status,
                         timeout=timeout, env=env, options=launch)
        return Run(self.path / name, done)

    def resume(self, run: Run, workflow: Workflow, *options: str, ranks: int = 0, status: int = 0) -> Run:
        """Go on with a run whose workflow was given to :meth:`run` or :meth:`begin`."""
        name = run.directory.name
        done = self.call("run", self._file(workflow, name), "--run-dir", name, "--resume", *options, ranks=ranks,
                         status=status)
        return Run(run.directory, done)

    def _file(self, workflow: Workflow, name: str) -> str:
        if isinstance(workflow, str) and "\n" not in workflow:
            return workflow
        return self.write(f"{name}.yaml", workflow).name

    def strays(self) -> set[str]:
        return set(os.listdir(self.path)) - self.expected


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A fresh current directory; the test fails when something is left there that nobody asked for."""
    made = Place(tmp_path / "cwd")
    made.path.mkdir()
    yield made
    strays = made.strays()
    assert not strays, f"left in the current directory: {', '.join(sorted(strays))}"


def counted(command: str) -> str:
    """A shell command that first notes its job's id, and its end as ``-id``."""
    return f"echo {{job.id}} >>marks; {command}; echo -{{job.id}} >>marks"


def marks(place: Place) -> Counter[int]:
    place.expected.add("marks")
    path = place.path / "marks"
    return Counter(int(word) for word in path.read_text().split()) if path.exists() else Counter()


def ready(place: Place, count: int, running: MpiRun) -> None:
    """Wait until ``count`` jobs have begun."""
    def true() -> bool:
        assert running.process.poll() is None, running.stderr
        return sum(n for id, n in marks(place).items() if id > 0) >= count
    until(true, f"{count} jobs begin")
