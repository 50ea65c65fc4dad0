"""Frames over a byte stream between an instance and its clients: four bytes of length, little-endian, then the data.

Pure: bytes in, frames out. What a peer may claim is bounded, so that garbage costs no memory.
"""

from __future__ import annotations

LIMIT = 64 << 20
"""Longest frame in bytes, either way. A client splits what is larger; a claim of more is taken as garbage."""


class BadFrame(ValueError):
    """The stream is not one of frames; nothing after it can be read."""


def pack(data: bytes) -> bytes:
    """One frame. Raises ValueError when it is too long to send."""
    if len(data) > LIMIT:
        raise ValueError(f"a message of {len(data)} bytes; at most {LIMIT} travel at once: send it in pieces")
    return len(data).to_bytes(4, "little") + data


class Unpacker:
    """Collects a stream's bytes into frames."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        """May be raised or lowered between frames: little is allowed to who has not said Hello yet."""
        self._buffer = bytearray()

    @property
    def waiting(self) -> int:
        """Bytes of a frame that is not whole yet."""
        return len(self._buffer)

    def feed(self, data: bytes, most: int = -1) -> list[bytes]:
        """All frames that are whole now, or at most so many. Raises BadFrame."""
        buffer = self._buffer
        buffer += data
        frames: list[bytes] = []
        at = 0
        while len(buffer) - at >= 4 and len(frames) != most:
            length = int.from_bytes(buffer[at:at + 4], "little")
            if length > self.limit:
                raise BadFrame(f"a frame that claims {length} bytes; at most {self.limit} are taken here")
            if len(buffer) - at - 4 < length:
                break
            frames.append(bytes(buffer[at + 4:at + 4 + length]))
            at += 4 + length
        if at:
            del buffer[:at]
        return frames
