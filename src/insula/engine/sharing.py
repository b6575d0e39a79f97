"""Shared memory that others may join (`--ipc shareable`): a file system in memory on the host, bound into all who share it.

One that is mounted inside an instance alone cannot be bound elsewhere. Everything here blocks.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from insula.host import mounts


def make_shm(place: Path, size_bytes: int) -> None:
    """Mount it anew, empty. Raises HostFault."""
    drop_shm(place)
    place.mkdir(mode=0o755, parents=True, exist_ok=True)
    flags = mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC
    mounts.tmpfs(str(place), size_bytes=size_bytes, mode=0o1777, flags=flags)


def drop_shm(place: Path) -> None:
    """Take it away. Repeatable; who has it bound keeps it."""
    if place.exists():
        mounts.unmount(place, lazy=True)
        with contextlib.suppress(OSError):
            place.rmdir()
