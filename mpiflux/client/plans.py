"""What each call of the Python interface asks of the instance, and what it makes of the answer.

The blocking and the asynchronous interface differ in how they wait, and in nothing else: both carry out these plans.
"""

from __future__ import annotations

import array
import datetime
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict

from mpiflux.client.errors import NoJob
from mpiflux.client.records import Change, Counts, JobEvent, Message, Record, Result, Value
from mpiflux.client.session import Plan
from mpiflux.model import requests as r
from mpiflux.model.jobspec import Request as Resources
from mpiflux.model.params import Column, FloatColumn, IntColumn, ListColumn, ParamTable, RangeColumn
from mpiflux.model.retry import Retry, retry_on
from mpiflux.store import kvs as store

MOST = 500_000
"""Jobs that travel in one group of a bulk submission, and texts: what is more is cut into several groups."""


class HasIds:
    """A job, or several: what can stand where jobs are to be named."""

    def _ranges(self) -> list[tuple[int, int]]:
        raise NotImplementedError


Command = str | Sequence[str]
Ids = int | str | HasIds | Iterable[Any]
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
    """``pmi1``: the tasks are an MPI program; ``none`` unless said otherwise."""
    params: Mapping[str, Sequence[Any]]
    """Columns of values, one job for each row: the command is a template with ``{name}`` for them."""
    sampling: str
    """``zip`` (the default) or ``product``."""


# -- submitting --------------------------------------------------------------------------------------------------


def submit(groups: tuple[r.NewGroup, ...], tie: str = "") -> Plan[list[tuple[int, int]]]:
    """(first id, count) of each group."""
    return Plan(r.Submit(groups, tie), lambda value: [(first, count) for _, first, count in value])


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


# -- choosing and controlling --------------------------------------------------------------------------------------


def id_ranges(jobs: Ids) -> list[tuple[int, int]]:
    """Ranges (first, stop) of ids, of jobs, or of a list of either."""
    if isinstance(jobs, int):
        return [(jobs, jobs + 1)]
    if isinstance(jobs, HasIds):
        return jobs._ranges()
    if isinstance(jobs, range) and jobs.step == 1:
        return [(jobs.start, jobs.stop)] if jobs else []
    if isinstance(jobs, str):
        raise TypeError(f"{jobs!r} is a text; name single jobs by id, and groups by name=")
    ranges: list[tuple[int, int]] = []
    for one in jobs:
        for first, stop in id_ranges(one):
            if ranges and ranges[-1][1] == first:
                ranges[-1] = (ranges[-1][0], stop)
            else:
                ranges.append((first, stop))
    return ranges


def ranges_of(ids: Sequence[int]) -> list[tuple[int, int]]:
    """Ranges of ids in any order."""
    return id_ranges(ids if isinstance(ids, range) else sorted(ids))


def following(jobs: Ids | None, names: Iterable[str], finite: bool) -> Callable[[int, int], r.Op]:
    """The subscription to the events of jobs, given its number and where to begin."""
    chosen, wanted = select(jobs), tuple(names)
    return lambda sub, since: r.Events(sub, chosen, wanted, since, finite)


def watching(key: str) -> Callable[[int, int], r.Op]:
    """The subscription to the changes of a key."""
    return lambda sub, since: r.Watch(sub, key, since)


def select(jobs: Ids | None, *, states: Iterable[str] = ()) -> r.Select:
    """Some jobs: a text is a group's name, None all jobs."""
    if jobs is None:
        return r.Select(every=True, states=tuple(states))
    if isinstance(jobs, str):
        if jobs.isdigit():
            return r.Select(ids=((int(jobs), int(jobs) + 1),), states=tuple(states))
        return r.Select(name=jobs, states=tuple(states))
    return r.Select(ids=tuple(id_ranges(jobs)), states=tuple(states))


