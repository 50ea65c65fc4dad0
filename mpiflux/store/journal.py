"""The journal: everything that must outlive rank 0, in one SQLite file, written by one thread in groups.

Appending costs the caller a list operation. The writer thread collects until the oldest entry is ``sync_window``
seconds old, or :meth:`Journal.flush`, and commits what came together as one transaction; then
:attr:`Journal.committed_seq` has grown and, where somebody asked for it, :attr:`Journal.wake_fd` is readable.

What is promised, by the kind of end:

- The process is killed at any instant: everything at or below ``committed_seq`` is there, whole, and nothing half.
- The machine loses power: the same with ``durable=True`` (the default; SQLite's ``synchronous=FULL``, one fsync a
  commit, done outside Python's lock). With ``durable=False`` the file is whole, but the last seconds may be gone.
- The disk is full, or writing fails otherwise: :attr:`Journal.error` says so, the wake-up comes, the thread tries
  again until it can. Nothing is dropped; watch :attr:`Journal.backlog_bytes`.

The file is in WAL mode, so readers never hold the writer up. WAL needs shared memory that NFS, Lustre and their
like do not give: there, and wherever trying it fails, a rollback journal is used (``journal_mode=TRUNCATE``).
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from mpiflux.model.jobspec import JobGroup
from mpiflux.model.messages import ResourceSet
from mpiflux.model.records import PACK, SIZE
from mpiflux.store import schema
from mpiflux.store.jobtable import RECORD
from mpiflux.store.kvs import Change
from mpiflux.store.runlock import Held, RunLock

BATCH_RECORDS = 16384
BATCH_OUTPUT = 4 << 20
"""A batch takes no more appends once it holds so many records, or bytes of output."""
HURRY_BYTES = 16 << 20
"""With so much waiting the thread does not wait for the window to end."""

_PAGE = 16384
"""Bytes of a page: the larger, the less do the kernel and SQLite have to do for large outputs."""
_LOG_PAGES = 250
"""Pages in the log after which they are copied to where they belong: SQLite's usual 4 MB."""
_CACHE_KIB = 128
"""SQLite keeps 2 MB of pages unless told otherwise, and what is only appended is not read again."""

_NETWORK = frozenset({"nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "smb3", "ceph", "9p", "panfs", "pvfs2",
                      "orangefs", "afs", "wekafs", "fuse.sshfs", "fuse.glusterfs", "dvs"})

__all__ = ["Held", "Journal", "JournalError", "Place"]


class JournalError(Exception):
    """The run directory cannot be written, or not by this program."""


class Place(NamedTuple):
    """Where records are kept: from ``pos`` of batch ``batch`` on; goes into ``JobTable.apply(records, *place)``."""

    batch: int
    pos: int


class _Batch:
    """Results of one row of ``jobs``, still growing."""

    __slots__ = ("n", "number", "output", "output_bytes", "reasons", "records")

    def __init__(self, number: int) -> None:
        self.number, self.n, self.output_bytes = number, 0, 0
        self.records: list[bytes] = []
        self.output: list[bytes] = []
        self.reasons: dict[int, str] = {}


