"""Find a file in a stack of layers without mounting it: the merged view of overlayfs, followed name by name."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from insula.errors import NotFound
from insula.host import xattrs

_MAX_LINKS = 40  # as path_resolution(7)


def find_file(lowers: Sequence[str], path: str) -> str:
    """The path on this host of a regular file in the merged view of `lowers` (topmost first). Symlinks, absolute ones
    too, stay inside. Raises NotFound. Blocks."""
    found = _walk(lowers, path)
    if found is None:
        raise NotFound(f"no such file in the image: {path}")
    if not stat.S_ISREG(os.lstat(found).st_mode):
        raise NotFound(f"not a regular file in the image: {path}")
    return found


def _walk(lowers: Sequence[str], path: str) -> str | None:
    pending = [part for part in PurePosixPath(path).parts if part != "/"][::-1]
    stack: list[list[str]] = [list(lowers)]  # for each folder on the way: where its content comes from, topmost first
    entry: str | None = None
    links = 0
    while pending:
        part = pending.pop()
        if part == "..":
            stack = stack[:-1] or stack
            entry = None
            continue
        if entry is not None:
            return None  # a file in the middle of the path
        found = _entries(stack[-1], part)
        if not found:
            return None
        mode = os.lstat(found[0]).st_mode
        if stat.S_ISLNK(mode):
            links += 1
            if links > _MAX_LINKS:
                return None
            target = PurePosixPath(Path(found[0]).readlink())
            if target.is_absolute():
                stack = stack[:1]
            pending += [step for step in target.parts if step != "/"][::-1]
        elif stat.S_ISDIR(mode):
            stack.append(found)
        else:
            entry = found[0]
    return entry


def _entries(folders: Sequence[str], name: str) -> list[str]:
    """One name in the folders that make up a merged folder: a file alone, or the folders that merge."""
    found: list[str] = []
    for folder in folders:
        path = f"{folder}/{name}"
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if xattrs.is_whiteout(status):
            break
        if not stat.S_ISDIR(status.st_mode):
            return found or [path]
        found.append(path)
        if xattrs.is_opaque(path):
            break
    return found
