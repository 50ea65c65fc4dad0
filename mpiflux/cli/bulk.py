"""Commands and their inputs, written as for GNU parallel and ``flux bulksubmit``. Pure but for the files named.

``:::`` begins a list of inputs, ``::::`` a list of files with an input a line (``-`` is stdin). Several lists are
combined, each input of one with each of the others; ``:::+`` and ``::::+`` go along with the list before them.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections.abc import Iterable, Sequence

SEPARATORS = (":::", ":::+", "::::", "::::+")
_FIELD = re.compile(r"\{(?:(?P<number>\d{0,6})(?P<part>\.%|\./%|\.//|\./)?|(?P<word>seq1?))\}")
MOST = 4_000_000
"""Jobs of one line."""


class BadInputs(Exception):
    """The line makes no commands; the text says why."""


def commands(words: Sequence[str], stdin: Iterable[str]) -> list[list[str]]:
    """The argument lists that a line stands for. ``stdin`` is read where the line names no inputs. Raises BadInputs."""
    at = next((i for i, word in enumerate(words) if word in SEPARATORS), len(words))
    template = list(words[:at])
    rows = _rows(words[at:], stdin) if at < len(words) else [(line,) for line in _lines(stdin)]
    if not template:
        return [_split(" ".join(row)) for row in rows]
    if not any(_FIELD.search(word) for word in template):
        template += [f"{{{i}}}" for i in range(len(rows[0]))] if rows else []
    return [[fill(word, row, seq) for word in template] for seq, row in enumerate(rows)]


def fill(word: str, row: Sequence[str], seq: int) -> str:
    """One word of a command. ``{}`` is the next input, ``{2}`` the third, ``{seq}`` and ``{seq1}`` the job's place
    from 0 and from 1; ``{.%}`` without its suffix, ``{./}`` its last part, ``{.//}`` its directory, ``{./%}`` both of
    the first two. Raises BadInputs."""
    following = itertools.count()

    def value(found: re.Match[str]) -> str:
        if found["word"]:
            return str(seq + (found["word"] == "seq1"))
        number = int(found["number"]) if found["number"] else next(following)
        if number >= len(row):
            raise BadInputs(f"{found.group()}: there are {len(row)} inputs a job, counted from {{0}}")
        return _part(row[number], found["part"] or "")

    return _FIELD.sub(value, word)


def _part(text: str, part: str) -> str:
    if part == ".//":
        return os.path.dirname(text) or "."
    if part.startswith("./"):
        text = os.path.basename(text)
    return os.path.splitext(text)[0] if part.endswith("%") else text


def _split(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise BadInputs(f"{text!r} cannot be split into words: {str(error).lower()}") from None
    if not words:
        raise BadInputs("an input is empty, and is to be a command: name one before the :::")
    return words


def _rows(words: Sequence[str], stdin: Iterable[str]) -> list[tuple[str, ...]]:
    lists: list[list[tuple[str, ...]]] = []
    at = 0
    while at < len(words):
        separator = words[at]
        stop = next((i for i in range(at + 1, len(words)) if words[i] in SEPARATORS), len(words))
        inputs = list(words[at + 1:stop])
        if separator.startswith("::::"):
            inputs = [line for name in inputs for line in _file(name, stdin)]
        if not inputs:
            raise BadInputs(f"{separator}: no inputs follow it")
        if not separator.endswith("+"):
            lists.append([(one,) for one in inputs])
        elif not lists:
            raise BadInputs(f"{separator}: there is no list before it to go along with")
        elif len(lists[-1]) != len(inputs):
            raise BadInputs(f"{separator}: {len(inputs)} inputs cannot go along with {len(lists[-1])}")
        else:
            lists[-1] = [(*row, one) for row, one in zip(lists[-1], inputs, strict=True)]
        at = stop
    total = 1
    for one in lists:
        total *= len(one)
    if total > MOST:
        raise BadInputs(f"{total:,} jobs in one line; at most {MOST:,} are taken")
    return [tuple(itertools.chain.from_iterable(row)) for row in itertools.product(*lists)]


def _file(name: str, stdin: Iterable[str]) -> list[str]:
    if name == "-":
        return _lines(stdin)
    try:
        with open(name, encoding="utf-8", errors="surrogateescape") as file:
            return _lines(file)
    except OSError as error:
        raise BadInputs(f"{name}: {error.strerror}") from None


def _lines(text: Iterable[str]) -> list[str]:
    return [line.rstrip("\n") for line in text if line.strip()]
