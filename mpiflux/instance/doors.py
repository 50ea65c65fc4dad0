"""The door of a node: the unix socket through which processes of the same user talk to the instance.

The first rank of each node opens it, in a directory that only the user may enter, and checks the uid of whoever
connects. Where that rank is lost the next one of the node opens it again at the same place. It cuts what clients send
into frames, passes them on to the broker on rank 0, and writes back what the broker says; what the frames mean is the
broker's business. Whatever a client does harms that client alone: it is dropped, with a reason where it still reads.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import select
import socket
import stat
import struct
from collections import deque
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Protocol

from mpiflux.model import messages as m
from mpiflux.model import requests as r
from mpiflux.model.frames import LIMIT, BadFrame, Unpacker, pack
from mpiflux.node.scratch import remove_directory
from mpiflux.node.zygote import is_deserted
from mpiflux.overlay import address

HELLO_LIMIT = 4096
"""Bytes that a client may send before it has said who it is."""
OUT_LIMIT = LIMIT + (16 << 20)
"""Bytes that may wait for a client that does not read. More, and it is dropped."""
IN_LIMIT = 4 << 20
"""Bytes of one client's requests that may be on their way to the broker. More, and it is not read until they are dealt
with."""
GREETING = 30.0
"""Seconds that a client has to say who it is."""
FAREWELL = 2.0
"""Seconds that a dropped client gets to take the reason, and all clients to take the last words at the end."""
_READ = 1 << 18
_SUN_PATH = 107
_NEW = "new"
_IN = select.EPOLLIN


class Loop(Protocol):
    """The part of a rank's loop that a door needs."""

    def watch(self, fd: int, events: int, callback: Callable[[int, int], None]) -> None: ...
    def unwatch(self, fd: int) -> None: ...
    def deliver(self, dst: int, src: int, message: m.Message) -> None: ...


class NoDoor(Exception):
    """The socket cannot be made; the text says why and what to do."""


def base_directory(environ: Mapping[str, str]) -> str:
    """Where this machine's door shall be; empty when no directory will do.

    TMPDIR comes before XDG_RUNTIME_DIR, which systemd removes when the user's last login ends, jobs or not. An instance
    inside a job uses the directory of the outermost one, which takes it away with its own.
    """
    outermost = re.match(r"local://(/.*?/mpiflux-[0-9a-f]+-[0-9]+)/", environ.get("MPIFLUX_URI", ""))
    for path in (outermost and outermost[1], environ.get("TMPDIR"), environ.get("XDG_RUNTIME_DIR"), "/tmp"):
        if path and os.path.isabs(path) and len(path) + 40 <= _SUN_PATH and os.access(path, os.W_OK | os.X_OK):
            return path.rstrip("/")
    return ""


def socket_path(base: str, instance: str, node: int) -> str:
    """The socket of a node, given what its first rank found; empty without a directory."""
    return f"{base}/mpiflux-{instance}-{node}/door" if base else ""


class _Client:
    """One connection."""

    __slots__ = ("asked", "backlog", "closing", "number", "out", "pending", "sent", "sock", "tell", "unpacker",
                 "welcome")

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number, self.sock = number, sock
        self.unpacker = Unpacker(HELLO_LIMIT)
        self.welcome = False
        self.pending: list[bytes] = []
        self.out: deque[bytes] = deque()
        self.sent = 0
        """Bytes of the first of ``out`` that have left."""
        self.backlog = 0
        self.asked = 0
        """Bytes of its requests that the broker has not dealt with."""
        self.tell = False
        """The broker wants to hear when nothing waits for it any more."""
        self.closing = 0.0
        """When the connection is cut whatever still waits; 0 while it is alive."""


