"""A stranger's stream, decompressed, that can neither fill the disk nor be a decompression bomb."""

from __future__ import annotations

import os
from pathlib import Path

from insula.errors import HostFault, TooLarge
from insula.host.tarstream import Plain, Source

# Kept free for the rest of the machine: a full disk is refused before it is full.
RESERVE_BYTES = 64 * 1024 * 1024
# zlib packs zeros 1032:1, real content hardly ever beyond 100:1. Small streams may: they do no harm.
BOMB_RATIO = 250
BOMB_FLOOR_BYTES = 1 << 30
_CHECK_BYTES = 64 * 1024 * 1024


class Bounded:
    """Reads the plain content of `source`, which will be written below `folder`."""

    def __init__(self, source: Source, folder: Path, *, bomb_floor_bytes: int = BOMB_FLOOR_BYTES) -> None:
        self._packed = _Counted(source)
        self._plain = Plain(self._packed)
        self._floor = bomb_floor_bytes
        self._size = 0
        self._room = Room(folder)

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes. Raises TooLarge (a bomb), HostFault (no space left), Invalid (damaged)."""
        data = self._plain.read(size)
        self._size += len(data)
        self._room.take(len(data))
        if self._plain.compression and self._size > max(self._floor, self._packed.size * BOMB_RATIO):
            raise TooLarge(
                f"a decompression bomb: {self._packed.size} bytes of {self._plain.compression} hold more than {self._size}"
            )
        return data


class Room:
    """Asks now and then whether there is room left below `folder` for what is being written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._size = self._next_check = 0

    def take(self, count: int) -> None:
        """So many bytes more will be written. Raises HostFault (no space left)."""
        self._size += count
        if self._size >= self._next_check:
            self._next_check = self._size + _CHECK_BYTES
            found = os.statvfs(self._folder)
            if found.f_bavail * found.f_frsize <= RESERVE_BYTES:
                raise HostFault(
                    f"no space left on device: less than {RESERVE_BYTES >> 20} MiB are free for {self._folder}"
                )


class _Counted:
    def __init__(self, source: Source) -> None:
        self._source = source
        self.size = 0

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        self.size += len(data)
        return data
