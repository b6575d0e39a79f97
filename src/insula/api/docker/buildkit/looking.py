"""Looking into a result's root file system, whose links lead nowhere else. Blocks, but for the messages.

Source: BuildKit's `frontend/gateway/pb/gateway.proto`, `cache/util/fsutil.go`.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from msgspec import Struct

from insula.api.docker.buildkit.gomode import to_go
from insula.api.docker.buildkit.session_messages import Stat
from insula.errors import Invalid, NotFound
from insula.host.rootfd import open_in

FILE_LIMIT = 8 * 1024 * 1024  # of one answer
ENTRIES_LIMIT = 50_000


class FileResponse(Struct, frozen=True):
    """LLBBridge.ReadFile."""

    data: Annotated[bytes, 1] = b""


class DirResponse(Struct, frozen=True):
    """LLBBridge.ReadDir."""

    entries: Annotated[tuple[Stat, ...], 1] = ()


class StatResponse(Struct, frozen=True):
    """LLBBridge.StatFile."""

    stat: Annotated[Stat | None, 1] = None


@contextmanager
def _opened(root: str, path: str, flags: int) -> Iterator[int]:
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        file = open_in(folder, path.lstrip("/") or ".", flags)
    except FileNotFoundError:
        raise NotFound(f"open {path}: no such file or directory") from None
    except OSError as fault:
        raise Invalid(f"open {path}: {fault.strerror}") from None
    finally:
        os.close(folder)
    try:
        yield file
    finally:
        os.close(file)


def read(root: str, path: str, offset: int, length: int) -> bytes:
    """A part of a file; `length` 0 means all of it, up to the limit. Raises NotFound, Invalid."""
    with _opened(root, path, os.O_RDONLY | os.O_NONBLOCK) as file:
        if not os.path.isfile(f"/proc/self/fd/{file}"):  # noqa: PTH113
            raise Invalid(f"read {path}: not a regular file")
        return os.pread(file, min(length or FILE_LIMIT, FILE_LIMIT), max(0, offset))


def entries(root: str, path: str, pattern: str) -> list[Stat]:
    """A folder's entries, those whose names match. Raises NotFound, Invalid."""
    with _opened(root, path, os.O_RDONLY | os.O_DIRECTORY) as folder:
        found = os.listdir(folder)  # noqa: PTH208
        names = sorted(name for name in found if not pattern or fnmatch.fnmatchcase(name, pattern))
        if len(names) > ENTRIES_LIMIT:
            raise Invalid(f"{path} has more than {ENTRIES_LIMIT} entries")
        return [
            _words(name, os.stat(name, dir_fd=folder, follow_symlinks=False), _link(name, folder)) for name in names
        ]


def entry(root: str, path: str) -> Stat:
    """One entry, links followed inside the root. Raises NotFound, Invalid."""
    with _opened(root, path, os.O_PATH) as file:
        return _words(path.rstrip("/").rpartition("/")[2], os.fstat(file), "")


def _link(name: str, folder: int) -> str:
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError:
        return ""


def _words(name: str, found: os.stat_result, link: str) -> Stat:
    return Stat(name, to_go(found.st_mode), found.st_uid, found.st_gid, found.st_size, found.st_mtime_ns, link)
