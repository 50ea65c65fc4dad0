"""The layout of ``run.db``, shared by the journal that writes it and the reader.

Jobs are kept by batch, as the packed records in which they arrived: a row a job would cost ten times the time and
the space. ``jobs.lo`` and ``jobs.hi`` bound the ids of a batch, so one job is found without reading all batches.
``run`` counts the instances that wrote to the file: each resumption has its own nodes and resource sets. ``crc``
is the CRC-32 of a row's records or data: SQLite checks its log, but not what a file system did to the file.
"""

from __future__ import annotations

FILE = "run.db"
APPLICATION_ID = 0x6D706678  # "mpfx", what `file` would show
FORMAT = 1
"""SQLite's user_version; a reader refuses what it does not know."""

OUTPUT_PART = 16 << 20
"""Bytes of one row of ``output``: part k of a batch's blob starts at k times this."""

TABLES = """
CREATE TABLE IF NOT EXISTS meta (run INTEGER, key TEXT, value TEXT, PRIMARY KEY (run, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS groups (number INTEGER PRIMARY KEY, t_submit REAL, data BLOB);
CREATE TABLE IF NOT EXISTS rsets (run INTEGER, sched INTEGER, r_id INTEGER, data BLOB,
    PRIMARY KEY (run, sched, r_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS jobs (batch INTEGER PRIMARY KEY, run INTEGER, n INTEGER, lo INTEGER, hi INTEGER,
    crc INTEGER, reasons BLOB, records BLOB);
CREATE TABLE IF NOT EXISTS output (batch INTEGER, part INTEGER, crc INTEGER, data BLOB);
CREATE UNIQUE INDEX IF NOT EXISTS output_batch ON output (batch, part);
CREATE TABLE IF NOT EXISTS chunks (number INTEGER PRIMARY KEY, id INTEGER, attempt INTEGER, stream INTEGER,
    offset INTEGER, data BLOB);
CREATE INDEX IF NOT EXISTS chunks_id ON chunks (id, attempt, stream, offset);
CREATE TABLE IF NOT EXISTS running (id INTEGER PRIMARY KEY, run INTEGER, attempt INTEGER, record BLOB);
CREATE TABLE IF NOT EXISTS events (number INTEGER PRIMARY KEY, id INTEGER, t REAL, name TEXT, context BLOB);
CREATE INDEX IF NOT EXISTS events_id ON events (id);
CREATE TABLE IF NOT EXISTS kvs (key TEXT PRIMARY KEY, version INTEGER, data BLOB) WITHOUT ROWID;
"""
"""``events.id`` is a job's id, 0 for the instance, or −1 − number for a whole group. ``kvs.data`` NULL: deleted."""


class RunError(Exception):
    """A run directory that cannot be read, or has no such job."""


def group_event_id(number: int) -> int:
    """The ``events.id`` of an event that concerns every job of a group."""
    return -1 - number
