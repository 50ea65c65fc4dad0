"""A PMI-1 server as a pure state machine: bytes from ranks in, replies and decisions out.

PMI-1 is how the processes of an MPI program find each other in MPI_Init: each puts its network address into
a key-value space, all meet in a barrier, each gets the others' addresses. Protocol: Flux RFC 13 (Simple
Process Manager Interface v1) and MPICH's ``src/pmi/maint/pmi-1.1.txt``. One server serves the ranks of one
machine; for a program on several machines it hands up what was put (:class:`BarrierEntered`) and waits for
what the others put (:meth:`PmiServer.complete_barrier`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

KVSNAME_MAX = 256
KEY_MAX = 64
VALUE_MAX = 1024
"""Lengths told to clients, in bytes with the C string's NUL; the same as hydra's."""

LINE_MAX = 4096
"""Bytes of one request line; a longest legal ``put`` takes some 1,400."""

KVS_BYTES_MAX = 64 << 20
"""Keys and values of one program on one server. What goes beyond is refused with rc=-1."""

CLIENT_LINE_MAX = 1023
"""The longest reply line that MPICH 3's client reads."""

_GET_OK = b"cmd=get_result rc=0 value=%b\n"
MAPPING_MAX = CLIENT_LINE_MAX - len(_GET_OK % b"")


class Reply(NamedTuple):
    """Bytes to send to a rank."""

    rank: int
    data: bytes


class Abort(NamedTuple):
    """The program has to end: a rank asked for it, or broke the protocol. ``code`` is the exit status."""

    rank: int
    code: int
    message: str


class BarrierEntered(NamedTuple):
    """All ranks of this server are in the barrier; ``puts`` is what they put since the last one."""

    puts: dict[bytes, bytes]


Action = Reply | Abort | BarrierEntered


def process_mapping(node_of_rank: Sequence[Hashable]) -> str:
    """The value of ``PMI_process_mapping``: which ranks share a node (RFC 13, its last section).

    ``node_of_rank[r]`` names the node of rank ``r``; nodes are numbered in order of first appearance. Returns
    ``""`` (unknown: MPI then compares host names by itself) when the list is empty or the text too long for a
    client.
    """
    numbers: dict[Hashable, int] = {}
    runs: list[list[int]] = []  # [node, consecutive ranks on it]
    for name in node_of_rank:
        node = numbers.setdefault(name, len(numbers))
        if runs and runs[-1][0] == node:
            runs[-1][1] += 1
        else:
            runs.append([node, 1])
    blocks: list[list[int]] = []  # [first node, nodes, ranks on each]
    for node, count in runs:
        if blocks and blocks[-1][0] + blocks[-1][1] == node and blocks[-1][2] == count:
            blocks[-1][1] += 1
        else:
            blocks.append([node, 1, count])
    text = "(vector," + ",".join(f"({a},{b},{c})" for a, b, c in blocks) + ")"
    return text if blocks and len(text) <= MAPPING_MAX else ""


def nobody_asked(tasks: int) -> str:
    """What is to be said of a job that has completed, and of whose tasks none has said ``init``."""
    return (f"none of its {tasks} tasks asked for PMI-1, so each ran by itself: the program is of another MPI library "
            "(Open MPI: give it mpi: pmix), or no MPI program (then leave mpi: pmi1 out)")


def mpich_segments(kvsname: str, nodes: int = 1) -> list[str]:
    """Names of the shared-memory segments that MPICH 5 makes for a program, and leaves when a rank dies.

    They are numbered by FNV-1a of the key-value space's name, then by node (MPICH's ``posix_init.c``; checked
    with 5.0.2).
    """
    world = 2166136261
    for byte in kvsname.encode():
        world = (world ^ byte) * 16777619 & 0xFFFFFFFF
    return [f"mpich_{kind}_{world:x}_{node}" for kind in ("shm", "vci") for node in range(nodes)]


class _Client:
    """What the server knows of one rank."""

    __slots__ = ("buffer", "closed", "finalized", "initialized", "spawn", "waiting")

    def __init__(self) -> None:
        self.buffer = b""
        self.initialized = False
        self.finalized = False
        self.waiting = False
        self.closed = False
        self.spawn: dict[bytes, bytes] | None = None


_REFUSED = {b"publish_name": b"publish_result", b"unpublish_name": b"unpublish_result",
            b"lookup_name": b"lookup_result", b"spawn": b"spawn_result", b"singinit": b"singinit_info"}


