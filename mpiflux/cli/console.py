"""Writing for people: streams that may go away, colours, numbers and durations."""

from __future__ import annotations

import errno
import math
import os
import sys
from collections.abc import Iterable
from itertools import islice
from typing import TextIO

_COLOURS = {"red": "31", "green": "32", "yellow": "33", "cyan": "36", "bold": "1", "dim": "2"}


class Gone(Exception):
    """Whoever read our output has left (``| head``)."""


class Unwritable(Exception):
    """Our output cannot be written; the text names the stream and says why."""


def say(text: str = "", stream: TextIO | None = None) -> None:
    """A line, whatever it holds: bytes that are not UTF-8 come out as they came in. Raises Gone or Unwritable."""
    write(text + "\n", stream)


def say_all(lines: Iterable[str]) -> None:
    """Many lines, some hundred at a time. Raises Gone or Unwritable."""
    rest = iter(lines)
    while block := list(islice(rest, 512)):
        say("\n".join(block))


def write(text: str, stream: TextIO | None = None) -> None:
    """``text`` to stdout or ``stream``, at once. Raises Gone or Unwritable."""
    stream = stream or sys.stdout
    encoding = stream.encoding or "utf-8"
    try:
        try:
            text.encode(encoding)
            stream.write(text)
        except UnicodeEncodeError:
            try:
                data = text.encode(encoding, "surrogateescape")
            except UnicodeEncodeError:
                data = text.encode(encoding, "replace")
            stream.flush()
            stream.buffer.write(data)
        stream.flush()
    except OSError as error:
        raise lost(stream, error) from error


def write_bytes(data: bytes, stream: TextIO | None = None) -> None:
    """Bytes as they are. Raises Gone or Unwritable."""
    stream = stream or sys.stdout
    try:
        stream.flush()
        stream.buffer.write(data)
        stream.buffer.flush()
    except OSError as error:
        raise lost(stream, error) from error


def lost(stream: TextIO, error: OSError) -> Gone | Unwritable:
    """What to raise when a stream took no more; it is led nowhere."""
    silence(stream)
    if error.errno == errno.EPIPE:
        return Gone()
    name = "standard error" if stream is sys.stderr else "standard output"
    return Unwritable(f"{name} cannot be written: {error.strerror or error}")


def open_all() -> None:
    """Give streams that were closed when we were started a place, lest the next file that is opened becomes one."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)


def silence(stream: TextIO) -> None:
    """Lead a stream nowhere, so that neither we nor the interpreter's last flush trips over it again."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        pass


def tell(text: str) -> None:
    """A note or an error on stderr; to say it matters less than to go on."""
    try:
        say(text, sys.stderr)
    except (Gone, Unwritable):
        pass


def colourful(stream: TextIO) -> bool:
    """Whether colours are welcome there (https://no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()


def paint(text: str, colour: str, on: bool) -> str:
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if on and text else text


def printable(text: str) -> str:
    """What a program wrote, made harmless for a terminal line: no control characters."""
    return "".join(c if c.isprintable() else "\ufffd" if "\ud800" <= c <= "\udfff" else " " for c in text)


def shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[:max(width - 1, 0)] + "…"


def program() -> str:
    """How this program was called, for commands that a person is to copy."""
    return "mpiflux" if os.path.basename(sys.argv[0]) == "mpiflux" else "python -m mpiflux"


def near(path: str) -> str:
    """A path as short as it stays right from the current directory."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def duration(seconds: float | None) -> str:
    """``520ms``, ``1.02s``, ``12.3s``, ``3m05s``, ``2h07m``, ``1d03h``; ``-`` for None."""
    if seconds is None:
        return "-"
    seconds = max(seconds, 0.0)
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 9.995:
        return f"{seconds:.2f}s"
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    minutes = whole // 60
    if minutes < 1440:
        return f"{minutes // 60}h{minutes % 60:02}m"
    return f"{minutes // 1440}d{minutes % 1440 // 60:02}h"


def coarse(seconds: float) -> str:
    """A duration in whole seconds at best, and never 0: ``1s``, ``48s``, ``3m05s``."""
    whole = max(math.ceil(seconds), 1)
    return f"{whole}s" if whole < 60 else duration(whole)


def rate(per_second: float) -> str:
    """``1,950 jobs/s``, ``48.4 jobs/s``, ``3.1 jobs/min``."""
    if per_second >= 99.95:
        return f"{per_second:,.0f} jobs/s"
    if per_second >= 0.995 or per_second <= 0:
        return f"{per_second:.1f} jobs/s"
    return f"{per_second * 60:.1f} jobs/min"


def plural(number: int, word: str) -> str:
    """``1 job``, ``2,001 jobs``."""
    return f"{number:,} {word}" + ("" if number == 1 else "s")


def signal_name(number: int) -> str:
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
