"""The SQLite table behind `sqlite.SqliteStore`: plain blocking functions, called on the store's one thread.

One row per write, in order of revision. A row that deletes carries no value; `previous` is the revision of the row that it
overwrote (0: none), so that a change can be told with what was before, and so that compaction finds overwritten rows
without a search.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence

from msgspec import Struct

from insula.errors import HostFault
from insula.store.contract import Change, Record

_APPLICATION = 0x494E534C  # "INSL" in the file's header: file(1) and we know our own
_VERSION = 1
_SCHEMA = """
CREATE TABLE log (
    revision INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    value BLOB,
    created INTEGER NOT NULL,
    previous INTEGER NOT NULL
);
CREATE TABLE state (compacted INTEGER NOT NULL);
INSERT INTO state VALUES (0);
"""


class Loaded(Struct, frozen=True):
    """What was in the file: the present, the newest revision and the newest forgotten one."""

    records: list[Record]
    revision: int
    compacted: int


def open_file(path: str, sync: str) -> tuple[sqlite3.Connection, Loaded]:
    """Open or make the file and read the present. Raises HostFault, sqlite3.Error."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=2)
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = " + ("FULL" if sync == "full" else "NORMAL"))
        connection.execute("PRAGMA cache_size = -4096")
        connection.execute("PRAGMA journal_size_limit = 16777216")
        _check_schema(connection, path)
        return connection, _load(connection)
    except BaseException:
        connection.close()
        raise


def _check_schema(connection: sqlite3.Connection, path: str) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not tables and not application:
        connection.executescript(
            f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = {_VERSION}; COMMIT"
        )
    elif application != _APPLICATION:
        raise HostFault(f"{path} is an SQLite file of another program")
    elif version != _VERSION:
        raise HostFault(
            f"{path} was written by another version of Insula (format {version}, this one reads {_VERSION})"
        )


def _load(connection: sqlite3.Connection) -> Loaded:
    rows = connection.execute(
        "SELECT key, value, created, revision FROM log WHERE revision IN (SELECT max(revision) FROM log GROUP BY key)"
    )
    records = [Record(key, value, created, revision) for key, value, created, revision in rows if value is not None]
    (compacted,) = connection.execute("SELECT compacted FROM state").fetchone()
    return Loaded(records, max(newest(connection), compacted), compacted)


def newest(connection: sqlite3.Connection) -> int:
    """The newest revision in the table, 0 for an empty one."""
    revision: int = connection.execute("SELECT coalesce(max(revision), 0) FROM log").fetchone()[0]
    return revision


def _row(change: Change) -> tuple[int, str, bytes | None, int, int]:
    record = change.record
    assert record is not None
    value = None if change.type == "deleted" else record.value
    return change.revision, record.key, value, record.created, change.previous.revision if change.previous else 0


_ONE_STATEMENT = 64  # rows; more are rare, and each number of rows is a statement of its own
_INSERT = "INSERT INTO log VALUES (?, ?, ?, ?, ?)"


def append(connection: sqlite3.Connection, changes: Sequence[Change]) -> None:
    """Make all of them durable, or none.

    Up to some dozens go in one statement, which is a transaction of its own: the thread gives up and wins back the
    interpreter once, and not once for each row while the event loop is busy."""
    if len(changes) <= _ONE_STATEMENT:
        statement = _INSERT + ", (?, ?, ?, ?, ?)" * (len(changes) - 1)
        connection.execute(statement, [word for change in changes for word in _row(change)])
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.executemany(_INSERT, map(_row, changes))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def changes(connection: sqlite3.Connection, prefix: str, after: int, upto: int) -> list[Change]:
    """What happened under a prefix after one revision, up to and including another."""
    rows = connection.execute(
        "SELECT a.revision, a.key, a.value, a.created, b.revision, b.value, b.created FROM log a "
        "LEFT JOIN log b ON b.revision = a.previous AND b.key = a.key "
        "WHERE a.revision > ? AND a.revision <= ? AND substr(a.key, 1, ?) = ? ORDER BY a.revision",
        (after, upto, len(prefix), prefix),
    )
    return list(_changes(rows))


def _changes(rows: sqlite3.Cursor) -> Iterator[Change]:
    for revision, key, value, created, before, old_value, old_created in rows:
        previous = None if before is None else Record(key, old_value, old_created, before)
        if value is None:
            last = old_value if previous else b""
            yield Change("deleted", revision, Record(key, last, created, revision), previous)
        else:
            yield Change(
                "updated" if previous else "created", revision, Record(key, value, created, revision), previous
            )


def forget(connection: sqlite3.Connection, after: int, upto: int) -> None:
    """Delete what the writes in (after, upto] overwrote, and the deletions among them."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute(
            "DELETE FROM log WHERE revision IN (SELECT previous FROM log WHERE revision > ? AND revision <= ?)",
            (after, upto),
        )
        connection.execute("DELETE FROM log WHERE revision > ? AND revision <= ? AND value IS NULL", (after, upto))
        connection.execute("UPDATE state SET compacted = ?", (upto,))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