class Door:
    """Implements :class:`mpiflux.instance.rank.Service` for the first rank of a node.

    ``listener`` is what :func:`listen` made at ``path``.
    """

    def __init__(self, path: str, listener: socket.socket, rank: int, loop: Loop, clock: Callable[[], float]) -> None:
        self.path, self._listener, self._loop, self._clock = path, listener, loop, clock
        self._me = address.control(rank)
        self._clients: dict[int, _Client] = {}
        self._by_fd: dict[int, _Client] = {}
        self._leaving: dict[int, _Client] = {}
        self._new: deque[tuple[float, _Client]] = deque()
        """Clients that may not have said who they are, and until when they have to."""
        self._fresh: dict[int, _Client] = {}
        """Clients with frames to be passed on this turn."""
        self._next = 0
        self.ours = True
        """Not when this rank was taken for lost, and another one may have opened the door anew."""
        self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        _raise_limit()
        loop.watch(self._listener.fileno(), _IN, self._accept)

    # -- the rank's side -------------------------------------------------------------------------------------------

    def handle(self, src: int, message: m.Message, now: float) -> None:
        """What the broker says."""
        if isinstance(message, m.ClientReply):
            frames = [pack(frame) for frame in message.frames]
            for number in message.clients:
                client = self._clients.get(number)
                if client is not None:
                    client.tell = client.tell or message.tell
                    self._send(client, frames)
                    if message.close:
                        self._close_later(client)
        elif isinstance(message, m.ClientTaken):
            client = self._clients.get(message.client)
            if client is not None:
                client.asked -= message.size
                self._watch(client)

    def turn(self, now: float) -> None:
        if self._fresh:
            fresh, self._fresh = self._fresh, {}
            for client in fresh.values():
                frames, client.pending = tuple(client.pending), []
                self._loop.deliver(address.MASTER, self._me, m.ClientRequest(client.number, frames))
        while self._new and (self._new[0][1].welcome or now >= self._new[0][0]):
            _, client = self._new.popleft()
            if not client.welcome and client.number in self._clients:
                self._read(client)  # it may have said so while this rank was stopped
            if not client.welcome and client.number in self._clients:
                self.drop(client, f"has not said who it is within {GREETING:g} s")
        for client in [one for one in self._leaving.values() if now >= one.closing]:
            self._cut(client)

    def next_wake(self) -> float:
        times = [client.closing for client in self._leaving.values()]
        return min([*times, *(until for until, _ in islice(self._new, 1))], default=float("inf"))

    def close(self) -> None:
        """Say the last words, for a bounded time, and take the socket away."""
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()
        deadline = self._clock() + FAREWELL
        poll = select.poll()
        for client in list(self._by_fd.values()):
            if client.out:
                poll.register(client.sock.fileno(), select.POLLOUT)
        while any(client.out for client in self._by_fd.values()) and (left := deadline - self._clock()) > 0:
            for fd, _ in poll.poll(left * 1000):
                client = self._by_fd[fd]
                if not self._write(client) or not client.out:
                    poll.unregister(fd)
                    self._cut(client)
        for client in list(self._by_fd.values()):
            self._cut(client)
        os.close(self._spare)
        if self.ours:
            remove_directory(os.path.dirname(self.path))

    # -- connections -----------------------------------------------------------------------------------------------

    def _accept(self, fd: int, events: int) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE) and self._turn_away():
                    continue
                # the kernel says so too when nobody is left who waits
                return
            sock.setblocking(False)
            if _uid_of(sock) not in (os.getuid(), 0):
                sock.close()
                continue
            self._next += 1
            client = _Client(self._next, sock)
            self._clients[client.number] = self._by_fd[sock.fileno()] = client
            self._new.append((self._clock() + GREETING, client))
            self._loop.watch(sock.fileno(), _IN, self._ready)

    def _turn_away(self) -> bool:
        """No descriptor is left: use the spare one to close a connection that would else wake us for ever. False when
        there was none."""
        os.close(self._spare)
        try:
            self._listener.accept()[0].close()
            return True
        except OSError:
            return False
        finally:
            self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def _ready(self, fd: int, events: int) -> None:
        client = self._by_fd[fd]
        if events & select.EPOLLOUT and not self._flush(client):
            return
        if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            self._read(client)

    def _read(self, client: _Client) -> None:
        try:
            try:
                data = client.sock.recv(_READ)
            except ConnectionResetError:
                # it went without reading all that it got, which is said once; what it had sent is still to be read
                data = client.sock.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._cut(client)
            return
        if client.closing:
            return
        try:
            # what follows the first frame at once may be longer than that
            frames = client.unpacker.feed(data, -1 if client.welcome else 1)
            if frames and not client.welcome:
                r.decode_hello(frames[0])
                client.welcome = True
                client.unpacker.limit = LIMIT
                frames += client.unpacker.feed(b"")
        except (BadFrame, r.BadRequest) as error:
            self.drop(client, str(error))
            return
        if frames:
            client.pending += frames
            client.asked += sum(map(len, frames))
            self._fresh[client.number] = client
            if client.asked > IN_LIMIT:
                self._watch(client)

    def drop(self, client: _Client, reason: str) -> None:
        """Tell a client why, if it reads, and be done with it. What else waits for it is forgotten."""
        if client.closing:
            return
        while len(client.out) > (1 if client.sent else 0):
            client.backlog -= len(client.out.pop())
        self._send(client, [pack(r.encode(r.Goodbye(reason)))])
        self._close_later(client)

    def _close_later(self, client: _Client) -> None:
        if client.number not in self._clients:
            return
        self._forget(client)
        client.closing = self._clock() + FAREWELL
        self._leaving[client.number] = client
        if not client.out:
            self._cut(client)

    def _forget(self, client: _Client) -> None:
        """The broker hears no more of it."""
        self._fresh.pop(client.number, None)
        if self._clients.pop(client.number, None) is not None and client.welcome:
            self._loop.deliver(address.MASTER, self._me, m.ClientGone(client.number))

    def _cut(self, client: _Client) -> None:
        fd = client.sock.fileno()
        if fd < 0:
            return
        if client.number in self._fresh:
            # what it asked before it hung up still counts
            del self._fresh[client.number]
            self._loop.deliver(address.MASTER, self._me, m.ClientRequest(client.number, tuple(client.pending)))
        self._forget(client)
        self._leaving.pop(client.number, None)
        self._loop.unwatch(fd)
        del self._by_fd[fd]
        client.out.clear()
        client.sock.close()

    # -- sending ---------------------------------------------------------------------------------------------------

    def _send(self, client: _Client, frames: list[bytes]) -> None:
        waiting = bool(client.out)
        client.out.extend(frames)
        client.backlog += sum(map(len, frames))
        if client.backlog > OUT_LIMIT and not client.closing:
            self.drop(client, f"does not read what it asked for: more than {OUT_LIMIT >> 20} MiB wait")
        elif not waiting:
            self._flush(client)

    def _flush(self, client: _Client) -> bool:
        """Send what the socket takes and wait for the rest; False when the client is gone."""
        if not self._write(client):
            self._cut(client)
            return False
        if not client.out and client.closing:
            self._cut(client)
            return False
        self._watch(client)
        if client.tell and not client.out and client.number in self._clients:
            client.tell = False
            self._loop.deliver(address.MASTER, self._me, m.ClientReady(client.number))
        return True

    def _watch(self, client: _Client) -> None:
        """Hear of what it sends while not too much of that is on its way, and of room for what waits for it."""
        reads = _IN if client.asked <= IN_LIMIT or client.closing else 0
        self._loop.watch(client.sock.fileno(), reads | (select.EPOLLOUT if client.out else 0), self._ready)

    def _write(self, client: _Client) -> bool:
        out = client.out
        while out:
            pieces: list[bytes | memoryview] = [memoryview(out[0])[client.sent:]]
            pieces += [out[i] for i in range(1, min(len(out), 64))]
            try:
                n = client.sock.sendmsg(pieces)
            except BlockingIOError:
                return True
            except OSError:
                return False
            n += client.sent
            while out and n >= len(out[0]):
                n -= len(out[0])
                client.backlog -= len(out.popleft())
            client.sent = n
        return True


