"""Which run directory a command is about, and which of its jobs."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import unquote

from mpiflux.cli.console import tell
from mpiflux.cli.parser import Parser, suggestion

if TYPE_CHECKING:
    from mpiflux.store.reader import RunReader

DATABASE = "run.db"
URI = "rundir://"


class Trouble(Exception):
    """What was asked for cannot be answered, in a sentence. ``status`` is the exit status."""

    def __init__(self, text: str, status: int = 2) -> None:
        super().__init__(text)
        self.status = status


def add_directory(parser: Parser) -> None:
    """``RUNDIR`` as last positional argument, or as an option."""
    parser.add_argument("directory", metavar="RUNDIR", nargs="?",
                        help="the run directory (default: $MPIFLUX_RUN_DIR, else the current directory)")
    parser.add_argument("--run-dir", metavar="DIR", help="the same as an option")


def add_namespace(parser: Parser) -> None:
    parser.add_argument("-N", "--namespace", metavar="NAME",
                        help="keys below this name, such as job.12.guest (default: $MPIFLUX_KVS_NAMESPACE, else all)")


def find(args: Namespace) -> str:
    """The run directory. Raises Trouble."""
    positional, option = args.directory, args.run_dir
    if positional and option and os.path.abspath(positional) != os.path.abspath(option):
        raise Trouble(f"two run directories are named: {positional} and {option}")
    environ = os.environ
    uri = environ.get("MPIFLUX_URI", "")
    inherited = environ.get("MPIFLUX_RUN_DIR") or (unquote(uri[len(URI):]) if uri.startswith(URI) else "")
    chosen = positional or option or inherited
    if not chosen:
        if not is_run("."):
            raise Trouble("which run? Name its directory: the one that `mpiflux run` called results")
        chosen = "."
    return str(chosen)


def is_run(path: str | None) -> bool:
    return bool(path) and os.path.isfile(os.path.join(path or "", DATABASE))


def swap(args: Namespace, first: str) -> None:
    """Let ``RUNDIR THING`` mean ``THING RUNDIR`` where there can be no doubt."""
    thing = getattr(args, first)
    if args.directory is not None and is_run(thing) and not is_run(args.directory):
        setattr(args, first, args.directory)
        args.directory = thing


@contextmanager
def reading(args: Namespace) -> Iterator[RunReader]:
    """The reader of the run directory; whatever is wrong with either is Trouble."""
    from mpiflux.store.reader import RunError, open_run

    try:
        with open_run(find(args)) as reader:
            yield reader
    except RunError as error:
        raise Trouble(str(error)) from None


def answered(args: Namespace, answer: object) -> int:
    """Call a command's function; Trouble becomes a line on stderr and an exit status."""
    try:
        return int(answer(args) or 0)  # type: ignore[operator]
    except Trouble as trouble:
        tell(f"mpiflux: {trouble}")
        return trouble.status


STATES = {
    "depend": (1,), "sched": (2,), "run": (3,), "running": (3,), "cleanup": (4,), "inactive": (5,),
    "pending": (1, 2), "active": (1, 2, 3, 4),
}
RESULTS = {"completed": 1, "failed": 2, "canceled": 3, "cancelled": 3, "timeout": 4}
FILTER_HELP = ("only these: a comma list of states (depend, sched, run, inactive; pending, active), results "
               "(completed, failed, canceled, timeout), names and ids (sim, sim[0-9], 12). A job must match one of "
               "the states and results, and one of the names")


def select(reader: RunReader, text: str) -> Sequence[int]:
    """The ids that ``--filter TEXT`` lets through, ascending. Raises Trouble."""
    import numpy as np

    from mpiflux.store.reader import RunError

    states: set[int] = set()
    results: set[int] = set()
    ids: set[int] | None = None
    for word in split(text):
        low = word.lower()
        if low in STATES:
            states.update(STATES[low])
        elif low in RESULTS:
            results.add(RESULTS[low])
        else:
            try:
                ids = (ids or set()) | set(reader.resolve(word))
            except RunError as error:
                known = [*STATES, *RESULTS, *(group.name for group in reader.groups)]
                raise Trouble(f"--filter: {word!r} is no state, result, name or id of this run"
                              f"{suggestion(low, known) or f' ({error})'}") from None
    table, n = reader.table, reader.total
    chosen = np.ones(n, bool)
    if states or results:
        chosen = np.isin(table.state[:n], sorted(states)) | np.isin(table.result[:n], sorted(results))
    if ids is not None:
        named = np.zeros(n, bool)
        named[np.fromiter(ids, "i8", len(ids)) - 1] = True
        chosen &= named
    ids_chosen: list[int] = (np.flatnonzero(chosen) + 1).tolist()
    return ids_chosen


def split(text: str) -> list[str]:
    """A comma list; commas in brackets are of an idset."""
    words, depth, word = [], 0, ""
    for c in text:
        depth += (c == "[") - (c == "]")
        if c == "," and depth <= 0:
            words.append(word)
            word = ""
        else:
            word += c
    return [w.strip() for w in [*words, word] if w.strip()]
