"""The key-value store of rank 0: hierarchical keys, versions, atomic transactions. Pure data in, changes out.

A key is names joined by dots, ``a.b.c``: each name of 1–255 characters, none of them a dot, a slash, white space,
a control character or one of ``* ? [ ]``; 1,024 characters in all. A key is either a value or a directory of
further names, as in a file system; directories come and go with what is in them. Keys below ``job`` belong to the
job records and cannot be written, but for each job's own, which are below ``job.ID.guest``.

Values are JSON (null, booleans, numbers, strings, lists, objects with string keys) or bytes; numbers may be NaN and
infinities, as in Python's json. They are kept as msgpack, so what a caller does to its object later changes nothing,
and messages and the journal take them as they are. Integers must fit 64 bits.

The store's version goes up by one with each transaction that changes something; a key's version is the store's
when it last changed, so it never repeats, not even when the key is deleted and made again. 0 means "no such key".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import msgspec

from mpiflux.model.resources import size

MAX_KEY = 1024
MAX_NAME = 255
MAX_VALUE = 256 << 20
"""Bytes of one encoded value."""
LIMIT = 1 << 30
"""Bytes of all keys and values."""
KEY_BYTES = 200
"""What a key takes beside its own and its value's bytes."""
HISTORY_BYTES = 64 << 20
"""Bytes of keys and values that are remembered of what has changed."""

_FORBIDDEN = frozenset("/*?[]")
_RESERVED = "job"
GUEST = "guest"
"""``job.ID.guest`` is the namespace of a job, as in Flux."""


class KvsError(Exception):
    """A transaction that cannot be done; nothing of it was."""


class BadKey(KvsError):
    """Not a key, or not one that may be written."""


class NoKey(KvsError):
    """There is no such key."""


class Conflict(KvsError):
    """A :class:`Check` did not hold: someone else was faster. Read again and retry."""


class Full(KvsError):
    """All values together would take more than is allowed."""


class Put(msgspec.Struct, frozen=True, tag="put"):
    """Set a key. ``data`` is the value as :func:`encode_value` makes it."""

    key: str
    data: bytes


class Delete(msgspec.Struct, frozen=True, tag="delete"):
    """Remove a value, or with ``recursive`` also a directory and all in it. NoKey if there is nothing."""

    key: str
    recursive: bool = False


class Rename(msgspec.Struct, frozen=True, tag="rename"):
    """Move a value, or a whole directory, to a key that does not exist yet."""

    key: str
    to: str


class Check(msgspec.Struct, frozen=True, tag="check"):
    """Compare-and-swap: fail the transaction unless the key's version is this; 0 asks that it does not exist."""

    key: str
    version: int


Op = Put | Delete | Rename | Check
Txn = tuple[Op, ...]
"""Operations done in order, all or none of them. Version checks see what the operations before them did."""


class Change(msgspec.Struct, frozen=True):
    """A key's new value; ``data`` None: it was deleted."""

    key: str
    data: bytes | None
    version: int

    @property
    def deleted(self) -> bool:
        return self.data is None

    @property
    def value(self) -> object:
        """The decoded value; None for a deleted key and for JSON's null alike."""
        return None if self.data is None else decode_value(self.data)


def check_key(key: str, *, write: bool = False) -> tuple[str, ...]:
    """The names of a key. Raises BadKey saying which rule it breaks."""
    if not isinstance(key, str) or not key:
        raise BadKey(f"not a key: {key!r}; a key is names joined by dots, as in 'a.b.c'")
    if len(key) > MAX_KEY:
        raise BadKey(f"key of {len(key)} characters starting {key[:40]!r}; at most {MAX_KEY} are allowed")
    names = tuple(key.split("."))
    for name in names:
        if not name:
            raise BadKey(f"key {key!r} has an empty name; write single dots between names, none at the ends")
        if len(name) > MAX_NAME:
            raise BadKey(f"key {key[:40]!r}… has a name of {len(name)} characters; at most {MAX_NAME}")
        for character in name:
            if character in _FORBIDDEN or character.isspace() or not character.isprintable():
                raise BadKey(f"key {key!r} contains {character!r}, which no name may")
    if write and names[0] == _RESERVED and not (len(names) > 3 and names[1].isdecimal() and names[2] == GUEST):
        raise BadKey(f"key {key!r}: keys below {_RESERVED!r} show the jobs and cannot be written, but for those below "
                     f"{_RESERVED}.ID.{GUEST}; choose another")
    return names


def _check_json(value: object, where: str) -> None:
    if value is None or isinstance(value, (bool, float, str)):
        return
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 64:
            raise ValueError(f"{where} is an integer of more than 64 bits; store it as a string")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _check_json(item, f"{where}[{i}]")
    elif isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                raise TypeError(f"{where} has the key {name!r}; JSON objects have strings as keys")
            _check_json(item, f"{where}[{name!r}]")
    else:
        raise TypeError(f"{where} is of type {type(value).__name__}, neither JSON nor bytes; convert it first")