def listen(path: str) -> socket.socket:
    """The socket of a door, in a directory made for it. Raises NoDoor."""
    if not path:
        raise NoDoor("no client can connect on this node: no directory for a socket in TMPDIR, XDG_RUNTIME_DIR or /tmp "
                     "may be written to, with a short path; set TMPDIR to one")
    return _try(_listen, path)


def listen_again(path: str) -> socket.socket:
    """The same for a door that a rank which is lost has held. Raises NoDoor."""
    return _try(_listen_again, path)


def _try(make: Callable[[str], socket.socket], path: str) -> socket.socket:
    try:
        return make(path)
    except OSError as error:
        raise NoDoor(f"no client can connect on this node: {path}: {error.strerror}; set TMPDIR to a local directory "
                     "that you may write to") from None


def _listen(path: str) -> socket.socket:
    directory = os.path.dirname(path)
    remove_stale(os.path.dirname(directory))
    os.mkdir(directory, 0o700)
    try:
        found = os.lstat(directory)
        if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise OSError(errno.EPERM, "others may enter the directory")
        return _bind(path)
    except BaseException:
        remove_directory(directory)
        raise


def _listen_again(path: str) -> socket.socket:
    return _bind(path) if os.path.isdir(os.path.dirname(path)) else _listen(path)


def _bind(path: str) -> socket.socket:
    """It gets its name once it listens: a door that refuses is taken for one whose instance was killed."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    new = f"{os.path.dirname(path)}/{_NEW}"
    try:
        try:
            os.unlink(new)
        except FileNotFoundError:
            pass
        listener.bind(new)
        os.chmod(new, 0o600)
        listener.listen(4096)
        os.rename(new, path)
    except BaseException:
        listener.close()
        raise
    return listener


def remove_stale(base: str) -> None:
    """Take away the doors of this user's instances on this machine that were killed."""
    if not base:
        return
    for name in os.listdir(base):
        path = f"{base}/{name}/door"
        if not name.startswith("mpiflux-"):
            continue
        try:
            if os.lstat(f"{base}/{name}").st_uid != os.getuid():
                continue
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(0.2)
                probe.connect(path)
        except ConnectionRefusedError:
            if is_deserted(f"{base}/{name}"):
                remove_directory(f"{base}/{name}")
        except OSError:
            continue


def _uid_of(sock: socket.socket) -> int:
    found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", found)[1])


def _raise_limit() -> None:
    """As many clients as the system allows; the soft limit is often 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            return
