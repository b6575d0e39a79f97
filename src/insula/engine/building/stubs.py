"""What a runtime makes in a root file system to have a place for its mounts: empty files and folders that belong in no layer."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from insula.host import xattrs
from insula.host.rootfd import Root, open_in, split


class Stubs(Struct, frozen=True, kw_only=True):
    """Places that were not there before a run, deepest first, and the folders that were, with mode and owners."""

    missing: tuple[tuple[str, ...], ...]
    above: tuple[tuple[tuple[str, ...], tuple[int, int, int]], ...]

    @classmethod
    def look(cls, root: str, targets: Sequence[str]) -> Stubs:
        """Before a run, in the mounted root file system. Blocks."""
        missing: set[tuple[str, ...]] = set()
        above: dict[tuple[str, ...], tuple[int, int, int]] = {}
        base = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for target in targets:
                _look(base, split(target), missing, above)
        finally:
            os.close(base)
        return cls(
            missing=tuple(sorted(missing, key=len, reverse=True)),
            above=tuple(sorted(above.items(), key=lambda each: len(each[0]), reverse=True)),
        )

    def clear(self, upper: str) -> None:
        """After a run, in what it wrote: take away stubs that are still empty, and folders that were touched only by them.
        Blocks."""
        with Root(upper) as root:
            for parts in self.missing:
                _drop(root, parts, None)
            for parts, before in self.above:
                _drop(root, parts, before)


def _look(
    base: int,
    parts: tuple[str, ...],
    missing: set[tuple[str, ...]],
    above: dict[tuple[str, ...], tuple[int, int, int]],
) -> None:
    here: tuple[str, ...] = ()
    for count, part in enumerate(parts):
        try:
            opened = open_in(base, "/".join((*here, part)), os.O_PATH)
        except OSError:
            missing.update((*here, *parts[count : count + more + 1]) for more in range(len(parts) - count))
            return
        try:
            status = os.fstat(opened)
            root = str(Path(f"/proc/self/fd/{base}").readlink()).rstrip("/")
            place = str(Path(f"/proc/self/fd/{opened}").readlink())
        finally:
            os.close(opened)
        here = split(place.removeprefix(root))
        if stat.S_ISDIR(status.st_mode) and here:
            above[here] = (status.st_mode, status.st_uid, status.st_gid)


def _drop(root: Root, parts: tuple[str, ...], before: tuple[int, int, int] | None) -> None:
    """Remove an empty file or folder; one that was there before only if it looks as it did."""
    with suppress(OSError):
        parent = root.folder(parts[:-1])
        status = os.stat(parts[-1], dir_fd=parent, follow_symlinks=False)
        if before is not None and (status.st_mode, status.st_uid, status.st_gid) != before:
            return
        if stat.S_ISDIR(status.st_mode):
            if xattrs.is_opaque(f"/proc/self/fd/{parent}/{parts[-1]}"):
                return
            root.forget(parts)
            os.rmdir(parts[-1], dir_fd=parent)
        elif before is None and stat.S_ISREG(status.st_mode) and status.st_size == 0:
            os.unlink(parts[-1], dir_fd=parent)