def encode_value(value: object) -> bytes:
    """A value as the store keeps it. TypeError or ValueError say what part of it is neither JSON nor bytes."""
    if isinstance(value, (bytearray, memoryview)):
        value = bytes(value)
    if not isinstance(value, bytes):
        try:
            _check_json(value, "the value")
        except RecursionError:
            raise ValueError("the value is nested too deeply, or contains itself") from None
    try:
        data = msgspec.msgpack.encode(value)
    except UnicodeEncodeError as error:
        raise ValueError(f"the value has text that is not Unicode ({error.reason}); store bytes instead") from None
    if len(data) > MAX_VALUE:
        raise ValueError(f"the value takes {len(data)} bytes; at most {MAX_VALUE} are kept under one key")
    return data


def decode_value(data: bytes) -> object:
    """The value that :func:`encode_value` made these bytes of."""
    return msgspec.msgpack.decode(data)


def put(key: str, value: object) -> Put:
    """The operation that sets ``key``."""
    return Put(key, encode_value(value))


def under(key: str, prefix: str) -> bool:
    """Whether ``key`` is ``prefix`` or lies below it; everything lies below ''."""
    return not prefix or key == prefix or (key.startswith(prefix) and key[len(prefix)] == ".")


def _size(change: Change) -> int:
    return len(change.key) + len(change.data or b"")


