"""What a client and an instance say to each other: frozen structs in two tagged unions, versioned, as msgpack.

A client sends :class:`Hello`, then :class:`Call` after :class:`Call`, each with a number of its own choosing that the
answer repeats. What comes more than once (events, changes of keys, messages, work for a service) comes as
:class:`Items` of a subscription, whose number the client chose too. Values of users are opaque bytes here: what
:func:`mpiflux.store.kvs.encode_value` makes of them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from mpiflux.model.jobspec import Request as Resources
from mpiflux.model.params import ParamTable
from mpiflux.model.retry import Retry

VERSION = 1
"""Bumped whenever a struct below changes. A client of another version is refused with a sentence."""

MAX_VALUE = 32 << 20
"""Bytes of one encoded value that a client may send: a key's, a message's."""

MAX_GROUPS = 10_000
"""Job groups in one request."""
MAX_JOBS = 4_000_000
"""Jobs in one group."""
MAX_SUBMITTED = 16_000_000
"""Jobs in one request."""


# -- client to instance ------------------------------------------------------------------------------------------


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """The first frame."""

    version: int
    program: str = ""
    pid: int = 0
    keep: bool = False
    """The instance shall not end while this client is connected, nor in the seconds after its connection was lost."""


class After(msgspec.Struct, frozen=True):
    """A dependency on jobs, ended ones too: by ids, or a whole group by name or by number."""

    kind: str = "ok"
    """``ok``, ``any``, ``not_ok``, as in :class:`mpiflux.model.jobspec.Dependency`."""
    ids: tuple[int, ...] = ()
    group: str = ""


class NewGroup(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Jobs to submit; fields as in :class:`mpiflux.model.jobspec.JobGroup`."""

    name: str = ""
    """Empty: the base name of the command."""
    command: tuple[str, ...] = ()
    script: str | None = None
    shell: bool = False
    params: ParamTable = ParamTable()
    env: dict[str, str] = {}
    cwd: str = ""
    input: str = ""
    output: str = ""
    error: str = ""
    resources: Resources = Resources()
    time_limit: float = 0.0
    retries: int = 0
    retry: Retry = Retry()
    urgency: int = 16
    after: tuple[After, ...] = ()
    begin_time: float = 0.0
    """Unix seconds before which it does not start."""
    hold: bool = False
    mpi: str = "none"
    secrets: dict[str, bytes] = {}
    """Variables whose values are stored nowhere."""

    def __repr__(self) -> str:
        return f"NewGroup(name={self.name!r}, command={self.command!r})"


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """Answer: a list of [group number, first id, count]; all groups or none."""

    groups: tuple[NewGroup, ...]
    tie: str = ""
    """Of whom they are: see :class:`Tie`. Nothing: nobody's, and they run whoever comes and goes."""


class Tie(msgspec.Struct, frozen=True, tag="tie"):
    """Subscribe to having the jobs that are submitted with this name as their ``tie``: what has not ended of them is
    cancelled some seconds after the last who had them has gone. There are no items."""

    sub: int
    name: str


