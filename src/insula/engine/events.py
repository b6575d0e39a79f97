"""What happened on this node: the newest events in memory, and whoever listens.

A listener that does not read is dropped with an error when its queue is full; the others never wait for it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator

import msgspec

from insula.engine.contract import Event
from insula.errors import Expired


class _Listener:
    """One live subscription: its queue, and whether it was dropped for being slow."""

    def __init__(self, backlog: int) -> None:
        self.queue: asyncio.Queue[Event | None] = asyncio.Queue(backlog + 1)
        self.backlog = backlog
        self.dropped = False

    def give(self, event: Event | None) -> bool:
        """Returns False when it fell too far behind: its next read raises."""
        if event is not None and self.queue.qsize() >= self.backlog:
            self.dropped = True
            self.queue.put_nowait(None)
            return False
        if self.queue.full():
            return False
        self.queue.put_nowait(event)
        return True


class EventLog:
    """A ring of the newest `history` events and the live listeners, each with a queue of `backlog`."""

    def __init__(self, *, history: int, backlog: int) -> None:
        self._ring: deque[Event] = deque(maxlen=history)
        self._listeners: set[_Listener] = set()
        self._backlog = backlog
        self._closed = False
        self._last_ns = 0

    def publish(self, event: Event) -> None:
        """Stamp it, remember it, tell everybody. Never waits."""
        # Two events never share a time, so that a client that asks "since" the last one it saw misses none.
        self._last_ns = max(time.time_ns(), self._last_ns + 1)
        event = msgspec.structs.replace(event, time_ns=self._last_ns)
        self._ring.append(event)
        for listener in list(self._listeners):
            if not listener.give(event):
                self._listeners.discard(listener)

    def listen(self, *, since_ns: int | None = None, until_ns: int | None = None) -> AsyncIterator[Event]:
        """Past events from memory, then live ones until `until_ns` or `close`. Subscribed when called, not at the first
        read. Raises Expired (at a read) when the reader fell too far behind."""
        listener = _Listener(self._backlog)
        past = [event for event in self._ring if since_ns is not None and event.time_ns >= since_ns]
        if self._closed:
            listener.give(None)
        else:
            self._listeners.add(listener)
        return self._read(listener, past, until_ns)

    async def _read(self, listener: _Listener, past: list[Event], until_ns: int | None) -> AsyncIterator[Event]:
        try:
            for event in past:
                if until_ns is None or event.time_ns <= until_ns:
                    yield event
            while (event_or_end := await self._next(listener, until_ns)) is not None:
                yield event_or_end
        finally:
            self._listeners.discard(listener)

    async def _next(self, listener: _Listener, until_ns: int | None) -> Event | None:
        timeout = None if until_ns is None else max(0.0, (until_ns - time.time_ns()) / 1e9)
        try:
            event = await asyncio.wait_for(listener.queue.get(), timeout)
        except TimeoutError:
            return None
        if event is None and listener.dropped:
            raise Expired("this reader of events was too slow and was dropped; ask again with `since`")
        return None if event is not None and until_ns is not None and event.time_ns > until_ns else event

    def last(self, count: int) -> list[Event]:
        """The newest `count` events, oldest first."""
        return list(itertools.islice(self._ring, max(0, len(self._ring) - count), None))

    def close(self) -> None:
        """End every listener. Repeatable."""
        self._closed = True
        for listener in self._listeners:
            listener.give(None)
        self._listeners.clear()
