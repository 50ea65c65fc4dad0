"""What ``submit`` and its like are given, as groups of jobs that travel to the instance."""

from __future__ import annotations

import array
import datetime
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict

from mpiflux.client.jobids import HasIds, id_ranges
from mpiflux.model import requests as r
from mpiflux.model.jobspec import Request as Resources
from mpiflux.model.params import Column, FloatColumn, IntColumn, ListColumn, ParamTable, RangeColumn
from mpiflux.model.retry import Retry, retry_on

MOST = 500_000
"""Jobs that travel in one group of a bulk submission, and texts: what is more is cut into several groups."""

Command = str | Sequence[str]
NO_PARAMS = ParamTable()


class JobOptions(TypedDict, total=False):
    """The options of ``submit``. Names and meanings are those of the workflow file."""

    name: str
    tasks: int
    cores: int
    """For each task."""
    gpus: int
    nodes: int
    exclusive: bool
    memory: int
    """Bytes for each task."""
    time_limit: float
    """Seconds."""
    retries: int | Mapping[str, float]
    """How many, or a mapping with ``limit``, and ``backoff``, ``factor``, ``max`` (seconds) as in the workflow file."""
    retry_on: Sequence[int | str]
    """Exit codes, ranges such as ``1-5``, signals, ``timeout``: other failures are final."""
    urgency: int
    """0–31; higher starts first; 16 unless said otherwise."""
    after: Any
    """Jobs, ids or names that must complete before; or a mapping from ``ok``, ``any``, ``not_ok`` to such."""
    begin_time: float | datetime.datetime
    """Not to start before: Unix seconds, or a datetime."""
    hold: bool
    """Wait for ``release``."""
    env: Mapping[str, str]
    secrets: Sequence[str] | Mapping[str, str]
    """Variables that are stored nowhere: names, whose values are taken from here, or names and values."""
    cwd: str
    """Where it runs; unless said otherwise, where the submitting program is."""
    input: str
    """File to read; ``-``: what :attr:`Job.stdin` writes, or ``mpiflux job attach``."""
    output: str
    """File to write to instead of the store; may have ``{job.id}``, ``{job.index}``, ``{job.name}``."""
    error: str
    shell: bool
    """The command is a text for /bin/sh."""
    mpi: str
    """``pmi1``: the tasks are an MPI program; ``pmix``: one of Open MPI; ``none`` unless said otherwise."""
    params: Mapping[str, Sequence[Any]]
    """Columns of values, one job for each row: the command is a template with ``{name}`` for them."""
    sampling: str
    """``zip`` (the default) or ``product``."""


def new_group(command: Command, options: JobOptions, params: ParamTable = NO_PARAMS, *,
              template: bool = False) -> r.NewGroup:
    """A group from the arguments of ``submit``. Raises TypeError and ValueError."""
    unknown = set(options) - set(JobOptions.__annotations__)
    if unknown:
        known = ", ".join(JobOptions.__annotations__)
        raise TypeError(f"submit knows no option {sorted(unknown)[0]!r}; there are: {known}")
    columns = options.get("params")
    if columns is not None:
        params, template = _table(columns, options.get("sampling", "zip")), True
    shell = options.get("shell", False)
    if isinstance(command, str):
        if not shell:
            raise TypeError(f"a command is a list of arguments, as in {command.split()!r}; a text needs shell=True")
        argv: tuple[str, ...] = (command,)
    else:
        argv = tuple(os.fspath(word) for word in command)
    if not argv or not all(isinstance(word, str) for word in argv):
        raise TypeError(f"a command is a list of texts, not {command!r}")
    keep = (lambda text: text) if template else literal
    cwd = options.get("cwd")
    retries, retry = _retries(options.get("retries", 0), options.get("retry_on"))
    request = Resources(
        tasks=options.get("tasks", 1), cores=options.get("cores", 1), gpus=options.get("gpus", 0),
        nodes=options.get("nodes", 0), memory=options.get("memory", 0), exclusive=options.get("exclusive", False))
    return r.NewGroup(
        name=options.get("name", ""), command=tuple(map(keep, argv)), shell=shell, params=params,
        env={name: keep(str(value)) for name, value in options.get("env", {}).items()},
        cwd=os.path.abspath(os.fspath(cwd)) if cwd is not None else literal(os.getcwd()),
        input=options.get("input", ""), output=options.get("output", ""), error=options.get("error", ""),
        resources=request, time_limit=float(options.get("time_limit", 0.0)), retries=retries, retry=retry,
        urgency=options.get("urgency", 16), after=_after(options.get("after")),
        begin_time=_unix(options.get("begin_time", 0.0)), hold=options.get("hold", False),
        mpi=options.get("mpi", "none"), secrets=_secrets(options.get("secrets", ())))


