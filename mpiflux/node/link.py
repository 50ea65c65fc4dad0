"""Frames over a stream socket between a rank and its supervisors: four bytes of length, then a message batch."""

from __future__ import annotations

import socket

from mpiflux.model.frames import BadFrame, Unpacker

_READ = 1 << 18
LIMIT = 1 << 30
"""Longest frame in bytes; a larger length is taken as garbage."""


class LinkClosed(Exception):
    """The other side is gone."""


class Link:
    """A non-blocking framed connection. Sends never block: what the socket does not take waits in memory."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._in = Unpacker(LIMIT)
        self._out: list[bytes] = []
        self._ended = False
        self.backlog = 0
        """Bytes that wait to be sent."""

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, frame: bytes) -> None:
        """Queue one frame and send what the socket takes."""
        self._out.append(len(frame).to_bytes(4, "little"))
        self._out.append(frame)
        self.backlog += len(frame) + 4
        self.flush()

    def flush(self) -> bool:
        """Send what can be sent; True when nothing waits any more. Raises LinkClosed."""
        while self._out:
            try:
                sent = self.sock.sendmsg(self._out[:64])
            except BlockingIOError:
                return False
            except OSError as error:
                raise LinkClosed(str(error)) from error
            self.backlog -= sent
            taken = 0
            while taken < len(self._out) and sent >= len(self._out[taken]):
                sent -= len(self._out[taken])
                taken += 1
            del self._out[:taken]
            if sent:
                self._out[0] = self._out[0][sent:]
        return True

    def receive(self) -> list[bytes]:
        """All whole frames that have arrived. Raises LinkClosed at the end of the stream."""
        frames: list[bytes] = []
        while not self._ended:
            try:
                data = self.sock.recv(_READ)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self._ended = not data
            try:
                frames += self._in.feed(data)
            except BadFrame as error:
                raise LinkClosed(f"{error}: it is not ours") from None
            if len(data) < _READ:
                break
        if self._ended and not frames:
            raise LinkClosed("end of stream")
        return frames

    def close(self) -> None:
        self.sock.close()
