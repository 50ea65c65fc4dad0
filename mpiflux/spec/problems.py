"""What is wrong with a workflow file: all of it at once, each with its place."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NamedTuple

SHOWN = 50
"""Problems after which a file is not read further: the rest would be noise."""


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
        where = f"{self.source}:{self.line}:{self.column}" if self.line else self.source
        return f"{where}: {self.message}"


class WorkflowError(Exception):
    """A workflow (or a hierarchy) that cannot be used; ``problems`` is never empty and in the file's order."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


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
        if len(self.found) >= SHOWN:
            raise TooManyProblems

    def check(self) -> None:
        """Raise :class:`WorkflowError` when there was any."""
        if self.found:
            raise WorkflowError(sorted(self.found, key=lambda p: (p.line, p.column)))


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
