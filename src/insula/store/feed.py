"""Recent changes in memory and those who follow them.

A `Feed` keeps the last changes in a ring. A subscription starts anywhere inside it, gets each later change once and in
order, and is dropped with Expired when its reader falls too far behind: no reader can hold up a writer or eat the memory.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Self

from insula.errors import Expired, Unavailable
from insula.store.contract import Change, Paused, Take
from insula.store.index import bucket_of

Replay = Callable[[str, int, int], Awaitable[list[Change]]]
"""(prefix, after, up to): changes older than the ring, from wherever they are kept. Raises Expired."""
_HANDED_AT_ONCE = 128  # readers, before other work of the loop has its turn


class Subscription:
    """One reader of a feed: an asynchronous iterator over changes, or over batches of them."""

    def __init__(
        self, feed: Feed, prefix: str, after: int, ready: Sequence[Change], limit: int, cold: tuple[int, int] | None
    ) -> None:
        self.prefix = prefix
        self._feed = feed
        self._after = after
        self._queue: list[Change] = list(ready)
        self._ahead: deque[Change] = deque()  # taken, and not yet asked for one by one
        self._limit = max(limit, 2 * len(self._queue))
        self._cold = cold
        self._fault: Exception | None = None
        self._closed = False
        self._take: Take | None = None
        self._full = False
        self._marked = False
        self._waiter: asyncio.Future[None] | None = None

    def push(self, change: Change) -> None:
        """Called by the feed for each change under the prefix; never waits."""
        if self._fault or change.revision <= self._after:
            return
        if len(self._queue) >= self._limit:
            self._queue.clear()
            self.fail(Expired("this watch fell too far behind and was dropped; list again"))
            return
        self._queue.append(change)
        if self._take is None:
            self._wake()
        elif not self._marked:
            self._marked = True
            self._feed.mark(self)

    def fail(self, fault: Exception) -> None:
        """End with an error after what is queued."""
        self._fault = fault
        self._feed.leave(self)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def batch(self, wait_s: float | None = None) -> list[Change]:
        """All changes that are there, waiting for the first. With `wait_s`, a single `progress` when none came in that
        time. An empty list after `aclose`. Raises Expired, Unavailable."""
        if self._cold is not None:
            (after, upto), self._cold = self._cold, None
            if changes := await self._feed.replay(self.prefix, after, upto):
                return changes
        if not self._queue and not self._fault and not self._closed:
            await self._wait(wait_s)
        if self._queue:
            taken, self._queue = self._queue, []
            return taken
        if self._fault:
            raise self._fault
        return [] if self._closed else [Change("progress", max(self._after, self._feed.revision))]

    async def hand(self, take: Take, wait_s: float | None = None) -> Paused:
        """Hand changes to `take` as they come; see the contract."""
        if self._cold is not None:
            (after, upto), self._cold = self._cold, None
            changes = await self._feed.replay(self.prefix, after, upto)
            if changes and not take(changes):
                return Paused("full", changes[-1].revision)
        self._take, self._full = take, False
        try:
            self.deliver()
            if not self._full and not self._fault and not self._closed:
                await self._wait(wait_s)
                self.deliver()
        finally:
            self._take = None
        if self._fault:
            raise self._fault
        newest = max(self._after, self._feed.revision)
        return Paused("closed" if self._closed else "full" if self._full else "time", newest)

    def deliver(self) -> None:
        """Hand over what is queued, unless nobody takes it now. Never waits, never raises."""
        self._marked = False
        changes = self._queue
        if self._take is None or self._full or not changes:
            return
        self._queue = []
        try:
            self._full = not self._take(changes)
        except Exception as fault:
            self.fail(fault)
        if self._full:
            self._wake()

    async def _wait(self, wait_s: float | None) -> None:
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        timer = None if wait_s is None else loop.call_later(max(0.0, wait_s), self._wake)
        try:
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        if not self._ahead:
            self._ahead.extend(await self.batch())
        if not self._ahead:
            raise StopAsyncIteration
        return self._ahead.popleft()

    async def aclose(self) -> None:
        """Stop following; a waiting reader ends."""
        self._closed = True
        self._queue.clear()
        self._ahead.clear()
        self._feed.leave(self)
        self._wake()


async def _no_replay(_prefix: str, after: int, _upto: int) -> list[Change]:
    raise too_old(after)


def too_old(revision: int) -> Expired:
    """The error for a revision that is no longer kept."""
    return Expired(f"revision {revision} has been compacted away")


class Feed:
    """The ring. It holds every change after `floor`; at most `keep` changes and `keep_bytes` of values."""

    def __init__(
        self,
        revision: int = 0,
        *,
        keep: int = 100_000,
        keep_bytes: int = 64 << 20,
        backlog: int = 10_000,
        replay: Replay = _no_replay,
    ) -> None:
        self.revision = revision
        self.floor = revision
        self.oldest = revision  # what `replay` reaches back to; equals `floor` where nothing older is kept elsewhere
        self.replay = replay
        self._keep = keep
        self._keep_bytes = keep_bytes
        self._backlog = backlog
        self._ring: list[Change] = []
        self._bytes = 0
        self._readers: dict[
            str, dict[str, set[Subscription]]
        ] = {}  # by the first segment of their prefix, then by prefix
        self._marked: deque[Subscription] = deque()
        self._closed = False

    def publish(self, changes: Sequence[Change]) -> None:
        """Append acknowledged changes, in order, and hand them to their readers."""
        for change in changes:
            self._ring.append(change)
            self._bytes += _weight(change)
            self.revision = change.revision
            assert change.record is not None
            key = change.record.key
            for bucket in (bucket_of(key), ""):
                for prefix, readers in tuple(self._readers.get(bucket, {}).items()):
                    if key.startswith(prefix):
                        for reader in tuple(readers):
                            reader.push(change)
        if len(self._ring) > self._keep * 1.1 or self._bytes > self._keep_bytes:
            self._trim()

    def mark(self, reader: Subscription) -> None:
        """See to it that a reader is handed what it has. All that comes until then it gets at once."""
        if not self._marked:
            asyncio.get_running_loop().call_soon(self._hand_out)
        self._marked.append(reader)

    def _hand_out(self) -> None:
        for _ in range(min(len(self._marked), _HANDED_AT_ONCE)):
            self._marked.popleft().deliver()
        if self._marked:
            asyncio.get_running_loop().call_soon(self._hand_out)

    def _trim(self) -> None:
        drop = max(0, len(self._ring) - self._keep)
        weight = sum(_weight(change) for change in self._ring[:drop])
        while self._bytes - weight > self._keep_bytes * 0.9 and drop < len(self._ring) - 1:
            weight += _weight(self._ring[drop])
            drop += 1
        if drop:
            self.floor = self._ring[drop - 1].revision
            del self._ring[:drop]
            self._bytes -= weight

    def forget(self, revision: int) -> None:
        """Drop what happened up to and including `revision`."""
        self.oldest = max(self.oldest, revision)
        at = bisect_right(self._ring, revision, key=lambda change: change.revision)
        self._bytes -= sum(_weight(change) for change in self._ring[:at])
        del self._ring[:at]
        self.floor = max(self.floor, revision)

    def since(self, revision: int) -> list[Change]:
        """Every change after `revision`. Raises Expired when the ring does not reach back so far."""
        if revision < self.floor:
            raise too_old(revision)
        return self._ring[bisect_right(self._ring, revision, key=lambda change: change.revision) :]

    def subscribe(self, prefix: str, after: int | None) -> Subscription:
        """Follow changes under `prefix` after a revision (None: from now on). Raises Expired, Unavailable."""
        if self._closed:
            raise Unavailable("the store is closed")
        start = self.revision if after is None else after
        if start < self.oldest:
            raise too_old(start)
        cold = (start, self.floor) if start < self.floor else None
        ready = [
            change
            for change in self.since(max(start, self.floor))
            if change.record is not None and change.record.key.startswith(prefix)
        ]
        reader = Subscription(self, prefix, start, ready, self._backlog, cold)
        self._readers.setdefault(self._room(prefix), {}).setdefault(prefix, set()).add(reader)
        return reader

    @staticmethod
    def _room(prefix: str) -> str:
        return bucket_of(prefix) if "/" in prefix else ""

    def leave(self, reader: Subscription) -> None:
        """Forget a reader."""
        room = self._readers.get(self._room(reader.prefix), {})
        if members := room.get(reader.prefix):
            members.discard(reader)
            if not members:
                del room[reader.prefix]

    def close(self) -> None:
        """End every subscription with Unavailable."""
        self._closed = True
        for members in [members for room in self._readers.values() for members in room.values()]:
            for reader in tuple(members):
                reader.fail(Unavailable("the store was closed"))


def _weight(change: Change) -> int:
    record = change.record
    return 200 + (len(record.value) if record else 0)