def cancel(jobs: Ids | None, reason: str = "cancelled", states: Iterable[str] = ()) -> Plan[int]:
    return Plan(r.Cancel(select(jobs, states=states), reason), int)


def hold(jobs: Ids | None, held: bool) -> Plan[int]:
    return Plan(r.Hold(select(jobs), held), int)


def explain(id: int) -> Plan[list[tuple[str, float]]]:
    return Plan(r.Explain(id), lambda value: [(text, when) for text, when in value])


def urgency(jobs: Ids | None, value: int) -> Plan[int]:
    return Plan(r.Urge(select(jobs), int(value)), int)


def signal(jobs: Ids | None, number: int) -> Plan[int]:
    return Plan(r.Signal(select(jobs), int(number)), int)


def stdin(id: int, data: str | bytes = b"", *, eof: bool = False) -> Plan[None]:
    raw = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else bytes(data)
    if len(raw) > r.MAX_VALUE:
        raise ValueError(f"{len(raw)} bytes; at most {r.MAX_VALUE} travel at once: write them in pieces")
    return Plan(r.Stdin(id, raw, eof), lambda value: None)


def drain(jobs: Ids | None) -> Plan[Counts]:
    return Plan(r.Drain(select(jobs)), lambda value: Counts(*value))


def record(id: int) -> Plan[Record]:
    return Plan(r.Info(id), lambda value: Record(**value))


def result(id: int) -> Plan[Result]:
    return Plan(r.Info(id, output=True, ended=True), to_result)


def to_result(value: dict[str, Any]) -> Result:
    """A record with output, its bytes as text."""
    text = {name: value.pop(name).decode("utf-8", "surrogateescape") for name in ("stdout", "stderr")}
    return Result(**value, **text)


def own_job() -> int:
    """The job that this process is of. Raises NoJob."""
    found = os.environ.get("MPIFLUX_JOB_ID", "")
    if not found.isdecimal():
        raise NoJob("this program is no job of an instance (MPIFLUX_JOB_ID is not set): say which job")
    return int(found)


def resolve(ref: int | str) -> Plan[Sequence[int]]:
    """The ids that a reference means, ascending."""
    def ids(ranges: list[list[int]]) -> Sequence[int]:
        return range(*ranges[0]) if len(ranges) == 1 else [job for one in ranges for job in range(*one)]

    return Plan(r.Resolve(str(ref)), ids)


def resolve_one(ref: int | str) -> Plan[int]:
    """The one id that a reference means. Raises NoJob."""
    def id(ranges: list[list[int]]) -> int:
        n = sum(stop - first for first, stop in ranges)
        if n != 1:
            raise NoJob(f"{ref!r} means {n} jobs; say which one, as in {ref}.0, or take all by group({ref!r})")
        return ranges[0][0]

    return Plan(r.Resolve(str(ref)), id)


def eventlog(id: int) -> Plan[list[JobEvent]]:
    return Plan(r.Eventlog(id), lambda value: [
        JobEvent(name, t, context, id, n) for n, (name, t, context) in enumerate(value)])


def job_event(item: list[Any]) -> JobEvent:
    number, job, name, timestamp, context = item
    return JobEvent(name, timestamp, context, job, number)


def gate(enabled: bool | None = None, started: bool | None = None, reason: str = "") -> Plan[dict[str, Any]]:
    return Plan(r.Gate(enabled, started, reason), dict)


def status() -> Plan[dict[str, Any]]:
    return Plan(r.Status(), dict)


def sync() -> Plan[None]:
    return Plan(r.Sync(), lambda value: None)


# -- keys ------------------------------------------------------------------------------------------------------------


def kvs_get(key: str, *, wait: bool = False) -> Plan[Value]:
    return Plan(r.Get(key, wait), lambda value: Value(store.decode_value(value[0]), value[1]))


def kvs_ls(prefix: str, recursive: bool) -> Plan[list[str]]:
    # directories are told with a dot at the end, so they may be asked for with it
    return Plan(r.Ls(prefix.removesuffix("."), recursive), list)


