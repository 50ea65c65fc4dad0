"""argparse with our manners: errors are said once, name the near miss, and exit with 2."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from mpiflux.instance.launcher import detect

USAGE = 2
"""Exit status for a wrong command line."""


def spoken_for() -> bool:
    """Whether another rank of the same launch has the same to say."""
    return detect(os.environ).rank not in (None, 0)


def suggestion(word: str, known: Iterable[str]) -> str:
    """"; did you mean 'x'?" where a known word is near, else nothing."""
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def fail(message: str, *, once: bool = False) -> NoReturn:
    """Say what is wrong with the command line and exit. ``once``: every rank comes here, rank 0 speaks."""
    from mpiflux.cli.console import tell

    if once and spoken_for():
        # a launcher ends all ranks when the first one fails, and must not do so before rank 0 has spoken
        time.sleep(0.5)
    else:
        tell(f"mpiflux: {message}")
    raise SystemExit(USAGE)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """argparse makes one for every option, and without a width each asks ``shutil`` for it, whose import every rank of
    a large instance would pay for."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)


def _columns() -> int:
    """As ``shutil.get_terminal_size`` has it."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdigit() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size().columns or 80
    except OSError:
        return 80


class Parser(argparse.ArgumentParser):
    """The parser of one command. ``once``: see :func:`fail`."""

    def __init__(self, prog: str, description: str, *, once: bool = False) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False,
                         formatter_class=_Formatter)
        self.once = once
        self.argv: list[str] = []
        self.remainder = ""
        """The argument that takes everything from the first word on that is no option, or after ``--``."""

    def examples(self, *lines: str) -> None:
        """What ``--help`` ends with."""
        self.epilog = "\n".join(["example:" if len(lines) == 1 else "examples:", *(f"  {line}" for line in lines)])

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The arguments; a wrong line exits with 2."""
        self.argv = list(argv)
        options = [option for action in self._actions for option in action.option_strings]
        if self.remainder:
            return self._parse_front()
        for word in self.argv:
            if word == "--":
                break
            # argparse takes no such word for an option's value, and would rather complain of what is missing
            if word.startswith("--") and word.partition("=")[0] not in options:
                self._no_option(word, options)
        args, unknown = self.parse_known_intermixed_args(self.argv)
        if unknown:
            if unknown[0].startswith("-"):
                self._no_option(unknown[0], options)
            self.error(f"one argument too many: {unknown[0]!r}")
        return args

    def _parse_front(self) -> argparse.Namespace:
        """Our options end where somebody else's command begins."""
        at = 0
        while at < len(self.argv) and self.argv[at].startswith("-") and self.argv[at] != "--":
            name, equals, _ = self.argv[at].partition("=")
            action = self._option_string_actions.get(name)
            if action is None and not name.startswith("--"):
                # -n4
                action, equals = self._option_string_actions.get(name[:2]), "attached"
            if action is None:
                self._no_option(self.argv[at], [o for a in self._actions for o in a.option_strings])
            at += 1 if equals or action.nargs == 0 else 2
        front, rest = self.argv[:at], self.argv[at:]
        rest = rest[1:] if rest[:1] == ["--"] else rest
        if not rest:
            self.parse_args([*front, "-h"]) if {"-h", "--help"} & set(front) else self.error("which command?")
        args = self.parse_args([*front, "--", *rest])
        setattr(args, self.remainder, rest)
        return args

    def _no_option(self, word: str, options: list[str]) -> NoReturn:
        name = word.partition("=")[0]
        self.error(f"there is no option {name}{suggestion(name, options)}")

    def error(self, message: str) -> NoReturn:
        command = self.prog.partition(" ")[2]
        fail(f"{command}: {message}\ntry `{self.prog} --help`", once=self.once)

    def _print_message(self, message: str, file: Any = None) -> None:
        if message and not (self.once and spoken_for()):
            from mpiflux.cli.console import write

            write(message, sys.stdout)


_MOST_DECLARED = 1 << 16


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 1 << 31):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def natural(text: str) -> int:
    """A whole number from 0 on."""
    if not (text.isascii() and text.isdigit() and int(text) < 1 << 31):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def declared(text: str) -> int:
    """A number of cores or GPUs that a node may be said to have."""
    value = natural(text)
    if value > _MOST_DECLARED:
        raise argparse.ArgumentTypeError(f"{text} is more than the {_MOST_DECLARED:,} that a node may have")
    return value


def declared_cores(text: str) -> int:
    """The same, from 1 on."""
    return declared(str(positive(text)))


def seconds(text: str) -> float:
    """A duration: ``90``, ``90s``, ``10m``, ``1h30m``, ``01:30:00``."""
    from mpiflux.spec.scalars import as_duration

    value = as_duration(text)
    if value is None or not 0 <= value < 1e12:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 90, 90s, 10m, 1h30m or 01:30:00")
    return value


def timeout(text: str) -> float:
    """A duration of at least a second."""
    value = seconds(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is less than a second")
    return value


def size(text: str) -> int:
    """Bytes: ``4096``, ``500MB``, ``2GiB``."""
    from mpiflux.spec.scalars import as_size

    value = as_size(text)
    if value is None or not 0 < value < 1 << 50:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 4096, 500MB or 2GiB")
    return value


def assignment(text: str) -> tuple[str, str]:
    """``NAME=VALUE``."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def moment(text: str) -> float:
    """Unix seconds of ``2026-11-23T08:00`` or ``+10m`` from now."""
    import time

    from mpiflux.spec.moments import as_moment

    found = as_moment(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 2026-11-23T08:00, or +10m from now")
    return found[0] or time.time() + found[1]
