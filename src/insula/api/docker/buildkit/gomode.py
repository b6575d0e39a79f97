"""Go's `os.FileMode` and the kernel's `st_mode`. Pure. Source: Go's `io/fs` (the bits are fixed there)."""

from __future__ import annotations

import stat

_TYPES = (
    (1 << 31, stat.S_IFDIR),
    (1 << 27, stat.S_IFLNK),
    (1 << 26 | 1 << 21, stat.S_IFCHR),
    (1 << 26, stat.S_IFBLK),
    (1 << 25, stat.S_IFIFO),
    (1 << 24, stat.S_IFSOCK),
)
_BITS = ((1 << 23, stat.S_ISUID), (1 << 22, stat.S_ISGID), (1 << 20, stat.S_ISVTX))
TYPE_MASK = 1 << 31 | 1 << 27 | 1 << 26 | 1 << 25 | 1 << 24 | 1 << 21 | 1 << 19


def to_unix(mode: int) -> int:
    """`st_mode` of a Go mode; what is no known type is a regular file."""
    kind = next((unix for go, unix in _TYPES if mode & go == go), stat.S_IFREG)
    return kind | mode & 0o777 | sum(unix for go, unix in _BITS if mode & go)


def to_go(mode: int) -> int:
    """The other way round."""
    kind = next((go for go, unix in _TYPES if stat.S_IFMT(mode) == unix), 0)
    return kind | mode & 0o777 | sum(go for go, unix in _BITS if mode & unix)
