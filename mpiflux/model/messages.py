"""Every message between ranks: frozen structs in one tagged union, sent as batches of msgpack.

One batch a destination and loop turn. Nothing here is per job on the common path: work goes down as index ranges
(:class:`Chunk`) of job groups sent once (:class:`Declare`), and comes up as packed attempt records
(:mod:`mpiflux.model.records`).
"""

from __future__ import annotations

import msgspec

from mpiflux.model.chunks import Chunk as Chunk
from mpiflux.model.chunks import NodeShare as NodeShare
from mpiflux.model.chunks import ResourceSet as ResourceSet
from mpiflux.model.jobspec import JobGroup
from mpiflux.model.resources import NodeResources
from mpiflux.model.tree import TreeNode

VERSION = 6
"""Bumped whenever a struct below changes; ranks of different versions refuse each other at start."""

# -- down the tree -----------------------------------------------------------------------------------------------


class Sealed(msgspec.Struct, frozen=True, array_like=True):
    """Values of secrets by name, and names of variables that are not inherited. No error shows what is in it."""

    values: dict[str, bytes] = {}
    hidden: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Sealed({', '.join(self.values)})"


class Declare(msgspec.Struct, frozen=True, tag="declare"):
    """A job group, sent to each receiver once, before the first chunk that names it."""

    group: JobGroup
    workflow_dir: str = ""
    output_limit: int = 16 << 20
    sealed: Sealed = Sealed()


class Forget(msgspec.Struct, frozen=True, tag="forget"):
    """All jobs of these groups have ended: nobody is sent anything of theirs again, and who was told of them forgets
    them."""

    groups: tuple[int, ...]


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """Work for a scheduler."""

    chunks: tuple[Chunk, ...]


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """End these jobs, wherever below they are. Empty ``ids``: all of them."""

    ids: tuple[int, ...] = ()
    reason: str = ""
    result: int = 3
    """The result that they end with, CANCELED unless said otherwise."""


class Urgency(msgspec.Struct, frozen=True, tag="urgency"):
    """Elements ``range(start, stop)`` of a group have this urgency from now on, as far as they have not started.
    0 holds them: they go back to the root scheduler and stay there."""

    group: int
    start: int
    stop: int
    urgency: int


class Explain(msgspec.Struct, frozen=True, tag="explain"):
    """Why has this job not started? Goes down to whoever has it; the answer is :class:`Explained`."""

    id: int
    group: int
    index: int


class Explained(msgspec.Struct, frozen=True, tag="explained"):
    """What holds a job up: sentences, each with the time (Unix seconds) that it is about, or 0."""

    id: int
    facts: tuple[tuple[str, float], ...]


class Recall(msgspec.Struct, frozen=True, tag="recall"):
    """Give back up to ``n`` jobs that have not started, last ones first."""

    n: int


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """The run is interrupted: forget what is queued and end what runs, TERM, then KILL after ``grace`` seconds.

    The attempts that it ends are reported as LOST, so that a resumed run tries them again.
    """

    grace: float = 5.0
    listen: float = 0.0
    """Seconds that a supervisor waits before it answers, for the signal that may have come to everybody."""


class Stopped(msgspec.Struct, frozen=True, tag="stopped"):
    """The answer to :class:`Stop`, once nothing runs below the sender any more."""


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """The run is over: the rank that gets it leaves, and its supervisors end what they still run."""


class Borrow(msgspec.Struct, frozen=True, tag="borrow"):
    """A parent needs these resources for a job that none of its children can hold: free them, then :class:`Lend`."""

    token: int
    shares: tuple[NodeShare, ...]


class Lend(msgspec.Struct, frozen=True, tag="lend"):
    """Everything that :class:`Borrow` named is free and the sender's no more."""

    token: int
    idle: float = 0.0
    """Core-seconds for which cores lay idle until the last one was free."""


