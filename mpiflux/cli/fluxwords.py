"""What values of Flux's options mean, where they are not ours: times, ``{{id}}`` in file names, ``--env`` rules.

Pure: the environment is an argument.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from mpiflux.cli.parser import seconds

_BARE = re.compile(r"\d+\.?\d*|\.\d+", re.ASCII)
_TAG = re.compile(r"\{\{([a-z][a-z0-9_.]*)\}\}")
_TAGS = {"id": "{job.id}", "jobid": "{job.id}", "id.dec": "{job.id}", "name": "{job.name}"}
_NO_TAGS = ("taskid", "rank", "nnodes", "size", "ntasks", "tmpdir", "id.f58", "id.f58plain", "id.words", "id.hex",
            "id.dothex")
BINDING = ("MPIFLUX_*", "PMI_*", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES",
           "OMP_NUM_THREADS")
"""Variables that jobs are told of their places by: patterns do not remove them, only their names do."""


def minutes(text: str) -> float:
    """Seconds of a duration in which a bare number is minutes."""
    return 60 * float(text) if _BARE.fullmatch(text) and len(text) < 20 else seconds(text)


def file_name(text: str) -> str:
    """A file's template, in which Flux's ``{{id}}``, ``{{jobid}}`` and ``{{name}}`` stand for those of the job."""
    def ours(found: re.Match[str]) -> str:
        if found[1] in _NO_TAGS:
            raise argparse.ArgumentTypeError(f"{text!r}: {found[0]} is not there; {{{{id}}}} and {{{{name}}}} are")
        return _TAGS.get(found[1], found[0])

    return _TAG.sub(ours, text)


def environment(rules: Sequence[str], here: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Variables that rules in Flux's words set and remove, one after the other: ``NAME=VALUE`` sets, a bare name or
    pattern takes the value of here, ``-PATTERN`` removes. Patterns are those of file names and match what is here.

    Raises ValueError.
    """
    sets: dict[str, str] = {}
    removed: dict[str, None] = {}
    for rule in rules:
        name, equals, value = rule.partition("=")
        if rule.startswith("-"):
            pattern = rule[1:]
            if not pattern or "=" in pattern:
                raise ValueError(f"--env={rule}: the name of a variable, or a pattern, follows the -")
            gone = [one for one in (*here, *sets) if fnmatchcase(one, pattern) and not _is_ours(one)]
            if not _is_pattern(pattern):
                gone = [pattern]
            for one in gone:
                sets.pop(one, None)
                removed[one] = None
            continue
        if rule.startswith("^"):
            raise ValueError(f"--env={rule}: files of rules are not read; give the rules")
        if equals:
            found = {name: value} if name else {}
        else:
            found = {one: text for one, text in here.items() if fnmatchcase(one, rule)}
        if not found and not (rule and _is_pattern(rule)):
            raise ValueError(f"--env={rule}: no variable has that name here; NAME=VALUE sets one")
        for one in found:
            removed.pop(one, None)
        sets.update(found)
    return sets, list(removed)


def _is_pattern(text: str) -> bool:
    return any(letter in text for letter in "*?[")


def _is_ours(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in BINDING)


def without(command: Sequence[str], removed: Sequence[str]) -> list[str]:
    """A command that does not get these variables."""
    return ["env", *(word for name in removed for word in ("-u", name)), *command] if removed else list(command)
