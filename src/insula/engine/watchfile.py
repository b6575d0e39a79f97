"""Waiting until files in a folder grow, by inotify(7): the kernel says when, nothing polls.

One inotify instance serves all watches, for a user has only 128 of them (fs.inotify.max_user_instances).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from pathlib import Path
from typing import Self

_IN_NONBLOCK, _IN_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
_IN_MODIFY, _IN_ATTRIB, _IN_CLOSE_WRITE, _IN_MOVED_TO, _IN_CREATE = 0x2, 0x4, 0x8, 0x80, 0x100
_FOLDER_EVENTS = _IN_MODIFY | _IN_ATTRIB | _IN_CLOSE_WRITE | _IN_MOVED_TO | _IN_CREATE
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows
_EVENT_BYTES = 64 * 1024
_OVERFLOW = -1  # events were lost: it may have been any watch

_libc = ctypes.CDLL(None, use_errno=True)


class Watches:
    """All watches of one event loop. The inotify instance is opened with the first one."""

    def __init__(self) -> None:
        self._fd = -1
        self._waiting: dict[int, set[FolderWatch]] = {}

    def folder(self, path: Path) -> FolderWatch:
        """Watch a folder from now on. Raises OSError."""
        if self._fd < 0:
            self._open()
        number = _libc.inotify_add_watch(self._fd, os.fsencode(path), _FOLDER_EVENTS)
        if number < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
        watch = FolderWatch(self, number)
        self._waiting.setdefault(number, set()).add(watch)
        return watch

    def _open(self) -> None:
        fd = _libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
        if fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._fd = fd
        asyncio.get_running_loop().add_reader(fd, self._readable)

    def _readable(self) -> None:
        try:
            events = os.read(self._fd, _EVENT_BYTES)
        except BlockingIOError:
            return
        for number in self._numbers(events):
            for watch in self._waiting.get(number, ()):
                watch.wake()

    def _numbers(self, events: bytes) -> set[int]:
        """The watches that something happened to."""
        found, offset = set(), 0
        while offset < len(events):
            number, _, _, length = _EVENT.unpack_from(events, offset)
            offset += _EVENT.size + length
            found.add(number)
        return set(self._waiting) if _OVERFLOW in found else found

    def forget(self, watch: FolderWatch) -> None:
        """Its folder is watched no longer, unless another watches it."""
        others = self._waiting.get(watch.number, set())
        others.discard(watch)
        if not others and self._waiting.pop(watch.number, None) is not None and self._fd >= 0:
            _libc.inotify_rm_watch(self._fd, watch.number)  # fails when the folder is gone, and the watch with it

    def close(self) -> None:
        """Stop watching. Repeatable."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


class FolderWatch:
    """Wakes its waiter whenever a file in the folder was written, made or renamed, so that a log that is not made yet is
    seen as well. Use as a context manager."""

    def __init__(self, watches: Watches, number: int) -> None:
        self.number = number
        self._watches = watches
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Something changed."""
        self._changed.set()

    async def changed(self) -> None:
        """Return when something changed since the last call (or since the watch was made)."""
        await self._changed.wait()
        self._changed.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._watches.forget(self)
