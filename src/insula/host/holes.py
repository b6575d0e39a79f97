"""Taking the head of a growing file away without touching what its writer or its readers do: fallocate(2) punches a hole.

Offsets stay as they are, so whoever appends goes on appending and whoever reads goes on at its place; only the blocks before
go back to the file system. ext4, XFS, btrfs and tmpfs all can. lseek(2) with SEEK_DATA finds where data begins again.
"""

from __future__ import annotations

import ctypes
import errno
import os

BLOCK = 4096
_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02
_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = _libc.fallocate64
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def data_from(fd: int, offset: int) -> int:
    """The first byte at or after `offset` that is not in a hole; the file's size when only a hole is left."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as fault:
        if fault.errno != errno.ENXIO:
            raise
        return os.fstat(fd).st_size


def punch(fd: int, begin: int, end: int) -> None:
    """Give the blocks from `begin` to `end` back; they read as zeros. Raises OSError, EOPNOTSUPP where nobody can."""
    if _fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, begin, end - begin) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