class Kvs:
    """The store. ``history`` is how many changes :meth:`changes_since` can look back, as long as their keys and values
    are not more than ``history_bytes``; ``limit`` is how many bytes all that is kept may take."""

    def __init__(self, history: int = 10_000, history_bytes: int = HISTORY_BYTES, limit: int = LIMIT) -> None:
        self.version = 0
        self.bytes, self.limit = 0, limit
        """What keys and values take, and may take."""
        self._values: dict[str, tuple[bytes, int]] = {}
        self._names: dict[str, dict[str, None]] = {}
        self._ring: deque[Change] = deque()
        self._history, self._history_bytes = history, history_bytes
        self._ring_bytes = 0
        self._oldest = 0
        """Changes after this version are all in the ring."""

    def __len__(self) -> int:
        return len(self._values)

    def load(self, rows: Iterable[tuple[str, bytes | None, int]]) -> None:
        """Fill an empty store from a journal's (key, data, version) rows; None rows are deleted keys."""
        for key, data, version in rows:
            if data is not None:
                self._set(key, data, version)
            self.version = max(self.version, version)
        self._oldest = self.version

    # -- reading -----------------------------------------------------------------------------------------------

    def get(self, key: str) -> object:
        """The value. NoKey when there is none, saying so if it is a directory."""
        return decode_value(self.get_data(key))

    def get_data(self, key: str) -> bytes:
        """The encoded value."""
        try:
            return self._values[key][0]
        except KeyError:
            pass
        check_key(key)
        if key in self._names:
            raise NoKey(f"{key!r} is a directory; list what is in it")
        raise NoKey(f"there is no key {key!r}")

    def key_version(self, key: str) -> int:
        """The version at which the key's value last changed; 0 when there is no value."""
        return self._values[key][1] if key in self._values else 0

    def is_dir(self, key: str) -> bool:
        return key in self._names or not key

    def ls(self, prefix: str = "", *, recursive: bool = False) -> list[str]:
        """Keys in the directory ``prefix``, in order: its entries (directories end in a dot), or all values below.

        A value lists itself. NoKey when there is nothing of that name.
        """
        if prefix:
            check_key(prefix)
        if prefix in self._values:
            return [prefix]
        if prefix not in self._names:
            if not prefix:
                return []
            raise NoKey(f"there is no key or directory {prefix!r}")
        if recursive:
            return sorted(self._below(prefix))
        keys = (f"{prefix}.{name}" if prefix else name for name in self._names[prefix])
        return sorted(key + "." if key in self._names else key for key in keys)

    def items(self, prefix: str = "") -> list[Change]:
        """Every value at or below ``prefix``, as the changes that a new watcher starts from."""
        keys = [prefix] if prefix in self._values else sorted(self._below(prefix))
        return [Change(key, *self._values[key]) for key in keys]

    def _below(self, prefix: str) -> Iterable[str]:
        stack = [prefix]
        while stack:
            here = stack.pop()
            if here in self._values:
                yield here
            stack.extend(f"{here}.{name}" if here else name for name in self._names.get(here, ()))

    def changes_since(self, version: int, prefix: str = "") -> list[Change] | None:
        """Changes after ``version`` at or below ``prefix``; None when they go back too far: list afresh then."""
        if version < self._oldest:
            return None
        out: list[Change] = []
        for change in reversed(self._ring):
            if change.version <= version:
                break
            if under(change.key, prefix):
                out.append(change)
        out.reverse()
        return out

    # -- writing -----------------------------------------------------------------------------------------------

    def apply(self, txn: Iterable[Op]) -> list[Change]:
        """Do a transaction; returns one change for each key whose value it set or removed, in order.

        Raises BadKey, NoKey, Conflict, Full or KvsError; then nothing has changed.
        """
        version, before_it = self.version + 1, self.bytes
        undo: dict[str, tuple[bytes, int] | None] = {}
        try:
            for op in txn:
                self._do(op, version, undo)
            if self.bytes > max(self.limit, before_it):
                raise Full(f"keys and values would take {size(self.bytes)} together; the most is {size(self.limit)}: "
                           "remove what is not needed any more, put names of files instead of their content, or start "
                           "the instance with a larger --kvs-limit")
        except Exception:
            for key in undo:
                if key in self._values:
                    self._unset(key)
            for key, before in undo.items():
                if before is not None:
                    self._set(key, *before)
            raise
        changes = [
            Change(key, self._values[key][0] if key in self._values else None, version)
            for key, before in undo.items() if before is not None or key in self._values
        ]
        if changes:
            self.version = version
            self._remember(changes)
        return changes

    def _remember(self, changes: list[Change]) -> None:
        self._ring.extend(changes)
        self._ring_bytes += sum(map(_size, changes))
        while len(self._ring) > self._history or self._ring_bytes > self._history_bytes:
            old = self._ring.popleft()
            self._ring_bytes -= _size(old)
            self._oldest = old.version
        while self._ring and self._ring[0].version == self._oldest:
            # the rest of a transaction of which nobody is told a part
            self._ring_bytes -= _size(self._ring.popleft())

    def _do(self, op: Op, version: int, undo: dict[str, tuple[bytes, int] | None]) -> None:
        if isinstance(op, Check):
            check_key(op.key)
            now = self.key_version(op.key)
            if now != op.version:
                raise Conflict(f"{op.key!r} has version {now}, not {op.version}; read it again and retry")
        elif isinstance(op, Put):
            self._writable(op.key)
            undo.setdefault(op.key, self._values.get(op.key))
            self._set(op.key, op.data, version)
        elif isinstance(op, Delete):
            for key in self._named(op.key, op.recursive):
                undo.setdefault(key, self._values[key])
                self._unset(key)
        else:
            self._rename(op, version, undo)

    def _rename(self, op: Rename, version: int, undo: dict[str, tuple[bytes, int] | None]) -> None:
        check_key(op.to, write=True)
        if under(op.to, op.key):
            raise KvsError(f"cannot rename {op.key!r} to {op.to!r}: the new key lies in the old one")
        if op.to in self._values or op.to in self._names:
            raise KvsError(f"cannot rename {op.key!r} to {op.to!r}: it exists; delete it first")
        for key in self._named(op.key, True):
            data, _ = self._values[key]
            undo.setdefault(key, self._values[key])
            self._unset(key)
            target = op.to + key[len(op.key):]
            self._writable(target)
            undo.setdefault(target, None)
            self._set(target, data, version)

    def _named(self, key: str, recursive: bool) -> list[str]:
        """The value, or the values below a directory."""
        check_key(key, write=True)
        if key in self._values:
            return [key]
        if key not in self._names:
            raise NoKey(f"there is no key {key!r}")
        if not recursive:
            raise KvsError(f"{key!r} is a directory; remove it with all that is in it by asking for that (recursive)")
        return sorted(self._below(key))

    def _writable(self, key: str) -> None:
        """Raise unless a value may stand at ``key`` beside what is there."""
        if key in self._values:
            return
        check_key(key, write=True)
        if key in self._names:
            raise KvsError(f"{key!r} is a directory; a value cannot take its place unless it is deleted first")
        parent = key
        while "." in parent:
            parent = parent.rpartition(".")[0]
            if parent in self._values:
                raise KvsError(f"cannot put {key!r}: {parent!r} is a value, not a directory")

    def _set(self, key: str, data: bytes, version: int) -> None:
        old = self._values.get(key)
        new = old is None
        self.bytes += len(data) - len(old[0]) if old is not None else KEY_BYTES + len(key) + len(data)
        self._values[key] = (data, version)
        while new and key:
            parent, _, name = key.rpartition(".")
            names = self._names.get(parent)
            if names is None:
                names = self._names[parent] = {}
            else:
                new = False
            names[name] = None
            key = parent

    def _unset(self, key: str) -> None:
        self.bytes -= KEY_BYTES + len(key) + len(self._values.pop(key)[0])
        while key:
            parent, _, name = key.rpartition(".")
            names = self._names[parent]
            del names[name]
            if names:
                return
            del self._names[parent]
            key = parent
