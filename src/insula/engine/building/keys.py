"""What a step of a build is known by in the cache: hashes of all that its result depends on. Pure, but for `tree`, which reads
files.

Times of files do not count, owners only where they are kept; modes, links, devices and extended attributes do.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import msgspec

from insula.engine.building.grafting import Found, walk
from insula.host import xattrs
from insula.images.drafts import State
from insula.images.layers import chain_ids

_CHUNK = 1 << 20
_REMEMBERED = 50_000
_KEPT_XATTRS = ("security.capability", "user.")


def key(*parts: object) -> str:
    """64 hex digits."""
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def identity(state: State) -> str:
    """A root file system by what is in it; empty for none."""
    return chain_ids([layer.diff_id for layer in state])[-1] if state else ""


class Digests:
    """SHA-256 of files, remembered as long as size, times and inode stay the same. Used from threads; races only cost time."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[int, int, int, int, int], str] = OrderedDict()

    def file(self, path: str, status: os.stat_result) -> str:
        """Of a regular file. Raises OSError."""
        mark = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if (known := self._known.get(mark)) is not None:
            return known
        found = hashlib.sha256()
        with open(path, "rb", buffering=0) as file:
            while data := file.read(_CHUNK):
                found.update(data)
        self._known[mark] = found.hexdigest()
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return self._known.get(mark) or found.hexdigest()

    def trees(self, sources: Sequence[Found], *, owners: bool) -> str:
        """Everything that a COPY of these sources would bring. Blocks. Raises OSError, Invalid."""
        total = hashlib.sha256()
        for source in sources:
            total.update(msgspec.json.encode((source.name, source.into)))
            for relative, path, status in walk(source):
                total.update(msgspec.json.encode(self._entry(os.fsencode(relative), path, status, owners)))
        return total.hexdigest()

    def _entry(self, relative: bytes, path: str, status: os.stat_result, owners: bool) -> tuple[object, ...]:
        kind = stat.S_IFMT(status.st_mode)
        content: object = ""
        if kind == stat.S_IFREG:
            content = self.file(path, status)
        elif kind == stat.S_IFLNK:
            content = os.fsencode(os.readlink(path))  # noqa: PTH115 - as it is written
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            content = status.st_rdev
        mode = 0 if kind == stat.S_IFLNK else stat.S_IMODE(status.st_mode)
        who = (status.st_uid, status.st_gid) if owners else ()
        return relative, kind, mode, who, content, sorted(_attributes(path)) if owners else ()


def _attributes(path: str) -> Iterable[tuple[str, bytes]]:
    return [(name, value) for name, value in xattrs.get_all(path).items() if name.startswith(_KEPT_XATTRS)]