def _secrets(given: Sequence[str] | Mapping[str, str]) -> dict[str, bytes]:
    if isinstance(given, Mapping):
        return {name: os.fsencode(str(value)) for name, value in given.items()}
    names = [given] if isinstance(given, str) else given
    lacking = [name for name in names if name not in os.environ]
    if lacking:
        raise ValueError(f"secrets: {', '.join(lacking)} not set in the environment of this program")
    return {name: os.fsencode(os.environ[name]) for name in names}


def _unix(moment: float | datetime.datetime) -> float:
    return moment.timestamp() if isinstance(moment, datetime.datetime) else float(moment)


def _retries(retries: int | Mapping[str, float], on: Sequence[int | str] | None) -> tuple[int, Retry]:
    words = [on] if isinstance(on, (int, str)) else on
    retry = retry_on(map(str, words)) if words is not None else Retry()
    if not isinstance(retries, Mapping):
        return retries, retry
    unknown = set(retries) - {"limit", "backoff", "factor", "max"}
    if unknown:
        raise TypeError(f"retries has no {sorted(unknown)[0]!r}; there are: limit, backoff, factor, max")
    return int(retries.get("limit", 0)), Retry(
        backoff=float(retries.get("backoff", 0.0)), factor=float(retries.get("factor", 2.0)),
        max=float(retries.get("max", 0.0)), every=retry.every, codes=retry.codes, timeout=retry.timeout)


def literal(text: str) -> str:
    """A text that as a template gives itself."""
    return text.replace("{", "{{").replace("}", "}}") if "{" in text or "}" in text else text


def _table(columns: Mapping[str, Sequence[Any]], sampling: str) -> ParamTable:
    return ParamTable(tuple(columns), tuple(_column(values) for values in columns.values()), sampling)


def _column(values: Sequence[Any]) -> Column:
    if isinstance(values, range):
        return RangeColumn(values.start, values.step, len(values))
    tolist = getattr(values, "tolist", None)
    items = list(tolist() if tolist is not None else values)
    kinds = set(map(type, items))
    if kinds == {float}:
        return FloatColumn(_little("d", items))
    if kinds == {int} and all(-(1 << 63) <= value < 1 << 63 for value in items):
        return IntColumn(_little("q", items))
    if not kinds <= {int, float, str, bool}:
        raise TypeError(f"parameter values are numbers, texts and booleans, not {values!r:.80}")
    return ListColumn(tuple(items))


def _little(code: str, items: list[Any]) -> bytes:
    data = array.array(code, items)
    if sys.byteorder == "big":
        data.byteswap()
    return data.tobytes()