class Select(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Some jobs: all that every given part allows. Nothing given: none."""

    ids: tuple[tuple[int, int], ...] = ()
    """Ranges first, stop."""
    name: str = ""
    """Of their group."""
    states: tuple[str, ...] = ()
    every: bool = False
    """All jobs, as far as the other parts allow."""


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Answer: how many jobs had not ended and have been told to."""

    select: Select
    reason: str = "cancelled"


class Hold(msgspec.Struct, frozen=True, tag="hold"):
    """Keep back, or release again, groups whose jobs still wait at rank 0. Answer: how many jobs that concerned."""

    select: Select
    held: bool = True


class Signal(msgspec.Struct, frozen=True, tag="signal"):
    """Send signal ``number`` to the processes of these jobs. Answer: how many of them run."""

    select: Select
    number: int


class Follow(msgspec.Struct, frozen=True, tag="follow"):
    """Subscribe to what a job writes, from its beginning, or in attempt ``attempt`` from ``offsets`` of stdout and
    stderr on. Items are [attempt, 1 or 2 for stdout or stderr, offset, data]; it ends when the job does.

    A higher attempt than that of the item before: the job runs again, and what it wrote before does not count.
    """

    sub: int
    id: int
    streams: tuple[int, ...] = (1, 2)
    attempt: int = 0
    offsets: tuple[int, int] = (0, 0)


class Stdin(msgspec.Struct, frozen=True, tag="stdin"):
    """Write to the stdin of a job that was submitted with ``input`` ``-``; ``eof``: and close it. Answer: null, once
    no more than a megabyte of it waits for the job to read."""

    id: int
    data: bytes = b""
    eof: bool = False


class Urge(msgspec.Struct, frozen=True, tag="urge"):
    """Give jobs another urgency, 0–31; 0 holds them. Answer: how many of them had not started."""

    select: Select
    urgency: int


class Gate(msgspec.Struct, frozen=True, tag="gate"):
    """Whether jobs may be submitted, and whether they are started; null leaves it as it is. What runs is left alone.
    Answer: {enabled, started, reason}."""

    enabled: bool | None = None
    started: bool | None = None
    reason: str = ""
    """Why not, for those who ask or submit."""


class Explain(msgspec.Struct, frozen=True, tag="explain"):
    """Why has a job not started? Answer: sentences without their ends, each as [text, Unix seconds or 0]."""

    id: int


class Info(msgspec.Struct, frozen=True, tag="info"):
    """Answer: the job record (DESIGN 1.1), with ``stdout`` and ``stderr`` as bytes if asked."""

    id: int
    output: bool = False
    ended: bool = False
    """Answer once the job has ended."""


class Resolve(msgspec.Struct, frozen=True, tag="resolve"):
    """Answer: ranges [first, stop] of the ids that a reference such as ``sim``, ``sim.3`` or ``12`` means, ascending.

    Where a name was submitted several times the index counts through all its jobs in order.
    """

    ref: str


class Eventlog(msgspec.Struct, frozen=True, tag="eventlog"):
    """Answer: a job's events so far, as [name, timestamp, context]."""

    id: int


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """Answer, once these jobs have ended: how many completed, failed, were canceled, timed out."""

    select: Select


class Events(msgspec.Struct, frozen=True, tag="events"):
    """Subscribe to what happens to jobs, from event number ``since`` on (0: from the start, -1: from now on).

    Items are [seq, job, name, timestamp, context]. At most a window of items is under way: see :class:`Taken`.
    Answer: the number of the event that comes next.
    """

    sub: int
    select: Select
    names: tuple[str, ...] = ()
    """Only these events; empty: all."""
    since: int = 0
    finite: bool = False
    """End the subscription once all selected jobs have ended and it is all told."""


class Taken(msgspec.Struct, frozen=True, tag="taken"):
    """Items up to ``upto`` of an event subscription have been used: more may come. Not answered."""

    sub: int
    upto: int


class Unsubscribe(msgspec.Struct, frozen=True, tag="unsubscribe"):
    """End a subscription of any kind."""

    sub: int


class Get(msgspec.Struct, frozen=True, tag="get"):
    """Answer: [data, version]."""

    key: str
    wait: bool = False
    """Answer when the key exists."""


class Ls(msgspec.Struct, frozen=True, tag="ls"):
    prefix: str = ""
    recursive: bool = False


class Txn(msgspec.Struct, frozen=True, tag="txn"):
    """``ops``: :data:`mpiflux.store.kvs.Txn` as msgpack. Answer: the store's version after it."""

    ops: bytes


class Fence(msgspec.Struct, frozen=True, tag="fence"):
    """Answered when ``n`` clients have come to it; all their operations are done as one transaction then."""

    name: str
    n: int
    ops: bytes = b""


class Watch(msgspec.Struct, frozen=True, tag="watch"):
    """Every change of a key and of what is below it. Items are [key, data or null, version].

    ``since``: after that version; -1: first the values as they are, then every change. Answer: the store's version.
    """

    sub: int
    key: str
    since: int = -1


class Publish(msgspec.Struct, frozen=True, tag="publish"):
    """Answer: how many subscriptions it went to."""

    topic: str
    data: bytes


class Subscribe(msgspec.Struct, frozen=True, tag="subscribe"):
    """Messages whose topic matches: ``*`` is any one name, ``**`` any number. Items are [topic, data]."""

    sub: int
    pattern: str


class Serve(msgspec.Struct, frozen=True, tag="serve"):
    """Offer a service. Items are [call number, data], each to be answered with :class:`Answer`."""

    sub: int
    service: str


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """What a service answers. Not answered itself."""

    call: int
    data: bytes = b""
    error: str | None = None


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """Call a service. Answer: the data of its answer."""

    service: str
    data: bytes


class Push(msgspec.Struct, frozen=True, tag="push"):
    """Answer: how many items wait in the queue now."""

    queue: str
    items: tuple[bytes, ...]
    priority: float = 0.0
    """Higher comes first; equal ones in order."""


class Pull(msgspec.Struct, frozen=True, tag="pull"):
    """Answer: [item number, data, how often a consumer died that had it], when there is one. Unless ``ack``,
    :class:`Done` has to follow."""

    queue: str
    ack: bool = True
    wait: bool = True
    """False: an error at once when the queue is empty."""


class Done(msgspec.Struct, frozen=True, tag="done"):
    """An item was dealt with, or (``back``) goes back to its queue."""

    item: int
    back: bool = False


class Own(msgspec.Struct, frozen=True, tag="own"):
    """Subscribe to owning a queue: it goes, with all that is in it, some seconds after its last owner has gone. There
    are no items."""

    sub: int
    queue: str


class QueueInfo(msgspec.Struct, frozen=True, tag="queue_info"):
    """Answer: {name: [waiting, with consumers, consumers that wait]}; a queue with none of these is not there."""


class Forget(msgspec.Struct, frozen=True, tag="forget"):
    """Nobody waits for the answer to this call any more: unless it has been answered, it is now, with an error. So who
    asked knows what has become of it, and can give back what was on its way. Not answered itself."""

    call: int


class Leave(msgspec.Struct, frozen=True, tag="leave"):
    """This client hangs up and does not come back: its session is over, and nothing is answered any more.

    Who hangs up without a word may have lost its connection: what it asked to keep is kept for some seconds more.
    """


class Status(msgspec.Struct, frozen=True, tag="status"):
    """Answer: a mapping of what the instance is and has: counts, cores, uptime, clients …"""


class Sync(msgspec.Struct, frozen=True, tag="sync"):
    """Answer: null, once everything so far is on disk."""


Op = (Submit | Tie | Cancel | Signal | Follow | Stdin | Gate | Hold | Urge | Explain | Info | Resolve | Eventlog
      | Drain | Events | Taken | Unsubscribe | Get | Ls | Txn | Fence | Watch | Publish | Subscribe | Serve | Answer
      | Ask | Push | Pull | Done | Own | QueueInfo | Forget | Leave | Status | Sync)


class Call(msgspec.Struct, frozen=True, array_like=True):
    """One request. ``number`` 0 wants no answer."""

    number: int
    op: Op


# -- instance to client ------------------------------------------------------------------------------------------


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    """The answer to Hello."""

    version: int
    instance: str
    """Tells instances apart."""
    run_dir: str
    node: str = ""


class Reply(msgspec.Struct, frozen=True, tag="reply"):
    number: int
    value: Any = None


class Error(msgspec.Struct, frozen=True, tag="error"):
    """A call failed. ``kind`` is one of :data:`ERRORS`."""

    number: int
    kind: str
    text: str


class Items(msgspec.Struct, frozen=True, tag="items"):
    """Of a subscription. ``upto`` is what its next ``since`` would be; −1: it has none."""

    sub: int
    items: list[Any]
    upto: int = -1


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """Nothing more comes of a subscription; ``reason`` is empty where that is as it should be."""

    sub: int
    reason: str = ""


class Goodbye(msgspec.Struct, frozen=True, tag="goodbye"):
    """The last frame. ``over``: the instance has ended."""

    reason: str
    over: bool = False


ERRORS = ("request", "job", "key", "conflict", "value", "service", "remote", "empty", "history", "ended", "lost")
"""Kinds of errors: a wrong request; no such job; no such key; compare-and-swap failed; a wrong value; no such service;
a service answered with an error; an empty queue; further back than is remembered; the instance ends; a peer died."""

ToClient = Welcome | Reply | Error | Items | Ended | Goodbye

_encoder = msgspec.msgpack.Encoder()
_hello = msgspec.msgpack.Decoder(Hello)
_call = msgspec.msgpack.Decoder(Call)
_answer: msgspec.msgpack.Decoder[ToClient] = msgspec.msgpack.Decoder(ToClient)


class BadRequest(ValueError):
    """Bytes that are no request, or a request of another version."""


def encode(message: Hello | Call | ToClient) -> bytes:
    return _encoder.encode(message)


def decode_hello(data: bytes) -> Hello:
    """The first frame of a client. Raises BadRequest, which says so when it is of another version."""
    try:
        hello = _hello.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        found = _version(data)
        if isinstance(found, int) and found != VERSION:
            raise _other_version(found) from None
        raise BadRequest(f"not the first message of an mpiflux client: {error}") from None
    if hello.version != VERSION:
        raise _other_version(hello.version)
    return hello


def _other_version(found: int) -> BadRequest:
    return BadRequest(f"the client speaks version {found}, the instance {VERSION}: use the same mpiflux for both")


def _version(data: bytes) -> object:
    try:
        found = msgspec.msgpack.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return found.get("version") if isinstance(found, dict) else None


def decode_call(data: bytes) -> Call:
    """A request. Raises BadRequest."""
    try:
        return _call.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadRequest(f"not a request of this version: {error}") from None


def decode_answer(data: bytes) -> ToClient:
    """What an instance says. Raises BadRequest."""
    try:
        return _answer.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadRequest(f"not an answer of this version: {error}") from None