class Return(msgspec.Struct, frozen=True, tag="return"):
    """Borrowed resources go back to whom they were borrowed from."""

    shares: tuple[NodeShare, ...]


class Borrowed(msgspec.Struct, frozen=True, tag="borrowed"):
    """For the record: a scheduler has borrowed ``cores`` cores, which took ``waited`` seconds and cost ``idle``
    core-seconds."""

    sched: int
    cores: int
    waited: float
    idle: float


# -- down the tree to the executors of jobs that run; for one that has ended meanwhile nothing is done or answered -----


class Listen(msgspec.Struct, frozen=True, tag="listen"):
    """Somebody follows (``on``) what these jobs write, or nobody does any more: their output shall not wait."""

    ids: tuple[int, ...]
    on: bool = True


class Pause(msgspec.Struct, frozen=True, tag="pause"):
    """To schedulers: start no more jobs (``on``), or go on. What executors have been fed already still starts."""

    on: bool


class Signal(msgspec.Struct, frozen=True, tag="signal"):
    """Send signal ``number`` to the process groups of these jobs."""

    ids: tuple[int, ...]
    number: int


class Stdin(msgspec.Struct, frozen=True, tag="stdin"):
    """What a job that was submitted with an open stdin is to read; ``eof``: and nothing after it.

    ``ids`` is one job; each piece is answered by :class:`StdinTaken`.
    """

    ids: tuple[int, ...]
    attempt: int
    data: bytes = b""
    eof: bool = False


# -- scheduler to executor ---------------------------------------------------------------------------------------


class Grant(msgspec.Struct, frozen=True, tag="grant"):
    """The executor may run jobs of shape ``shape`` on R, one after the other, while it has any of that shape.

    A lease ends by itself when the backlog of its shape is empty, and is then named in ``Report.idle``: so the
    scheduler never takes back what is in use, and no message can cross one that would.
    """

    lease: int
    shape: int
    r_id: int
    r: ResourceSet


class Revoke(msgspec.Struct, frozen=True, tag="revoke"):
    """End a lease with the job that runs on it now. A lease that has ended meanwhile is none: nothing to answer."""

    lease: int


class Feed(msgspec.Struct, frozen=True, tag="feed"):
    """Jobs for the leases of a shape; started in order as leases fall idle."""

    shape: int
    chunks: tuple[Chunk, ...]


# -- up the tree -------------------------------------------------------------------------------------------------


class Report(msgspec.Struct, frozen=True, tag="report", omit_defaults=True):
    """What happened since the last report."""

    records: bytes = b""
    """Ended attempts, packed (:mod:`mpiflux.model.records`)."""
    output: bytes = b""
    reasons: dict[int, str] = {}
    """Job id to text, for records with FLAG_REASON."""
    started: bytes = b""
    """Still running attempts, same format, that were not reported before."""
    returned: tuple[tuple[int, Chunk], ...] = ()
    """(shape, chunk) that come back unstarted."""
    idle: tuple[int, ...] = ()
    """Leases that have ended (executor to its scheduler only)."""
    done: tuple[tuple[int, int, int, float], ...] = ()
    """(shape, group, jobs ended, seconds they ran in all) (executor to its scheduler only)."""


class Output(msgspec.Struct, frozen=True, tag="output"):
    """A piece of a running job's stream. ``stream`` is 1 or 2; ``offset`` in bytes from the attempt's start."""

    id: int
    attempt: int
    stream: int
    offset: int
    data: bytes


class StdinTaken(msgspec.Struct, frozen=True, tag="stdin_taken"):
    """``size`` more bytes of stdin have left for an attempt, or it wants none any more."""

    id: int
    attempt: int
    size: int


class NewR(msgspec.Struct, frozen=True, tag="r"):
    """A resource set that records of scheduler ``sched`` name by ``r_id``; sent up once, before they do."""

    sched: int
    r_id: int
    r: ResourceSet


