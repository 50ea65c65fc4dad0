"""What each call of the Python interface asks of the instance, and what it makes of the answer.

The blocking and the asynchronous interface differ in how they wait, and in nothing else: both carry out these plans.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mpiflux.client.errors import NoJob
from mpiflux.client.jobids import Ids, id_ranges
from mpiflux.client.records import Change, Counts, JobEvent, Message, Record, Result, Value
from mpiflux.client.session import Plan
from mpiflux.model import requests as r
from mpiflux.store import kvs as store


def submit(groups: tuple[r.NewGroup, ...], tie: str = "") -> Plan[list[tuple[int, int]]]:
    """(first id, count) of each group."""
    return Plan(r.Submit(groups, tie), lambda value: [(first, count) for _, first, count in value])


# -- choosing and controlling --------------------------------------------------------------------------------------


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
