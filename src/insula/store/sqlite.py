"""The store of one machine: an append-only table in SQLite, the present in memory.

    event loop   waits for an older write of the same key, checks against what is there, gives the next revision, queues it
    one thread   takes all that is queued, commits it in one transaction, and says so
    event loop   only then shows it to readers and watchers and acknowledges it

While one batch is being made durable the next one gathers, so the cost of a flush is shared by all who write at once
(group commit). The database is in WAL mode with synchronous=FULL: what was acknowledged survives the loss of power, not only
of the process. With `sync="normal"` it survives the process and, after a loss of power, the newest writes may be gone.

Old rows go when they are `keep_s` old, checked only after writes: an idle store writes nothing. A revision is kept in the table
as long as rows are, so that watches that were cut off by a restart go on without a new listing.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from insula.errors import AlreadyExists, HostFault, NotFound, Unavailable
from insula.store import table
from insula.store.contract import Change, Page, Record
from insula.store.feed import Feed, Subscription, too_old
from insula.store.history import History, removed, written
from insula.store.memory import expect

log = logging.getLogger(__name__)

_MAX_BATCH = 1000
COMPACT_EVERY_S = 60.0


class _Write:
    """One queued change and who waits for it."""

    __slots__ = ("change", "done")

    def __init__(self, change: Change, done: asyncio.Future[Record]) -> None:
        self.change = change
        self.done = done


Changes = list[Change]
Batch = list[_Write]


class SqliteStore:
    """A `Store` in one file. Make it with `open`."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        thread: ThreadPoolExecutor,
        loaded: table.Loaded,
        keep_s: float,
        feed: Feed,
    ) -> None:
        self._connection = connection
        self._thread = thread
        feed.replay = self._replay
        feed.oldest = loaded.compacted
        self._history = History(feed, loaded.records)
        self._pending: dict[str, _Write] = {}
        self._queue: deque[_Write] = deque()
        self._next = loaded.revision + 1
        self._committer: asyncio.Task[None] | None = None
        self._marks: deque[tuple[float, int]] = deque()
        self._keep_s = keep_s
        self._span_s = min(COMPACT_EVERY_S, keep_s / 4)
        self._compacting: asyncio.TimerHandle | None = None
        self._jobs: set[asyncio.Task[None]] = set()
        self._closed = False

    @classmethod
    async def open(
        cls,
        path: str | Path,
        *,
        sync: Literal["full", "normal"] = "full",
        keep_s: float = 300.0,
        keep: int = 100_000,
        backlog: int = 10_000,
    ) -> SqliteStore:
        """Open or make the file. `keep_s`: how long the past is kept for watches and listings in pages,
        `keep`: how many changes of it in memory, `backlog`: how many a reader may be behind.
        Raises HostFault for a file that is damaged, locked by another process, or not ours."""
        thread = ThreadPoolExecutor(1, "store")
        loop = asyncio.get_running_loop()
        try:
            connection, loaded = await loop.run_in_executor(thread, table.open_file, str(path), sync)
        except sqlite3.Error as fault:
            thread.shutdown(wait=False)
            raise HostFault(f"the store {path} cannot be opened: {fault}") from fault
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(connection, thread, loaded, keep_s, Feed(loaded.revision, keep=keep, backlog=backlog))

    def _check(self) -> None:
        if self._closed:
            raise Unavailable("the store is closed")

    async def _in_thread(self, call: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)

    # --- read ---------------------------------------------------------------------------------------------------

    async def revision(self) -> int:
        """The newest acknowledged revision."""
        self._check()
        return self._history.feed.revision

    async def get(self, key: str) -> Record:
        """The newest acknowledged record."""
        self._check()
        record = self._history.index.get(key)
        if record is None:
            raise NotFound(f"no key {key}")
        return record

    async def list(self, prefix: str, *, revision: int | None = None, limit: int = 0, after: str = "") -> Page:
        """Keys under a prefix; the past is put together from the present and what changed since."""
        self._check()
        history = self._history
        if revision is None:
            return history.page(prefix, after, limit)
        history.check(revision)
        cold: Changes = []
        while revision < history.feed.floor:
            floor = history.feed.floor
            cold = await self._replay(prefix, revision, floor)
            if floor == history.feed.floor:
                break
        recent = history.feed.since(max(revision, history.feed.floor))
        return history.page(prefix, after, limit, [*cold, *recent], revision)

    def watch(self, prefix: str, *, after: int | None = None) -> Subscription:
        """Changes under a prefix."""
        return self._history.feed.subscribe(prefix, after)

    async def _replay(self, prefix: str, after: int, upto: int) -> Changes:
        """Changes from the table, for who asks for more than the ring holds."""
        changes: Changes = await self._in_thread(table.changes, self._connection, prefix, after, upto)
        if after < self._history.feed.oldest:
            raise too_old(after)
        return changes

    # --- write --------------------------------------------------------------------------------------------------

    async def _settled(self, key: str) -> Record | None:
        """What a write meets. One that is on its way is waited for, so that who loses a race can read what won it."""
        while (write := self._pending.get(key)) is not None:
            await asyncio.wait([write.done])
        self._check()
        return self._history.index.get(key)

    async def create(self, key: str, value: bytes) -> Record:
        """Make a key."""
        if await self._settled(key) is not None:
            raise AlreadyExists(f"the key {key} exists")
        return await self._commit(written(key, value, self._next, None))

    async def update(self, key: str, value: bytes, *, revision: int) -> Record:
        """Replace a value."""
        previous = expect(await self._settled(key), key, revision)
        return await self._commit(written(key, value, self._next, previous))

    async def delete(self, key: str, *, revision: int | None = None) -> Record:
        """Remove a key."""
        previous = expect(await self._settled(key), key, revision)
        return await self._commit(removed(previous, self._next))

    async def _commit(self, change: Change) -> Record:
        assert change.record is not None
        loop = asyncio.get_running_loop()
        self._next += 1
        write = self._pending[change.record.key] = _Write(change, loop.create_future())
        self._queue.append(write)
        if self._committer is None:
            self._committer = loop.create_task(self._commit_all(), name="store/commit")
        # A writer that is cancelled does not take back what is on its way to the disk.
        return await asyncio.shield(write.done)

    async def _commit_all(self) -> None:
        try:
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(len(self._queue), _MAX_BATCH))]
                try:
                    await self._in_thread(table.append, self._connection, [write.change for write in batch])
                except sqlite3.Error as fault:
                    if not await self._happened(batch):
                        self._fail(batch, fault)
                        continue
                self._acknowledge(batch)
        finally:
            self._committer = None

    async def _happened(self, batch: Batch) -> bool:
        """Whether a commit that reported a fault reached the table all the same."""
        try:
            newest: int = await self._in_thread(table.newest, self._connection)
        except sqlite3.Error:
            return False
        return newest >= batch[-1].change.revision

    def _acknowledge(self, batch: Batch) -> None:
        self._history.apply([write.change for write in batch])
        for write in batch:
            record = write.change.record
            assert record is not None
            self._pending.pop(record.key, None)
            if not write.done.done():
                write.done.set_result(record)
        self._remember_age()

    def _fail(self, batch: Batch, fault: sqlite3.Error) -> None:
        """The disk refused: nothing of the batch, nor of what was decided upon it, has happened."""
        log.error("the store could not write: %s", fault)
        refused = [*batch, *self._queue]
        self._queue.clear()
        self._pending.clear()
        self._next = self._history.feed.revision + 1
        for write in refused:
            if not write.done.done():
                write.done.set_exception(Unavailable(f"the store cannot write to its disk: {fault}"))
                write.done.exception()

    # --- forget -------------------------------------------------------------------------------------------------

    def _remember_age(self) -> None:
        """Note which revision was the newest in each span of time, and see to it that it is forgotten later."""
        now = asyncio.get_running_loop().time()
        if self._marks and now - self._marks[-1][0] < self._span_s:
            self._marks[-1] = (self._marks[-1][0], self._history.feed.revision)
        else:
            self._marks.append((now, self._history.feed.revision))
        if self._compacting is None:
            self._plan_compaction()

    def _plan_compaction(self) -> None:
        loop = asyncio.get_running_loop()
        due = self._marks[0][0] + self._span_s + self._keep_s
        self._compacting = loop.call_later(max(self._span_s, due - loop.time()), self._compact_old)

    def _compact_old(self) -> None:
        """Forget what is older than `keep_s`; look again as long as there is something younger to forget later."""
        self._compacting = None
        limit = asyncio.get_running_loop().time() - self._keep_s - self._span_s
        revision = 0
        while self._marks and self._marks[0][0] <= limit:
            revision = self._marks.popleft()[1]
        if revision:
            task = asyncio.get_running_loop().create_task(self._compact_quietly(revision), name="store/compact")
            self._jobs.add(task)
            task.add_done_callback(self._jobs.discard)
        if self._marks:
            self._plan_compaction()

    async def _compact_quietly(self, revision: int) -> None:
        try:
            await self.compact(revision)
        except (sqlite3.Error, Unavailable) as fault:
            log.warning("the store could not forget old revisions: %s", fault)

    async def compact(self, revision: int) -> None:
        """Forget the past before `revision`; its rows leave the table in small transactions between other writes."""
        self._check()
        feed = self._history.feed
        upto = min(revision, feed.revision)
        start, feed.oldest = feed.oldest, max(feed.oldest, upto)
        while start < upto:
            step = min(start + 2000, upto)
            await self._in_thread(table.forget, self._connection, start, step)
            start = step
        feed.forget(upto)

    async def close(self) -> None:
        """Write what is queued, end all watches, close the file."""
        if self._closed:
            return
        self._closed = True
        if self._compacting is not None:
            self._compacting.cancel()
        if self._committer is not None:
            await asyncio.wait([self._committer])
        for task in tuple(self._jobs):
            await asyncio.wait([task])
        self._history.feed.close()
        await self._in_thread(self._connection.close)
        self._thread.shutdown(wait=True)