class Journal:
    """``run.db`` of a run directory, opened for writing; the directory is made if need be.

    Raises Held when another instance writes to it, JournalError when it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], *, sync_window: float = 0.05, durable: bool = True) -> None:
        self.directory = Path(path)
        self.sync_window = sync_window
        self.error: str | None = None
        """Why the last attempt to write failed; None when all is well."""
        self.committed_seq = 0
        """The highest sequence number (see :attr:`seq`) of which all is on disk."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_file = RunLock(self.directory)
        except OSError as error:
            raise JournalError(f"{self.directory}: cannot be used as run directory: {error.strerror}; "
                               "choose another with --run-dir") from error
        try:
            self._db, self.mode = _open(self.directory / schema.FILE, durable)
            try:
                self._go_on()
            except BaseException:
                self._db.close()
                raise
        except BaseException:
            self._lock_file.release()
            raise
        self._start()

    def _go_on(self) -> None:
        """Number everything from where an earlier instance ended."""

        def one_more(column: str, table: str) -> int:
            return int(self._db.execute(f"SELECT coalesce(max({column}), -1) + 1 FROM {table}").fetchone()[0])

        try:
            self.run = one_more("run", "meta")
            """Which instance this is that writes to the file, from 0."""
            self._next_batch = one_more("batch", "jobs")
            self._next_event = one_more("number", "events")
            self._next_chunk = one_more("number", "chunks")
            self._running: dict[int, int] = dict(self._db.execute("SELECT id, attempt FROM running"))
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise _unusable(self.directory / schema.FILE, error) from error

    def _start(self) -> None:
        self.seq = 0
        """Number of appends so far: the sequence number of the latest one."""
        self._backlog = 0
        self._oldest = 0.0
        """When the first of what waits was appended, on the monotonic clock."""
        self._writing = 0
        self._batches: list[_Batch] = []
        self._rows: dict[str, list[tuple[Any, ...]]] = {}
        self._condition = threading.Condition()
        self._hurry = self._closing = self._closed = False
        self._give_up = float("inf")
        self._stop = threading.Event()
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        """Readable after a commit that :meth:`flush` asked for and after each failure; :meth:`acknowledge` makes it
        quiet again. Other commits concern nobody, and a wake-up of rank 0 costs more than what it commits."""
        self._asked_seq = self._asked_last = 0
        """What the first :meth:`flush` that still waits asked for, and the latest; 0 when nobody waits."""
        self._thread = threading.Thread(target=self._work, name="journal", daemon=True)
        self._thread.start()
        self.set_meta(journal_mode=self.mode)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- appending ---------------------------------------------------------------------------------------------

    @property
    def next_batch(self) -> int:
        """The number of the next batch of records. Meant for who has appended none yet."""
        return self._next_batch

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is appended in here is committed as one, or not at all."""
        with self._condition:
            yield

    @property
    def backlog_bytes(self) -> int:
        """Bytes appended and not committed; slow down what comes in while this is high."""
        return self._backlog + self._writing

    def append_results(self, records: bytes, output: bytes = b"", reasons: dict[int, str] | None = None) -> Place:
        """Ended attempts, packed, with the bytes of their output. Returns where they will be found.

        Raises ValueError, with nothing appended, when the lengths do not agree.
        """
        n, rest = divmod(len(records), SIZE)
        if rest:
            raise ValueError(f"{len(records)} bytes are no whole number of records of {SIZE} bytes")
        expected = _output_length(records, n)
        if expected != len(output):
            raise ValueError(f"{n} records speak of {expected} bytes of output, {len(output)} came with them")
        with self._condition:
            batch = self._batches[-1] if self._batches else None
            if batch is None or batch.n + n > BATCH_RECORDS or batch.output_bytes > BATCH_OUTPUT:
                batch = _Batch(self._next_batch)
                self._next_batch += 1
                self._batches.append(batch)
            place = Place(batch.number, batch.n)
            batch.n += n
            batch.records.append(records)
            if output:
                batch.output.append(output)
                batch.output_bytes += len(output)
            if reasons:
                batch.reasons.update(reasons)
            self._appended(len(records) + len(output) + sum(map(len, (reasons or {}).values())))
        return place

    def append_started(self, records: bytes) -> None:
        """Attempts that run, packed; forgotten in the transaction that holds their end.

        Only those that ``JobTable.started`` called news: what is told after its end would stay for ever.
        """
        for at in range(0, len(records), SIZE):
            record = records[at:at + SIZE]
            fields = PACK.unpack(record)
            self._append("running", (fields[0], self.run, fields[1], record), SIZE)

    def append_output(self, id: int, attempt: int, stream: int, offset: int, data: bytes) -> None:
        """A piece of a running job's stream."""
        with self._condition:
            number, self._next_chunk = self._next_chunk, self._next_chunk + 1
            self._append("chunks", (number, id, attempt, stream, offset, data), len(data))

    def append_event(self, id: int, timestamp: float, name: str, context: dict[str, Any] | None = None) -> None:
        """An event that no record tells: exception, cancel, urgency … ``id`` 0 is the instance."""
        data = msgspec.msgpack.encode(context or {})
        with self._condition:
            number, self._next_event = self._next_event, self._next_event + 1
            self._append("events", (number, id, timestamp, name, data), len(data) + 64)

    def append_group_event(
        self, number: int, timestamp: float, name: str, context: dict[str, Any] | None = None,
    ) -> None:
        """An event of every job of a group, such as ``depend`` when its dependencies are satisfied."""
        self.append_event(schema.group_event_id(number), timestamp, name, context)

    def append_group(self, group: JobGroup, t_submit: float) -> None:
        """A job group, when it is submitted."""
        data = msgspec.msgpack.encode(group)
        self._append("groups", (group.number, t_submit, data), len(data))

    def append_rset(self, sched: int, r_id: int, r: ResourceSet) -> None:
        """The resource set that records of this instance name by (sched, r_id)."""
        data = msgspec.msgpack.encode(r)
        self._append("rsets", (self.run, sched, r_id, data), len(data))

    def put_kvs(self, changes: Iterable[Change]) -> None:
        """What :meth:`mpiflux.store.kvs.Kvs.apply` returned."""
        with self._condition:
            for c in changes:
                self._append("kvs", (c.key, c.version, c.data), len(c.key) + len(c.data or b""))

    def set_meta(self, **values: Any) -> None:
        """Facts of this instance: ``workflow``, ``t_start``, ``state``, ``nodes`` (host names) …; JSON values."""
        with self._condition:
            for key, value in values.items():
                text = json.dumps(value)
                self._append("meta", (self.run, key, text), len(text))

    def _append(self, table: str, row: tuple[Any, ...], size: int) -> None:
        with self._condition:
            self._rows.setdefault(table, []).append(row)
            self._appended(size)

    def _appended(self, size: int) -> None:
        if self._closing:
            raise JournalError(f"{self.directory}: the journal is closed")
        first = self._backlog == 0
        if first:
            self._oldest = time.monotonic()
        self._backlog += size + 1
        self.seq += 1
        if first or self._backlog > HURRY_BYTES:
            self._condition.notify()

    # -- committing --------------------------------------------------------------------------------------------

    def flush(self) -> int:
        """Commit soon. Returns the sequence number that :attr:`committed_seq` will then have reached."""
        with self._condition:
            self._hurry = True
            self._condition.notify()
            self._asked_last = self.seq
            self._asked_seq = self._asked_seq or self.seq
            return self.seq

    def wait(self, timeout: float = 10.0) -> bool:
        """Flush, and block until all is committed or ``timeout`` seconds have passed. For ends and tests."""
        seq, deadline = self.flush(), time.monotonic() + timeout
        with self._condition:
            return self._condition.wait_for(lambda: self.committed_seq >= seq, deadline - time.monotonic())

    def acknowledge(self) -> None:
        """Make :attr:`wake_fd` unreadable until the next commit or failure."""
        try:
            os.eventfd_read(self.wake_fd)
        except BlockingIOError:
            pass

    def close(self, timeout: float = 10.0) -> None:
        """Commit everything, leave one plain file, release the lock.

        Raises JournalError when it could not be written within ``timeout`` seconds; what was committed before is
        safe. More than once does no harm.
        """
        if self._closed:
            return
        with self._condition:
            self._closing = self._closed = True
            self._give_up = time.monotonic() + timeout
            self._condition.notify()
        self._stop.set()
        self._thread.join()
        lost = self.seq - self.committed_seq
        try:
            if not lost:
                # So that the directory can be read where nothing may be written. A reader in between keeps it WAL.
                self._db.execute("PRAGMA busy_timeout=200")
                self._db.execute("PRAGMA journal_mode=DELETE")
        except sqlite3.Error:
            pass
        finally:
            self._db.close()
            self._lock_file.release()
            os.close(self.wake_fd)
        if lost:
            raise JournalError(f"{self.error}; the last {lost} entries are not in it")

    def _work(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._backlog or self._closing)
                if not self._backlog:
                    return
                # what came during the last commit has waited since then
                self._condition.wait_for(
                    lambda: self._hurry or self._closing or self._backlog > HURRY_BYTES,
                    max(self._oldest + self.sync_window - time.monotonic(), 0.0))
                self._hurry = False
                batches, rows, seq = self._batches, self._rows, self.seq
                self._batches, self._rows = [], {}
                self._writing, self._backlog = self._backlog, 0
            if not self._persist(batches, rows):
                return
            with self._condition:
                self.error, self._writing, self.committed_seq = None, 0, seq
                asked = 0 < self._asked_seq <= seq
                if asked:
                    self._asked_seq = self._asked_last if self._asked_last > seq else 0
                self._condition.notify_all()
                if asked:
                    # before who waits goes on, and acknowledges what it has seen
                    os.eventfd_write(self.wake_fd, 1)

    def _persist(self, batches: list[_Batch], rows: dict[str, list[tuple[Any, ...]]]) -> bool:
        """Write until it succeeds; False when closing and out of time."""
        delay = 0.05
        while True:
            try:
                self._transaction(batches, rows)
                return True
            except Exception as error:
                self.error = self._explain(error)
            try:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
            except sqlite3.Error:
                pass
            os.eventfd_write(self.wake_fd, 1)
            if time.monotonic() > self._give_up:
                return False
            if self._stop.wait(delay):
                time.sleep(min(delay, 0.1))
            delay = min(2 * delay, 2.0)

    def _explain(self, error: Exception) -> str:
        path = self.directory / schema.FILE
        text = str(error) or type(error).__name__
        if "full" in text:
            return f"{path}: {text}; make room there, writing goes on by itself ({self.backlog_bytes} bytes wait)"
        return f"{path}: cannot be written: {text}; it is tried again ({self.backlog_bytes} bytes wait)"

    def _transaction(self, batches: list[_Batch], rows: dict[str, list[tuple[Any, ...]]]) -> None:
        """Every row has a key of its own choosing and replaces what has it: done twice, the outcome is the same."""
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        for table, items in rows.items():
            marks = ",".join("?" * len(items[0]))
            db.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", items)
        running = dict(self._running) if "running" in rows else self._running
        for row in rows.get("running", ()):
            running[row[0]] = row[2]
        gone: list[tuple[int]] = []
        for batch in batches:
            records = b"".join(batch.records)
            array = np.frombuffer(records, RECORD)
            ids = array["id"]
            low, high = (int(ids.min()), int(ids.max())) if batch.n else (0, 0)
            reasons = msgspec.msgpack.encode(batch.reasons) if batch.reasons else None
            db.execute("INSERT OR REPLACE INTO jobs VALUES (?,?,?,?,?,?,?,?)",
                       (batch.number, self.run, batch.n, low, high, zlib.crc32(records), reasons, records))
            if batch.output:
                self._output(batch)
            if running:
                gone += _over(running, ids.tolist(), array["attempt"])
        if gone:
            db.executemany("DELETE FROM running WHERE id=?", gone)
        db.execute("COMMIT")
        for (id,) in gone:
            running.pop(id, None)
        self._running = running

    def _output(self, batch: _Batch) -> None:
        data = b"".join(batch.output)
        for part, at in enumerate(range(0, len(data), schema.OUTPUT_PART)):
            piece = data[at:at + schema.OUTPUT_PART]
            self._db.execute("INSERT OR REPLACE INTO output VALUES (?,?,?,?)",
                             (batch.number, part, zlib.crc32(piece), piece))


