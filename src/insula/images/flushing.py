"""Writing new content back to the disk, all at once and in the background: content that came together costs one flush.

Whoever kills Insula loses nothing by this, for the kernel has it. A machine that loses its power may: what was not marked as
safe is looked into at the next start, see `Content.recover`.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from msgspec import Struct

from insula.tasks import Tasks, in_thread

# By then the kernel has written most of it at its leisure (proc_sys_vm(5), dirty_expire_centisecs), so that the flush is short;
# what is removed again meanwhile need never be written.
QUIET_S, LONGEST_S = 60.0, 600.0
_libc = ctypes.CDLL(None, use_errno=True)


class Unsafe(Struct, frozen=True):
    """Layers and images that may not be on the disk yet."""

    chains: tuple[str, ...]
    images: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.chains or self.images)


class Flusher:
    """Of one file system. `unsafe` says what there is to write back, `mark_safe` is told when it is."""

    def __init__(
        self, folder: Path, unsafe: Callable[[], Unsafe], mark_safe: Callable[[Unsafe], Awaitable[None]]
    ) -> None:
        self._folder = folder
        self._unsafe = unsafe
        self._mark_safe = mark_safe
        self._tasks = Tasks("flush")
        self._running = False
        self._news = 0.0

    def soon(self) -> None:
        """There is something new. Call it on the event loop."""
        self._news = time.monotonic()
        if not self._running:
            self._running = True
            self._tasks.spawn(self._run(), "flush")

    async def _run(self) -> None:
        try:
            began = time.monotonic()
            for left_s in iter(lambda: self._left_s(began), 0.0):
                await asyncio.sleep(left_s)
            while found := self._unsafe():
                await in_thread(self._sync)
                await self._mark_safe(found)
        finally:
            self._running = False

    def _left_s(self, began: float) -> float:
        """How long to wait yet: until it has been quiet for a while, but not for ever."""
        return max(0.0, min(self._news + QUIET_S, began + LONGEST_S) - time.monotonic())

    def _sync(self) -> None:
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            _libc.syncfs(folder)
        finally:
            os.close(folder)

    async def close(self) -> None:
        """What was not flushed stays marked as unsafe."""
        await self._tasks.close()
