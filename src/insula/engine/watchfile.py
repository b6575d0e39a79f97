"""Waiting until a file grows, by inotify(7): the kernel says when, nothing polls."""

from __future__ import annotations

import asyncio
import ctypes
import os
from pathlib import Path
from typing import Self

_IN_NONBLOCK, _IN_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
_IN_MODIFY, _IN_ATTRIB, _IN_CLOSE_WRITE, _IN_MOVED_TO, _IN_CREATE = 0x2, 0x4, 0x8, 0x80, 0x100
_FOLDER_EVENTS = _IN_MODIFY | _IN_ATTRIB | _IN_CLOSE_WRITE | _IN_MOVED_TO | _IN_CREATE
_EVENT_BYTES = 64 * 1024

_libc = ctypes.CDLL(None, use_errno=True)


class FolderWatch:
    """Wakes its waiter whenever a file in a folder was written, made or renamed. Use as a context manager.

    It watches the folder, so that a log that is rotated, or not made yet, is seen as well."""

    def __init__(self, folder: Path) -> None:
        self._fd = _libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        if _libc.inotify_add_watch(self._fd, os.fsencode(folder), _FOLDER_EVENTS) < 0:
            number = ctypes.get_errno()
            os.close(self._fd)
            raise OSError(number, os.strerror(number), str(folder))
        self._changed = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        try:
            os.read(self._fd, _EVENT_BYTES)
        except BlockingIOError:
            return
        self._changed.set()

    async def changed(self) -> None:
        """Return when something changed since the last call (or since the watch was made)."""
        await self._changed.wait()
        self._changed.clear()

    def close(self) -> None:
        """Stop watching. Repeatable."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