def _over(running: dict[int, int], ids: list[int], attempts: Any) -> list[tuple[int]]:
    """Which running attempts these records end: not the later attempt of a job whose earlier one was lost."""
    return [(id,) for id, attempt in zip(ids, attempts.tolist(), strict=True)
            if running.get(id, attempt + 1) <= attempt] if not running.keys().isdisjoint(ids) else []


def _output_length(records: bytes, n: int) -> int:
    if n < 16:
        return sum(fields[14] + fields[15] for fields in PACK.iter_unpack(records))
    # out_len and err_len are the 16th and 17th of a record's four-byte words
    return int(np.frombuffer(records, "<u4").reshape(n, SIZE // 4)[:, 15:17].sum(dtype="u8"))


def _filesystem(path: Path) -> str:
    """Type of the file system that holds ``path``; empty when it cannot be told."""
    best, kind = "", ""
    try:
        real = os.path.realpath(path)
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            left, _, right = line.partition(" - ")
            point = left.split()[4].replace("\\040", " ")
            if len(point) >= len(best) and (real + "/").startswith(point.rstrip("/") + "/"):
                best, kind = point, right.split()[0]
    except (OSError, IndexError, UnicodeDecodeError):
        pass
    return kind


def _open(path: Path, durable: bool) -> tuple[sqlite3.Connection, str]:
    """A connection that has proved that it can write, and its journal mode."""
    modes = ("TRUNCATE",) if _filesystem(path.parent) in _NETWORK else ("WAL", "TRUNCATE")
    problem: object = "no journal mode works"
    for mode in modes:
        db = None
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            db = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
            _check_identity(db, path)
            # of an existing file it stays as it is
            db.execute(f"PRAGMA page_size={_PAGE}")
            db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            if mode == "WAL":
                # elsewhere a page that has to leave the cache before the commit costs an fsync
                db.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
                db.execute(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")
            if db.execute(f"PRAGMA journal_mode={mode}").fetchone()[0].upper() == mode:
                db.execute("BEGIN IMMEDIATE")
                for statement in schema.TABLES.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id={schema.APPLICATION_ID}")
                db.execute(f"PRAGMA user_version={schema.FORMAT}")
                db.execute("COMMIT")
                return db, mode
            db.close()
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
            problem = error
            if db:
                db.close()
        except JournalError:
            if db:
                db.close()
            raise
    raise _unusable(path, problem)


def _unusable(path: Path, problem: object) -> JournalError:
    return JournalError(f"{path}: cannot be opened for writing: {problem}; choose another --run-dir, or save what can "
                        "be saved of it with `sqlite3 run.db .recover`")


def _check_identity(db: sqlite3.Connection, path: Path) -> None:
    found = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    empty = not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if not empty and found != schema.APPLICATION_ID:
        raise JournalError(f"{path}: is a database of another program; choose another --run-dir")
    if not empty and version != schema.FORMAT:
        raise JournalError(f"{path}: has format {version}, this mpiflux writes {schema.FORMAT}; "
                           "resume it with the version that began it")
