"""What an executor and its workers say to each other, and how a worker finds the functions of a program."""

from __future__ import annotations

import os

MAIN, LOADING = "MPIFLUX_WORKER_MAIN", "MPIFLUX_WORKER_LOADING"
"""Variables of workers: the program whose functions they call, as ``path:…`` or ``name:…``; set while it is loaded."""


def check_not_loading() -> None:
    """Raises RuntimeError in a program that is only loaded for its functions."""
    if LOADING in os.environ:
        raise RuntimeError(f"{os.environ[LOADING]} is loaded by a worker for the functions in it, and must not steer "
                           "there: put what it does below `if __name__ == '__main__':`, or the functions into a module")


VALUE, ERROR, BROKEN = b"v", b"e", b"b"
"""What became of a call in a worker."""


def numbered(number: int, kind: bytes, data: bytes) -> bytes:
    """A call, or its answer, on the way between an executor and its workers."""
    return number.to_bytes(8, "little") + kind + data


def unnumbered(payload: bytes) -> tuple[int, bytes]:
    return int.from_bytes(payload[:8], "little"), payload[8:]