class ExecutorLost(msgspec.Struct, frozen=True, tag="executor_lost"):
    """A supervisor died: what it had not reported is lost, its leases are over; one in its place is ready."""

    executor: int


class Fault(msgspec.Struct, frozen=True, tag="fault"):
    """Something broke that a person should hear of. ``rank``: where, or -1."""

    text: str
    rank: int
    fatal: bool = False
    """The run cannot go on."""


class Warned(msgspec.Struct, frozen=True, tag="warned"):
    """Signal ``number`` came from outside to the sender, as a batch system's does to all processes of a node: whoever
    gets it starts nothing for a while, and rank 0 has nothing started anywhere until it knows more."""

    number: int
    doubtful: tuple[tuple[int, int], ...] = ()
    """(job, attempt) of those that ended by themselves just before: it may have been the signal's doing."""


# -- clients: between a rank's door and the broker beside the master ---------------------------------------------------


class ClientRequest(msgspec.Struct, frozen=True, tag="client_request"):
    """Frames of a client, as they came (:mod:`mpiflux.model.requests`). ``client`` is the door's number for it."""

    client: int
    frames: tuple[bytes, ...]


class ClientGone(msgspec.Struct, frozen=True, tag="client_gone"):
    """A client has hung up, or was dropped."""

    client: int


class ClientTaken(msgspec.Struct, frozen=True, tag="client_taken"):
    """So many bytes of a client's frames have been dealt with: as many more may be read of it."""

    client: int
    size: int


class ClientReady(msgspec.Struct, frozen=True, tag="client_ready"):
    """A client has taken all that was written to it, as was asked by ``ClientReply.tell``."""

    client: int


class ClientReply(msgspec.Struct, frozen=True, tag="client_reply"):
    """Frames for clients of one door, the same for each of them; ``close``: and nothing after them."""

    clients: tuple[int, ...]
    frames: tuple[bytes, ...]
    close: bool = False
    tell: bool = False
    """Say when the clients have taken all of it."""


# -- jobs that span nodes: between a scheduler and the executors of their parts ----------------------------------------


class Part(msgspec.Struct, frozen=True, tag="part"):
    """Start the tasks that one node has of a job that spans nodes. The executor answers by :class:`PartStarted`
    and :class:`PartEnded`; a :class:`Cancel` with the job's id ends it."""

    id: int
    attempt: int
    group: int
    index: int
    part: int
    tasks: tuple[int, ...]
    """Tasks of each part; ranks are counted through them in order."""
    share: NodeShare
    hosts: str
    """Host names of all parts, in order, as a hostlist."""


class PartStarted(msgspec.Struct, frozen=True, tag="part_started"):
    """All tasks of a part exist; ``pid`` is the first one's."""

    id: int
    attempt: int
    part: int
    t_start: float
    pid: int


class PartFailed(msgspec.Struct, frozen=True, tag="part_failed"):
    """Something went wrong in a part and its executor is ending it: the others are to end now."""

    id: int
    attempt: int
    part: int
    result: int
    returncode: int
    reason: str


class PartEnded(msgspec.Struct, frozen=True, tag="part_ended"):
    """Nothing of a part runs any more. ``record`` is of this part alone (:mod:`mpiflux.model.records`)."""

    id: int
    attempt: int
    part: int
    record: bytes
    output: bytes = b""
    reason: str = ""


class Barrier(msgspec.Struct, frozen=True, tag="barrier"):
    """All tasks of a part are in PMI's barrier; what they put since the last one."""

    id: int
    attempt: int
    part: int
    puts: dict[bytes, bytes]


class BarrierDone(msgspec.Struct, frozen=True, tag="barrier_done"):
    """All parts are in the barrier; what all of them put."""

    id: int
    attempt: int
    puts: dict[bytes, bytes]


# -- lives of ranks: between the control endpoints of ranks (mpiflux.instance.keeper), and to the root scheduler -------


