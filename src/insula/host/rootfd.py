"""Paths from strangers, resolved below a folder: openat2(2) with RESOLVE_IN_ROOT.

Inside, `..` and symlinks stop at the folder, as after chroot(2), whatever an archive or a running workload does to the
tree meanwhile. Linux 5.6 and later.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections import OrderedDict
from typing import Self

from insula.errors import Invalid, Unsupported

_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10
_CACHED = 64  # open folders kept by one Root

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def split(name: str) -> tuple[str, ...]:
    """The parts of a member's name. A leading `/` and `.` are dropped; `..` that leaves the root raises Invalid, as does NUL."""
    if "\0" in name:
        raise Invalid(f"the name {name!r} contains a NUL byte")
    parts: list[str] = []
    for part in name.split("/"):
        if part == "..":
            if not parts:
                raise Invalid(f"the name {name!r} is outside of the archive's root")
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return tuple(parts)


def open_in(root: int, path: str, flags: int, mode: int = 0) -> int:
    """open(2) a path inside the folder behind descriptor `root`. Raises OSError, Unsupported (an older kernel)."""
    how = (ctypes.c_uint64 * 3)(flags | os.O_CLOEXEC, mode, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    while True:
        opened = _libc.syscall(_OPENAT2, root, os.fsencode(path), how, ctypes.sizeof(how))
        if opened >= 0:
            return int(opened)
        number = ctypes.get_errno()
        if number == errno.ENOSYS:
            raise Unsupported("this kernel has no openat2(2); Linux 5.6 or later is needed")
        if number not in (errno.EINTR, errno.EAGAIN):  # EAGAIN: a rename raced with `..`
            raise OSError(number, os.strerror(number), path)


class Root:
    """A folder that strangers' paths are resolved in. Keeps recently used folders open: archives name them in order."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._folders: OrderedDict[tuple[str, ...], int] = OrderedDict()

    def folder(self, parts: tuple[str, ...], *, create: bool = False) -> int:
        """A descriptor of a folder, owned by this object; with `create` missing ones are made, 0755. Raises OSError."""
        if not parts:
            return self.fd
        if (known := self._folders.get(parts)) is not None:
            self._folders.move_to_end(parts)
            return known
        opened = self._open(parts, create)
        self._folders[parts] = opened
        if len(self._folders) > _CACHED:
            os.close(self._folders.popitem(last=False)[1])
        return opened

    def _open(self, parts: tuple[str, ...], create: bool) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY
        try:
            return open_in(self.fd, "/".join(parts), flags)
        except FileNotFoundError:
            if not create:
                raise
        return self._create(parts, flags)

    def _create(self, parts: tuple[str, ...], flags: int) -> int:
        """Make the missing end of a path: below the deepest folder that is there, everything is new and holds no link."""
        depth, here = len(parts) - 1, -1
        while here < 0:
            try:
                here = open_in(self.fd, "/".join(parts[:depth]) or ".", flags)
            except FileNotFoundError:
                depth -= 1
        for part in parts[depth:]:
            try:
                os.mkdir(part, 0o755, dir_fd=here)
                inner = os.open(part, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            finally:
                os.close(here)
            here = inner
        return here

    def forget(self, below: tuple[str, ...] = ()) -> None:
        """Close the kept folders at and under one that is being replaced."""
        for parts in [parts for parts in self._folders if parts[: len(below)] == below]:
            os.close(self._folders.pop(parts))

    def close(self) -> None:
        """Let go of everything."""
        self.forget()
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