def many(commands: Iterable[Sequence[str]], options: JobOptions) -> tuple[tuple[r.NewGroup, ...], list[list[int]]]:
    """Groups for a list of commands, and the positions in it that each group's jobs stand for.

    Commands of one length become one group: what they have in common travels once.
    """
    if options.get("params") is not None or options.get("shell"):
        raise TypeError("a list of commands takes neither params nor shell; submit one template with params instead")
    by_length: dict[int, list[tuple[int, tuple[str, ...]]]] = {}
    for place, command in enumerate(commands):
        if isinstance(command, str):
            raise TypeError(f"command {place} is the text {command!r}; give a list of arguments")
        argv = tuple(os.fspath(word) for word in command)
        by_length.setdefault(len(argv), []).append((place, argv))
    groups, places = [], []
    for rows in by_length.values():
        for at in range(0, len(rows), MOST):
            part = rows[at:at + MOST]
            groups.append(_same_length([argv for _, argv in part], options))
            places.append([place for place, _ in part])
    return tuple(groups), places


def bulk(commands: Command | Iterable[Sequence[str]], options: JobOptions,
         ) -> tuple[tuple[r.NewGroup, ...], Callable[[list[tuple[int, int]]], Sequence[int]]]:
    """What ``submit_many`` submits, and how the ids of its jobs, in order, follow from the answer."""
    if options.get("params") is not None:
        return (new_group(commands, options),), lambda ranges: range(ranges[0][0], sum(ranges[0]))  # type: ignore[arg-type]
    groups, places = many(commands, options)

    def order(ranges: list[tuple[int, int]]) -> Sequence[int]:
        if len(ranges) == 1:
            return range(ranges[0][0], sum(ranges[0]))
        by_place = {place: first + i for (first, _), mine in zip(ranges, places, strict=True)
                    for i, place in enumerate(mine)}
        return [by_place[place] for place in range(len(by_place))]

    return groups, order


def _same_length(rows: list[tuple[str, ...]], options: JobOptions) -> r.NewGroup:
    words: list[str] = []
    names: list[str] = []
    columns: list[Column] = []
    for i, column in enumerate(zip(*rows, strict=True)):
        if len(set(column)) == 1:
            words.append(literal(column[0]))
        else:
            names.append(f"arg{i}")
            columns.append(ListColumn(column))
            words.append(f"{{arg{i}}}")
    if not columns:
        # all alike: how many they are is told by a column that nothing names
        names, columns = ["n"], [RangeColumn(0, 1, len(rows))]
    table = ParamTable(tuple(names), tuple(columns), "zip")
    env = {name: literal(str(value)) for name, value in options.get("env", {}).items()}
    return new_group(words, {**options, "env": env}, table, template=True)


def _after(given: Any) -> tuple[r.After, ...]:
    if given is None:
        return ()
    if isinstance(given, Mapping):
        return tuple(one for kind, what in given.items() for one in _after_kind(what, _KINDS.get(str(kind), str(kind))))
    return tuple(_after_kind(given, "ok"))


_KINDS = {"afterok": "ok", "afterany": "any", "afternotok": "not_ok"}
_NO_KINDS = {"after": " (a job waits for the end of others, not for their start)", "afterexcept": "", "aftercorr": "",
             "singleton": "", "begin-time": " (say --begin-time)"}
"""Words of Flux and Slurm that mean nothing here, each with what else to do."""


def _after_kind(what: Any, kind: str) -> list[r.After]:
    if isinstance(what, str):
        word, colon, rest = what.partition(":")
        if colon and word in _KINDS:
            kind, what = _KINDS[word], rest
        elif (colon and word in _NO_KINDS) or what == "singleton":
            hint = _NO_KINDS.get(word, "")
            raise ValueError(f"dependency {what!r}: {word} is not there{hint}; there are afterok, afterany, afternotok")
        if re.fullmatch(r"\d+(?:[:,]\d+)*", what, re.ASCII):
            return [r.After(kind, tuple(map(int, re.split("[:,]", what))))]
        return [r.After(kind, group=what)]
    if isinstance(what, (int, HasIds)):
        ranges = id_ranges(what)
        return [r.After(kind, tuple(job for first, stop in ranges for job in range(first, stop)))]
    return [one for item in what for one in _after_kind(item, kind)]
