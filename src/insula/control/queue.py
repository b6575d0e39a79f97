"""Keys waiting for a worker. A key waits at most once; one that is woken while it is worked on waits again afterwards; two
workers never hold the same key. Failures are counted per key. Pure bookkeeping plus the event loop's clock."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

from insula.clock import Backoff

K = TypeVar("K", bound=Hashable)


class Queue(Generic[K]):
    """A de-duplicating work queue. Used by one loop only."""

    def __init__(self, *, base_s: float = 0.02, cap_s: float = 60.0) -> None:
        self._ready: OrderedDict[K, None] = OrderedDict()
        self._working: set[K] = set()
        self._again: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._backoffs: dict[K, Backoff] = {}
        self._base_s, self._cap_s = base_s, cap_s
        self._waiters: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is worked on (timers aside)."""
        return not self._ready and not self._working

    def add(self, key: K) -> None:
        """Wake a key now."""
        self._cancel_timer(key)
        if key in self._working:
            self._again.add(key)
        elif key not in self._ready:
            self._ready[key] = None
            self._notify()

    def add_after(self, key: K, delay_s: float) -> None:
        """Wake a key later; an earlier wake that is already planned stays."""
        loop = asyncio.get_running_loop()
        due = loop.time() + delay_s
        timer = self._timers.get(key)
        if timer is not None and timer.when() <= due:
            return
        self._cancel_timer(key)
        self._timers[key] = loop.call_at(due, self._due, key)

    async def take(self) -> K:
        """Wait for a key; it is this worker's until `done`."""
        while not self._ready:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                self._give_up(waiter)
                raise
        key, _ = self._ready.popitem(last=False)
        self._working.add(key)
        return key

    def done(self, key: K) -> None:
        """The worker lets go of a key."""
        self._working.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def failed(self, key: K) -> float:
        """Count a failure and plan the next try. Returns the wait in seconds."""
        delay = self._backoffs.setdefault(key, Backoff(self._base_s, self._cap_s)).next_s()
        self.add_after(key, delay)
        return delay

    def succeeded(self, key: K) -> None:
        """Forget a key's failures."""
        self._backoffs.pop(key, None)

    def forget(self, key: K) -> None:
        """What the key names is gone: no wake is owed to it any more."""
        self._cancel_timer(key)
        self._ready.pop(key, None)
        self._again.discard(key)
        self._backoffs.pop(key, None)

    def close(self) -> None:
        """Drop what is planned."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._ready.clear()
        self._again.clear()

    def _due(self, key: K) -> None:
        self._timers.pop(key, None)
        self.add(key)

    def _cancel_timer(self, key: K) -> None:
        if timer := self._timers.pop(key, None):
            timer.cancel()

    def _notify(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _give_up(self, waiter: asyncio.Future[None]) -> None:
        """A worker that is cancelled after it was woken passes the wake on."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        elif self._ready:
            self._notify()
