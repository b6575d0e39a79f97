"""Write a "newc" cpio archive, the form in which Linux takes an initramfs (kernel: driver-api/early-userspace/buffer-format).

Deterministic: entries in the order given, inode numbers counted from 1, owner root, time zero.
"""

from __future__ import annotations

import stat

from msgspec import Struct

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"


class Entry(Struct, frozen=True, kw_only=True):
    """One member: `mode` with its file type bits; `data` is the contents, or a symbolic link's target."""

    path: str
    mode: int
    data: bytes = b""
    rdev: tuple[int, int] = (0, 0)


def folder(path: str, mode: int = 0o755) -> Entry:
    """A directory."""
    return Entry(path=path, mode=stat.S_IFDIR | mode)


def file(path: str, data: bytes, mode: int = 0o644) -> Entry:
    """A regular file."""
    return Entry(path=path, mode=stat.S_IFREG | mode, data=data)


def link(path: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(path=path, mode=stat.S_IFLNK | 0o777, data=target.encode())


def device(path: str, major: int, minor: int, mode: int = 0o600) -> Entry:
    """A character device node."""
    return Entry(path=path, mode=stat.S_IFCHR | mode, rdev=(major, minor))


def archive(entries: list[Entry]) -> bytes:
    """The whole archive, padded to 512 bytes. Parents must come before what they hold."""
    parts = [_member(number, entry) for number, entry in enumerate(entries, start=1)]
    parts.append(_member(0, Entry(path=_TRAILER, mode=0)))
    body = b"".join(parts)
    return body + bytes(-len(body) % 512)


def _member(inode: int, entry: Entry) -> bytes:
    name = entry.path.lstrip("/").encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.rdev, len(name), 0)
    head = _MAGIC + b"".join(b"%08x" % value for value in fields) + name
    return head + bytes(-len(head) % 4) + entry.data + bytes(-len(entry.data) % 4)
