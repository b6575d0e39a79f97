"""The node's truth about what was asked of it: one SQLite file, written through one thread, never on the event loop.

What survives what. A write is acknowledged after its transaction is in the write-ahead log: from then on `kill -9` of this
process loses nothing. A power cut or a kernel crash may lose the last second: with `synchronous=NORMAL` SQLite does not
fsync each commit (that costs milliseconds, several times in every `docker run`), so a lazy flush fsyncs the log one second
after a write. It never corrupts: the log is checksummed and replayed up to its last whole transaction
(https://www.sqlite.org/wal.html). What a power cut takes from the ledger's tail it has also taken from memory: nothing
runs after it, and an instance created in that second is as if it had never been asked for.

Writes that arrive while one is under way go into the next transaction together (group commit).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, ParamSpec, Self, TypeVar

import msgspec

from insula.engine.records import Entry, SandboxEntry
from insula.errors import HostFault, Unavailable

P = ParamSpec("P")
T = TypeVar("T")
Table = Literal["instances", "sandboxes"]
_Write = tuple[str, tuple[str | bytes, ...]]

_SCHEMA_VERSION = 1
_FLUSH_AFTER_S = 1.0
_TABLES: tuple[Table, ...] = ("instances", "sandboxes")
_UNIQUE = {"instances": "UNIQUE", "sandboxes": ""}


def _sql_make(table: Table) -> str:
    name = f"name TEXT NOT NULL {_UNIQUE[table]}"
    return f"CREATE TABLE IF NOT EXISTS {table} (id TEXT PRIMARY KEY, {name}, body BLOB NOT NULL) WITHOUT ROWID"


def _sql_put(table: Table) -> str:
    update = "ON CONFLICT (id) DO UPDATE SET name = excluded.name, body = excluded.body"
    return f"INSERT INTO {table} (id, name, body) VALUES (?, ?, ?) {update}"  # noqa: S608 - one of two fixed names


def _sql_delete(table: Table) -> str:
    return f"DELETE FROM {table} WHERE id = ?"  # noqa: S608 - one of two fixed names


class Ledger:
    """Entries of instances and sandboxes on disk. Who calls keeps the copy in memory; here is only writing and loading."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="insula-ledger")
        self._pending: list[tuple[_Write, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None
        self._flusher: asyncio.TimerHandle | None = None
        self._flushing: asyncio.Task[None] | None = None
        self._db: sqlite3.Connection | None = None
        self._lock = -1

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Open or make it. Raises Unavailable when another process has it, HostFault when it cannot be read."""
        ledger = cls(path)
        try:
            await ledger._do(ledger._open)
        except BaseException:
            ledger._thread.shutdown(wait=False)
            raise
        return ledger

    async def _do(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        work = functools.partial(call, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:
            os.close(self._lock)
            raise Unavailable(f"another Insula already runs on {self._path.parent}") from fault
        try:
            self._db = self._connect()
        except sqlite3.DatabaseError as fault:
            os.close(self._lock)
            raise HostFault(f"the ledger {self._path} cannot be read: {fault}") from fault

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version > _SCHEMA_VERSION:
                raise HostFault(f"the ledger {self._path} was written by a newer Insula (version {version})")
            for table in _TABLES:
                db.execute(_sql_make(table))
            db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        except BaseException:
            db.close()
            raise
        return db

    async def instances(self) -> list[Entry]:
        """All entries. Raises HostFault for one that cannot be understood: better no start than a forgotten workload."""
        return [self._decode(body, Entry) for body in await self._do(self._bodies, "instances")]

    async def sandboxes(self) -> list[SandboxEntry]:
        """All sandboxes."""
        return [self._decode(body, SandboxEntry) for body in await self._do(self._bodies, "sandboxes")]

    def _bodies(self, table: Table) -> list[bytes]:
        return [body for (body,) in self._open_db().execute(f"SELECT body FROM {table}")]  # noqa: S608

    def _decode(self, body: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.MsgspecError as fault:
            raise HostFault(f"the ledger {self._path} holds an entry that cannot be read: {fault}") from fault

    async def put(self, entry: Entry | SandboxEntry) -> None:
        """Write an entry; when this returns, no death of this process loses it."""
        table: Table = "instances" if isinstance(entry, Entry) else "sandboxes"
        name = entry.name if isinstance(entry, Entry) else ""
        await self._write((_sql_put(table), (entry.id, name, msgspec.json.encode(entry))))

    async def delete(self, table: Table, id: str) -> None:
        """Forget an entry. Unknown is fine."""
        await self._write((_sql_delete(table), (id,)))

    async def _write(self, write: _Write) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append((write, done))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._drain(), name="ledger/writer")
        await done

    async def _drain(self) -> None:
        while self._pending:
            batch, self._pending = self._pending, []
            results = await self._do(self._commit, [write for write, _ in batch])
            for (_, done), fault in zip(batch, results, strict=True):
                if done.done():  # its caller was cancelled; the write stands
                    continue
                if fault is None:
                    done.set_result(None)
                else:
                    done.set_exception(HostFault(f"the ledger {self._path} cannot be written: {fault}"))
        self._flush_soon()

    def _open_db(self) -> sqlite3.Connection:
        if self._db is None:
            raise Unavailable("the ledger is closed")
        return self._db

    def _commit(self, writes: list[_Write]) -> list[Exception | None]:
        """One transaction for all; where that fails, one for each, so that a bad write spoils no other."""
        try:
            self._transaction(writes)
        except (sqlite3.Error, Unavailable) as fault:
            if len(writes) == 1:
                return [fault]
            return [result for write in writes for result in self._commit([write])]
        return [None] * len(writes)

    def _transaction(self, writes: list[_Write]) -> None:
        db = self._open_db()
        db.execute("BEGIN IMMEDIATE")
        try:
            for sql, values in writes:
                db.execute(sql, values)
            db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise

    def _flush_soon(self) -> None:
        if self._flusher is None:
            self._flusher = asyncio.get_running_loop().call_later(_FLUSH_AFTER_S, self._start_flush)

    def _start_flush(self) -> None:
        self._flusher = None
        self._flushing = asyncio.create_task(self._do(self._fsync), name="ledger/flush")

    def _fsync(self) -> None:
        with contextlib.suppress(FileNotFoundError):  # a checkpoint has just emptied and removed it
            log = os.open(f"{self._path}-wal", os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(log)
            finally:
                os.close(log)

    async def close(self) -> None:
        """Flush and let go of the file. Repeatable."""
        if self._flusher is not None:
            self._flusher.cancel()
            self._flusher = None
        for task in (self._writer, self._flushing):
            if task is not None:
                await asyncio.wait([task])
        if self._lock >= 0:
            await self._do(self._close)
        self._thread.shutdown(wait=True)

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
        os.close(self._lock)
        self._lock = -1
