"""Instances inside jobs of a run: found by what they made known in its keys, read in their own run directories."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpiflux.store.reader import RunReader

KEY = "instances"
"""As in :mod:`mpiflux.instance.nesting`."""
DEEPEST = 32
"""No run is followed deeper: a directory that names itself must not hang the reader."""


@dataclass(frozen=True)
class Inner:
    """An instance inside a job. ``path`` names the jobs from the outermost run to it: ``12/3``."""

    path: str
    facts: dict[str, Any]

    def title(self, below: RunReader | str) -> str:
        """What it is and how far, in a line; ``below`` is the reader of its directory, or why there is none."""
        state = self.facts.get("state", "running")
        if not isinstance(below, str):
            counts = below.table.counts()
            state = f"{below.state}, {counts.inactive:,} of {counts.total:,} jobs ended"
        return (f"{self.path}: {self.facts.get('name', '?')} on {self.facts.get('host', '?')}, {state}, "
                f"{self.facts['run_dir']}")


def inner(reader: RunReader, path: str = "") -> list[Inner]:
    """The instances inside a run's jobs, in the order of those; once where attempts went on with each other's run."""
    from mpiflux.store.kvs import KvsError

    try:
        items = reader.kvs().items(KEY)
    except KvsError:
        return []
    known = [(change.key, change.value) for change in items]
    found = []
    for key, facts in known:
        if isinstance(facts, dict) and isinstance(facts.get("run_dir"), str):
            job = facts.get("job")
            name = str(job) if isinstance(job, int) else key.rpartition(".")[2]
            found.append((job if isinstance(job, int) else 1 << 62, facts.get("attempt") or 0, name, facts))
    found.sort(key=lambda one: one[:3])
    found = list({(one[0], one[3]["run_dir"]): one for one in found}.values())
    return [Inner(f"{path}/{name}" if path else name, facts) for _, _, name, facts in found]


@contextmanager
def opened(one: Inner) -> Iterator[RunReader | str]:
    """The reader of an inner run's directory, or why it cannot be read from here."""
    from mpiflux.store.reader import RunError, open_run

    try:
        reader = open_run(one.facts["run_dir"])
    except (RunError, OSError) as error:
        yield str(error)
        return
    with reader:
        yield reader


def walk(reader: RunReader, path: str = "", depth: int = 0) -> Iterator[tuple[Inner, RunReader | str]]:
    """All instances below a run, each before those inside it; a reader is closed when the next one is asked for."""
    if depth >= DEEPEST:
        return
    for one in inner(reader, path):
        with opened(one) as below:
            yield one, below
            if not isinstance(below, str):
                yield from walk(below, one.path, depth + 1)