def kvs_commit(ops: Iterable[store.Op]) -> Plan[int]:
    return Plan(r.Txn(_ops(ops)), int)


def kvs_put(key: str, value: object, version: int | None) -> Plan[int]:
    """Only if the key still has ``version``, where that is given."""
    check = [] if version is None else [store.Check(key, version)]
    return kvs_commit([*check, store.put(key, value)])


def kvs_fence(name: str, n: int, ops: Iterable[store.Op] = ()) -> Plan[int]:
    return Plan(r.Fence(name, n, _ops(ops)), int)


def _ops(ops: Iterable[store.Op]) -> bytes:
    import msgspec

    chosen = tuple(ops)
    for op in chosen:
        if isinstance(op, store.Put) and len(op.data) > r.MAX_VALUE:
            raise ValueError(f"{op.key}: a value of {len(op.data)} bytes; at most {r.MAX_VALUE} are kept under a key: "
                             "store a file's name, or pieces")
    return msgspec.msgpack.encode(chosen)


def change(item: list[Any]) -> Change:
    key, data, version = item
    return Change(key, None if data is None else store.decode_value(data), version, data is None)


# -- messages --------------------------------------------------------------------------------------------------------


def pack_value(value: object) -> bytes:
    """A payload as it travels. Raises TypeError and ValueError for what is neither JSON nor bytes, or too large."""
    data = store.encode_value(value)
    if len(data) > r.MAX_VALUE:
        raise ValueError(f"a message of {len(data)} bytes; at most {r.MAX_VALUE} travel at once: send it in pieces")
    return data


def publish(topic: str, payload: object) -> Plan[int]:
    return Plan(r.Publish(topic, pack_value(payload)), int)


def message(item: list[Any]) -> Message:
    return Message(item[0], store.decode_value(item[1]))


def call(service: str, payload: object) -> Plan[Any]:
    return Plan(r.Ask(service, pack_value(payload)), store.decode_value)


def push(queue: str, values: Iterable[object], priority: float) -> Plan[int]:
    return Plan(r.Push(queue, tuple(map(pack_value, values)), priority), int)


def pull(queue: str, *, ack: bool, wait: bool) -> Plan[tuple[int, Any]]:
    """With ``ack`` the value is done with once it is here; until then it is only lent, and never lost on the way."""
    return Plan(r.Pull(queue, False, wait), lambda value: (value[0], store.decode_value(value[1])),
                (lambda value: r.Done(value[0])) if ack else None, _give_back)


def _give_back(value: Any) -> r.Done:
    return r.Done(value[0], back=True)


def pull_again(queue: str) -> Plan[tuple[int, Any, int]]:
    """(item, value, how often a consumer died that had it)."""
    return Plan(r.Pull(queue, ack=False), lambda value: (value[0], store.decode_value(value[1]), value[2]),
                back=_give_back)


def done(item: int, *, back: bool) -> Plan[None]:
    return Plan(r.Done(item, back), lambda value: None)


def answer(number: int, handler: Callable[[Any], object], data: bytes) -> r.Answer:
    """What ``handler`` makes of a call: its value, or the exception that it raised."""
    try:
        return r.Answer(number, pack_value(handler(store.decode_value(data))))
    except BaseException as error:
        # also of sys.exit: whoever called waits for an answer
        return failure(number, error)


MOST_SAID = 1 << 16
"""Characters of an exception's text that travel."""


def failure(number: int, error: BaseException) -> r.Answer:
    """The answer of a handler that raised; its text can be sent whatever is in it."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:
        text = f"{type(error).__name__} (its text cannot be told)"
    return r.Answer(number, error=text[:MOST_SAID].encode("utf-8", "backslashreplace").decode())


def queues() -> Plan[dict[str, list[int]]]:
    return Plan(r.QueueInfo(), dict)
