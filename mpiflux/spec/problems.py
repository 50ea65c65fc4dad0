"""What is wrong with a workflow file: all of it at once, each with its place."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from mpiflux.model.jobspec import Place

if TYPE_CHECKING:
    from mpiflux.model.jobspec import Workflow

SHOWN = 1000
"""Problems that are told, those that come first in the file; of the others only how many they are."""
MOST = 10 * SHOWN
"""Problems after which a file is not read further, for one that is hardly a workflow is not worth the time."""


class Problem(NamedTuple):
    """One thing to mend. ``line`` and ``column`` count from 1; line 0 means that the place has none."""

    line: int
    column: int
    message: str
    path: str = ""
    """Where in the document, such as ``$.jobs.sim.resources.cores``."""
    source: str = ""
    """The file, or the option, that holds it."""

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"

    @property
    def place(self) -> Place:
        return Place(self.source, self.line, self.column)


class WorkflowError(Exception):
    """A workflow (or a hierarchy) that cannot be used; ``problems`` is never empty and in the file's order."""

    def __init__(self, problems: Iterable[Problem], more: str = "", workflow: Workflow | None = None) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        self.more = more
        """A last line where there are more problems than are told."""
        self.workflow = workflow
        """As far as it could be read, with defaults in place of what is wrong: to be checked further, not to be run."""
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.problems), *([self.more] if self.more else [])])


class TooManyProblems(Exception):
    """Enough: raised inside the loader only."""


class Problems:
    """Collects problems while a file is read."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.found: dict[Problem, None] = {}

    def add(self, line: int, column: int, message: str, path: str = "", source: str = "") -> None:
        """Note one problem; the same one twice counts once."""
        self.found[Problem(line, column, message, path, source or self.source)] = None
        if len(self.found) >= MOST:
            raise TooManyProblems

    def suggest(self, word: str, known: Iterable[str]) -> str:
        """:func:`suggest`, as long as the problem may be one of those that are told: looking for a near word takes
        milliseconds where there are many."""
        return suggest(word, known) if len(self.found) < SHOWN else ""

    def check(self, workflow: Workflow | None = None) -> None:
        """Raise :class:`WorkflowError` when there was any. ``workflow`` is what was read nevertheless."""
        if not self.found:
            return
        told = sorted(self.found, key=lambda p: (p.line, p.column))
        more = ""
        if len(told) > SHOWN:
            left = f"{len(told) - SHOWN:,} more mistakes"
            more = f"{self.source}: " + (f"and at least {left}: it was not read to its end" if len(told) >= MOST else
                                         f"and {left}")
        raise WorkflowError(told[:SHOWN], more, workflow)


def suggest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" when a known word is near, else nothing."""
    near = nearest(word, known)
    return f"; did you mean {near!r}?" if near else ""


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known word that ``word`` was probably meant to be."""
    if len(word) > 100:
        return None
    words = list(known)[:1000]
    folded = {w.lower().replace("-", "_"): w for w in words}
    near = difflib.get_close_matches(word.lower().replace("-", "_"), list(folded), n=1, cutoff=cutoff)
    return folded[near[0]] if near else None


def shorten(text: str, width: int = 60) -> str:
    """``text`` quoted for a message, cut to about ``width`` characters."""
    return repr(text if len(text) <= width else text[:width - 3] + "...")
