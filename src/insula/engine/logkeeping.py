"""Keeping a log within its limit, while conmon or QEMU append to it and clients follow it.

The head of the file is punched out (`host/holes.py`), so nothing is renamed, reopened or copied, and no line is lost to whoever
follows: a reader that is still in the part that goes jumps to where data begins. A log costs nothing while nothing is
written: inotify tells of the first write, the watch is taken off, and one second later it is looked at again.
What is written within such a second may exceed the limit for that time.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from insula.engine.loglimits import LogLimit, limit_of
from insula.engine.parts import Parts
from insula.engine.resident import Resident
from insula.engine.watchfile import Watches
from insula.host import holes
from insula.tasks import finish, in_thread

log = logging.getLogger(__name__)
PAUSE_S = 1.0
RETRY_S = 60.0
_LARGEST = 1 << 40  # the size with holes; file systems end at 16 TiB


def trim(path: Path, limit: LogLimit) -> None:
    """Once. No such file is fine. Blocks. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        with _opened(path, os.O_RDONLY) as fd:  # a look wakes nobody who waits for a write
            begin, size = holes.data_from(fd, 0), os.fstat(fd).st_size
        if size - begin > limit.most_bytes:
            with _opened(path, os.O_WRONLY) as fd:
                _take_head(fd, begin, (size - limit.keep_bytes) // holes.BLOCK * holes.BLOCK)


@contextlib.contextmanager
def _opened(path: Path, mode: int) -> Iterator[int]:
    fd = os.open(path, mode | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield fd
    finally:
        os.close(fd)


def _take_head(fd: int, begin: int, end: int) -> None:
    """A file system without holes, or a size that nears its end, costs all of the log; who appends then begins at 0."""
    if end < _LARGEST:
        try:
            holes.punch(fd, begin // holes.BLOCK * holes.BLOCK, end)
        except OSError as fault:
            if fault.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                raise
        else:
            return
    os.ftruncate(fd, 0)


async def keep(path: Path, limit: LogLimit, watches: Watches) -> None:
    """For as long as it is not cancelled. A fault (of the disk, or no inotify watch is left) is logged, and it is tried again."""
    while True:
        pause_s = PAUSE_S
        try:
            with watches.folder(path.parent) as watch:
                await in_thread(trim, path, limit)
                await watch.changed()
        except OSError as fault:
            log.warning("a log cannot be kept within its limit", extra={"path": str(path)}, exc_info=fault)
            pause_s = RETRY_S
        await asyncio.sleep(pause_s)


@contextlib.asynccontextmanager
async def kept(parts: Parts, resident: Resident) -> AsyncIterator[None]:
    """While this is open the instance's log is within its limit; at the end it is looked at once more."""
    limit, path = limit_of(resident.entry.config), parts.log_path(resident.entry)
    if limit is None or not path:
        yield
        return
    keeper = asyncio.create_task(keep(Path(path), limit, parts.watches), name=f"engine/log {resident.id[:12]}")
    try:
        yield
    finally:
        await finish(keeper)
    with contextlib.suppress(OSError):
        await in_thread(trim, Path(path), limit)