class PmiServer:
    """Serves the ranks ``ranks`` (all by default) of a program of ``size`` ranks.

    Every rank talks in lock-step, so at most one reply is due to each. A rank that breaks the protocol gets
    an :class:`Abort` and is not listened to any more; nothing a rank sends raises.
    """

    def __init__(self, size: int, kvsname: str, mapping: str, appnum: int = 0,
                 ranks: Iterable[int] | None = None) -> None:
        """``mapping`` is :func:`process_mapping`'s text. Raises ValueError for ranks outside
        ``range(size)`` and for a ``kvsname`` that is not one short printable word."""
        local = range(size) if ranks is None else sorted(set(ranks))
        if not local or local[0] < 0 or local[-1] >= size:
            raise ValueError(f"ranks {list(local)} of a program of {size}: give some of 0 to {size - 1}")
        if not _is_word(kvsname.encode("utf-8", "surrogateescape"), KVSNAME_MAX):
            raise ValueError(f"{kvsname!r} cannot name a PMI key-value space: use up to {KVSNAME_MAX - 1} "
                             "printable ASCII characters without spaces and '='")
        self.size = size
        self._appnum = appnum
        self._kvsname = kvsname.encode()
        self._clients = {rank: _Client() for rank in local}
        self._kvs: dict[bytes, bytes] = {}
        self._kvs_bytes = 0
        self._fresh: dict[bytes, bytes] = {}
        self._handed_up = False
        if mapping:
            self._store(b"PMI_process_mapping", mapping.encode())

    # -- what callers ask ------------------------------------------------------------------------------------

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(self._clients)

    def initialized(self, rank: int) -> bool:
        """The rank has said ``init``: it is in MPI_Init or beyond.

        Where MPI_Init ends cannot be told: on one machine MPICH 5 needs no barrier there.
        """
        return self._clients[rank].initialized

    def finalized(self, rank: int) -> bool:
        return self._clients[rank].finalized

    @property
    def asked(self) -> bool:
        """Whether any of its ranks has said ``init``."""
        return any(client.initialized for client in self._clients.values())

    def value(self, key: bytes) -> bytes:
        """What is stored under a key; empty when there is none."""
        return self._kvs.get(key, b"")

    def stuck(self) -> tuple[int, ...]:
        """Ranks that wait in a barrier which cannot complete, as another rank of this server has gone."""
        if not any(c.closed for c in self._clients.values()):
            return ()
        return tuple(rank for rank, c in self._clients.items() if c.waiting)

    # -- events ----------------------------------------------------------------------------------------------

    def feed(self, rank: int, data: bytes) -> list[Action]:
        """What a rank sent, in pieces of any size. Raises KeyError for a rank that is not served here."""
        client = self._clients[rank]
        actions: list[Action] = []
        if client.closed:
            return actions
        lines = (client.buffer + data).split(b"\n")
        client.buffer = lines.pop()
        for line in lines:
            if len(line) > LINE_MAX:
                actions.append(self._broken(rank, f"a line of {len(line)} bytes"))
            else:
                actions += self._line(rank, client, line)
            if client.closed:
                return actions
        if len(client.buffer) > LINE_MAX:
            actions.append(self._broken(rank, f"a line of more than {LINE_MAX} bytes"))
        return actions

    def complete_barrier(self, puts: Mapping[bytes, bytes]) -> list[Action]:
        """All ranks of the program are in the barrier and put ``puts`` in all: let this server's go on."""
        for key, value in puts.items():
            self._store(key, value)
        self._fresh = {}
        self._handed_up = False
        actions: list[Action] = []
        for rank, client in self._clients.items():
            if client.waiting:
                client.waiting = False
                actions.append(Reply(rank, b"cmd=barrier_out rc=0\n"))
        return actions

    def disconnect(self, rank: int) -> None:
        """The rank's socket or process has ended. Ranks that need it are :meth:`stuck` from now on."""
        client = self._clients[rank]
        client.closed, client.waiting, client.buffer = True, False, b""

    # -- inside ----------------------------------------------------------------------------------------------

    def _broken(self, rank: int, what: str) -> Abort:
        self.disconnect(rank)
        return Abort(rank, 1, f"rank {rank} sent {what} on its PMI socket: it does not speak PMI-1")

    def _line(self, rank: int, client: _Client, line: bytes) -> list[Action]:
        if client.waiting:
            return [self._broken(rank, "a request before the answer to barrier_in")]
        if client.spawn is not None:
            return self._spawn_line(rank, client, line)
        if line.startswith(b"mcmd="):
            client.spawn = {b"mcmd": line[5:].strip()}
            return []
        words = _words(line)
        command = words.get(b"cmd")
        if command is None or not _is_word(command, KEY_MAX):
            return [self._broken(rank, _excerpt(line))]
        if command == b"barrier_in":
            return self._barrier_in(client)
        if command == b"abort":
            self.disconnect(rank)
            message = _rest(line, b"message").decode("utf-8", "replace")
            return [Abort(rank, _integer(words.get(b"exitcode"), 1), message or f"rank {rank} called abort")]
        return [Reply(rank, self._answer(client, command, words, line))]

    def _answer(self, client: _Client, command: bytes, words: dict[bytes, bytes], line: bytes) -> bytes:
        if command == b"get":
            value = self._kvs.get(words.get(b"key", b""))
            return b"cmd=get_result rc=-1 msg=no_such_key\n" if value is None else _GET_OK % value
        if command == b"put":
            return b"cmd=put_result rc=%d\n" % self._put(words.get(b"key", b""), _rest(line, b"value"))
        if command == b"init":
            # a client that offers PMI-2 is told 1.1 and decides; one below 1.1 has no barrier as we know it
            offered = (_integer(words.get(b"pmi_version"), 0), _integer(words.get(b"pmi_subversion"), 0))
            client.initialized = offered >= (1, 1)
            client.finalized = False
            return (b"cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=%d\n"
                    % (0 if client.initialized else -1))
        if command == b"get_maxes":
            return (b"cmd=maxes rc=0 kvsname_max=%d keylen_max=%d vallen_max=%d\n"
                    % (KVSNAME_MAX, KEY_MAX, VALUE_MAX))
        if command == b"get_appnum":
            return b"cmd=appnum rc=0 appnum=%d\n" % self._appnum
        if command == b"get_my_kvsname":
            return b"cmd=my_kvsname rc=0 kvsname=%b\n" % self._kvsname
        if command == b"get_universe_size":
            return b"cmd=universe_size rc=0 size=%d\n" % self.size
        if command == b"finalize":
            client.finalized = True
            return b"cmd=finalize_ack rc=0\n"
        name = _REFUSED.get(command, command + b"_result")
        return b"cmd=%b rc=-1 msg=not_supported\n" % name

    def _barrier_in(self, client: _Client) -> list[Action]:
        client.waiting = True
        if not all(c.waiting for c in self._clients.values()):
            return []
        if len(self._clients) == self.size:
            return self.complete_barrier({})
        if self._handed_up:
            return []
        self._handed_up = True
        return [BarrierEntered(dict(self._fresh))]

    def _put(self, key: bytes, value: bytes) -> int:
        """rc of a put. A key put again takes the new value: programs that initialise MPI twice do that."""
        if not _is_word(key, KEY_MAX) or len(value) >= VALUE_MAX or b"\0" in value or b"\r" in value:
            return -1
        if self._kvs_bytes + len(key) + len(value) > KVS_BYTES_MAX:
            return -1
        self._store(key, value)
        self._fresh[key] = value
        return 0

    def _store(self, key: bytes, value: bytes) -> None:
        old = self._kvs.get(key)
        self._kvs_bytes += len(value) - len(old) if old is not None else len(key) + len(value)
        self._kvs[key] = value

    def _spawn_line(self, rank: int, client: _Client, line: bytes) -> list[Action]:
        """One line of a many-line request. All of its parts are read, then it is refused once."""
        parts = client.spawn
        assert parts is not None
        if line.strip() != b"endcmd":
            key, _, value = line.partition(b"=")
            if key in (b"totspawns", b"spawnssofar"):
                parts[key] = value
            return []
        client.spawn = None
        if _integer(parts.get(b"spawnssofar"), 1) < _integer(parts.get(b"totspawns"), 1):
            return []
        name = _REFUSED.get(parts[b"mcmd"], b"spawn_result")
        return [Reply(rank, b"cmd=%b rc=-1 msg=not_supported\n" % name)]


def _words(line: bytes) -> dict[bytes, bytes]:
    """The ``key=value`` tuples of a line; the first of a kind counts, what is not a tuple is left out."""
    words: dict[bytes, bytes] = {}
    for word in line.split():
        key, equals, value = word.partition(b"=")
        if equals:
            words.setdefault(key, value)
    return words


def _rest(line: bytes, key: bytes) -> bytes:
    """The value of ``key``, which may hold spaces when it comes last (RFC 13's ``string``)."""
    head, found, rest = line.partition(b" " + key + b"=")
    if not found:
        return b""
    if key == b"value" and b"key=" not in head:
        return rest.split(b" ")[0]
    return rest


def _is_word(text: bytes, limit: int) -> bool:
    return 0 < len(text) < limit and all(33 <= c <= 126 and c != 61 for c in text)


def _integer(text: bytes | None, default: int) -> int:
    """A decimal number of a sane size, or the default."""
    if text is None or len(text) > 11:
        return default
    try:
        return int(text)
    except ValueError:
        return default


def _excerpt(line: bytes) -> str:
    return repr(line[:40].decode("latin-1")) + ("…" if len(line) > 40 else "")
