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
    too, stay inside. A folder that holds exactly one regular file stands for it, as `/disk` of a KubeVirt containerDisk
    does. Raises NotFound. Blocks."""
    found = _walk(lowers, path)
    if len(found) == 1 and stat.S_ISREG(os.lstat(found[0]).st_mode):
        return found[0]
    if found and stat.S_ISDIR(os.lstat(found[0]).st_mode):
        names = sorted({inner.name for folder in found for inner in Path(folder).iterdir()})
        inside = [merged[0] for name in names if (merged := _entries(found, name))]
        files = [each for each in inside if stat.S_ISREG(os.lstat(each).st_mode)]
        if len(files) == 1:
            return files[0]
        raise NotFound(f"the folder {path} of the image holds {len(files)} files, not exactly one")
    raise NotFound(f"no such file in the image: {path}")


def _walk(lowers: Sequence[str], path: str) -> list[str]:
    """Where a path's content is: one file, or the folders that merge; nothing when it does not exist."""
    pending = [part for part in PurePosixPath(path).parts if part != "/"][::-1]
    stack: list[list[str]] = [list(lowers)]  # for each folder on the way: where its content comes from, topmost first
    links = 0
    while pending:
        part = pending.pop()
        if part == "..":
            stack = stack[:-1] or stack
            continue
        found = _entries(stack[-1], part)
        if not found:
            return []
        mode = os.lstat(found[0]).st_mode
        if stat.S_ISLNK(mode):
            links += 1
            if links > _MAX_LINKS:
                return []
            target = PurePosixPath(Path(found[0]).readlink())
            if target.is_absolute():
                stack = stack[:1]
            pending += [step for step in target.parts if step != "/"][::-1]
        elif stat.S_ISDIR(mode):
            stack.append(found)
        elif pending:
            return []  # a file in the middle of the path
        else:
            return found
    return stack[-1]


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
