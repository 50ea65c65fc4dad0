"""The database of a run directory, opened for reading: whatever it holds, nothing but RunError comes of it."""

from __future__ import annotations

import os
import sqlite3
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import numpy as np

from mpiflux.model.records import SIZE
from mpiflux.store import runlock, schema
from mpiflux.store.jobtable import RECORD, Array
from mpiflux.store.schema import RunError

_KINDS: dict[str, type | tuple[type, ...]] = {"b": bytes, "i": int, "f": (float, int), "s": str}
_MOMENTS, _MOMENT = 40, 0.05
"""How often, and seconds apart, a live run is tried again that is no database yet."""


class Database:
    """``run.db`` of ``directory``. Raises RunError saying what is wrong with it."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._file = directory, directory / schema.FILE
        if not self._file.is_file():
            what = "is no run directory: it has no run.db" if directory.is_dir() else "there is no such directory"
            raise RunError(f"{directory}: {what}; give the directory that `mpiflux run` named")
        self._db = self._opened()

    def close(self) -> None:
        self._db.close()

    def query(self, kinds: str, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Rows, checked: a letter of ``kinds`` for each column, b(ytes), i(nt), f(loat), s(tr), capital: or NULL.

        A damaged file can hold anything anywhere.
        """
        try:
            rows = self._db.execute(sql, values).fetchall()
        except (sqlite3.Error, ValueError) as error:
            raise self.damaged(error) from error
        for row in rows:
            for kind, value in zip(kinds, row, strict=True):
                if not (isinstance(value, _KINDS[kind.lower()]) or (value is None and kind.isupper())):
                    raise self.damaged("a row holds what it never should")
        return rows

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Queries in here see the same moment."""
        self.query("", "BEGIN")
        try:
            yield
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def unpack(self, data: bytes, kind: Any) -> Any:
        """A stored value of a type."""
        try:
            return msgspec.msgpack.decode(data, type=kind)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise self.damaged(error) from error

    def records(self, batch: int, n: int, crc: int, data: bytes) -> Array:
        """The attempt records of a batch."""
        if len(data) != n * SIZE or zlib.crc32(data) != crc:
            raise self.damaged(f"batch {batch} of job records is cut short or changed")
        return np.frombuffer(data, RECORD)

    def damaged(self, what: object) -> RunError:
        """The error to raise when what was read makes no sense."""
        return RunError(f"{self._file}: {what}; if it is damaged, `sqlite3 run.db .recover` saves what can be saved")

    def _opened(self) -> sqlite3.Connection:
        """A file that its writer has only just made gets a moment to become a database."""
        for _ in range(_MOMENTS):
            try:
                return self._connect()
            except RunError:
                if not runlock.held(self._directory):
                    raise
            time.sleep(_MOMENT)
        return self._connect()

    def _connect(self) -> sqlite3.Connection:
        """Read-only; writable where a killed writer's half transaction must be undone; as a plain file at last."""
        name = quote(os.fsencode(os.path.abspath(self._file)))
        options = ["mode=ro", "mode=rw"]
        if not Path(f"{self._file}-wal").exists():
            options.append("mode=ro&immutable=1")
        problem: object = None
        for option in options:
            db = None
            try:
                db = sqlite3.connect(f"file:{name}?{option}", uri=True, timeout=10, isolation_level=None,
                                     check_same_thread=False)
                found = db.execute("PRAGMA application_id").fetchone()[0]
                version = db.execute("PRAGMA user_version").fetchone()[0]
                db.execute("SELECT count(*) FROM sqlite_master").fetchone()
                if found != schema.APPLICATION_ID:
                    problem = ("it is empty, or a database of another program; if it is of a run that was killed as it "
                               "began, run --resume starts it again")
                elif version != schema.FORMAT:
                    problem = f"it has format {version}; this mpiflux reads {schema.FORMAT}"
                else:
                    db.execute("PRAGMA query_only=1")
                    return db
                db.close()
                break
            except (sqlite3.Error, UnicodeDecodeError) as error:
                # SQLite's own message may quote bytes of the file
                problem = problem or error
                if db:
                    db.close()
        raise RunError(f"{self._file}: cannot be read: {problem}")
