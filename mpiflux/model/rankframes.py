"""What the two ends of a remote rank say to each other over a remote shell's stdin and stdout.

A frame is one byte of kind, four of length (big-endian) and the payload. The far end first says :data:`GREETING`:
whatever a login script prints before that is no frame.
"""

from __future__ import annotations

GREETING = b"\0mpiflux-rank-1\n"
"""Has the version of this protocol. Ends that do not match cannot talk, and say so."""

# down, to the rank's host
START = b"s"
"""JSON: ``argv env cwd segments``; the first frame."""
SIGNAL = b"k"
"""A number in ASCII, for the rank."""

# both ways
PMI = b"p"
"""Bytes of the rank's PMI connection; an empty payload is its end."""

# up
STDOUT = b"o"
STDERR = b"e"
ENDED = b"x"
"""The rank's returncode as :mod:`subprocess` has it, in ASCII; the last frame."""

PAYLOAD_MAX = 1 << 26
BEFORE_MAX = 1 << 20
"""Bytes that a login script may print."""
_HEAD = 5


class NotAFrameError(Exception):
    """What came is not of this protocol."""


def pack(kind: bytes, payload: bytes = b"") -> bytes:
    """One frame. Raises ValueError for a payload beyond :data:`PAYLOAD_MAX`."""
    if len(payload) > PAYLOAD_MAX:
        raise ValueError(f"a frame of {len(payload)} bytes: {PAYLOAD_MAX} are the most")
    return kind + len(payload).to_bytes(4, "big") + payload


class Unpacker:
    """Frames out of bytes in pieces of any size."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """The frames, kind and payload, that are complete now. Raises NotAFrameError."""
        self._buffer += data
        frames: list[tuple[bytes, bytes]] = []
        start = 0
        while len(self._buffer) - start >= _HEAD:
            length = int.from_bytes(self._buffer[start + 1:start + _HEAD], "big")
            if length > PAYLOAD_MAX:
                raise NotAFrameError
            end = start + _HEAD + length
            if len(self._buffer) < end:
                break
            frames.append((bytes(self._buffer[start:start + 1]), bytes(self._buffer[start + _HEAD:end])))
            start = end
        del self._buffer[:start]
        return frames


class Greeted(Unpacker):
    """The same after the greeting; :attr:`before` has what came ahead of it, :data:`BEFORE_MAX` bytes at most."""

    def __init__(self) -> None:
        super().__init__()
        self.greeted = False
        self.before = b""

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        if self.greeted:
            return super().feed(data)
        seen = max(len(self._buffer) - len(GREETING), 0)
        self._buffer += data
        found = self._buffer.find(GREETING, seen)
        if found < 0:
            self.before = bytes(self._buffer)
            if len(self.before) > BEFORE_MAX + len(GREETING):
                raise NotAFrameError
            return []
        self.greeted = True
        self.before = bytes(self._buffer[:found])
        del self._buffer[:found + len(GREETING)]
        return super().feed(b"")
