"""The only place where the workflow file's room touches the file system."""

from __future__ import annotations

import os

MAX_FILE = 256 << 20
MAX_TABLE = 4 << 30


class Unreadable(Exception):
    """A file that cannot be read, with the reason in words."""


def read_workflow(path: str) -> bytes:
    """A whole workflow file. Raises :class:`Unreadable`."""
    return _read(path, MAX_FILE)


def read_table(directory: str, file: str) -> bytes:
    """A whole table, named relative to ``directory``. Raises :class:`Unreadable`."""
    return _read(os.path.join(directory, file), MAX_TABLE)


def _read(path: str, limit: int) -> bytes:
    """A file's content; bounded, so that a device without end is no trap."""
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from None
    except ValueError as error:
        raise Unreadable(str(error)) from None
    if len(data) > limit:
        raise Unreadable(f"it is larger than {limit >> 20} MiB")
    return data


def exists(path: str) -> bool:
    return os.path.exists(path)


def directory_of(path: str) -> str:
    """The absolute directory that holds a file."""
    return os.path.dirname(os.path.abspath(path))


def stem(path: str) -> str:
    """A file's name without directory and suffix."""
    return os.path.splitext(os.path.basename(path))[0]