class Alive(msgspec.Struct, frozen=True, tag="alive"):
    """The sender lives. Every other rank tells rank 0 now and then, which gives each message back at once. To
    supervisors: their rank lives, and rank 0 takes it for alive."""

    sent: float = 0.0
    """When the rank sent it, in seconds by its own clock."""
    age: float = 0.0
    """To supervisors: seconds since their rank sent the last one that it knows rank 0 to have received."""


class Missing(msgspec.Struct, frozen=True, tag="missing"):
    """To rank 0: these ranks are gone for certain."""

    ranks: tuple[int, ...]


class Regroup(msgspec.Struct, frozen=True, tag="regroup"):
    """To every living rank: ranks are lost. Answered by :class:`Regrouped` once all of it is done."""

    generation: int
    """Counts the times that this happened."""
    lost: tuple[int, ...]
    """All ranks that are lost by now: nothing is sent to them or taken from them any more."""
    retired: tuple[int, ...]
    """Schedulers that are no more, in all generations."""
    nodes: tuple[TreeNode, ...]
    """Those that take their place."""
    executors: tuple[int, ...]
    """Executors on living ranks whose schedulers are retired: they start anew, with nothing left of what they ran."""


class Regrouped(msgspec.Struct, frozen=True, tag="regrouped"):
    """Nothing of what :class:`Regroup` retired is left on the sender."""

    generation: int


class Regrow(msgspec.Struct, frozen=True, tag="regrow"):
    """To the root scheduler, from the master, once all ranks have regrouped. Answered by :class:`Regrown`."""

    lost: tuple[int, ...]
    """Children that are no more: what they had is lost."""
    gained: tuple[TreeNode, ...]
    """Children that are new."""
    executors: tuple[int, ...]
    """Executors that are no more: what they had is lost. Of those that start anew their ranks tell, as ever."""
    resources: tuple[NodeResources, ...]
    """R from now on."""
    reason: str = ""


class Regrown(msgspec.Struct, frozen=True, tag="regrown"):
    """The answer: how many jobs were lost."""

    jobs: int


class Dismissed(msgspec.Struct, frozen=True, tag="dismissed"):
    """To a rank that was taken for lost, should it live after all: end what you run, and leave."""


class Left(msgspec.Struct, frozen=True, tag="left"):
    """To rank 0, after :class:`Shutdown`: nothing runs on the sender any more."""


class Leave(msgspec.Struct, frozen=True, tag="leave"):
    """Every living rank has said :class:`Left`. ``clean``: none was lost, so MPI can be finalised."""

    clean: bool


Message = (Declare | Forget | Submit | Cancel | Urgency | Explain | Explained | Recall | Stop | Stopped | Shutdown
           | Borrow | Lend | Return | Borrowed | Listen | Pause | Signal | Stdin | StdinTaken | Grant | Revoke
           | Feed | Report | Output | NewR | ExecutorLost | Fault | Warned | ClientRequest | ClientGone | ClientTaken
           | ClientReady | ClientReply | Part | PartStarted | PartFailed | PartEnded | Barrier | BarrierDone
           | Alive | Missing | Regroup | Regrouped | Regrow | Regrown | Dismissed | Left | Leave)


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """One batch: ``items`` are (destination endpoint, source endpoint, message)."""

    version: int
    items: tuple[tuple[int, int, Message], ...]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Envelope)


def encode(items: list[tuple[int, int, Message]]) -> bytes:
    """One batch as bytes."""
    return _encoder.encode(Envelope(VERSION, tuple(items)))


def decode(data: bytes | memoryview) -> tuple[tuple[int, int, Message], ...]:
    """The items of a batch. Raises ValueError when it is not one of this version."""
    try:
        envelope = _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ValueError(f"not a message of this program: {error}") from error
    if envelope.version != VERSION:
        raise ValueError(f"message version {envelope.version}, this program speaks {VERSION}")
    return envelope.items
