"""Files of an instance from outside: `docker cp`, `export`, `diff`, `commit`. Every path is resolved strictly inside its root."""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from insula import clock
from insula.engine.contract import PathStat
from insula.engine.parts import Parts
from insula.engine.resident import Resident
from insula.engine.resolve import clean_path
from insula.engine.roots import Place, mounted, placed
from insula.engine.tarring import write_tar
from insula.engine.users import look_up, read_accounts
from insula.errors import Forbidden, HostFault, InsulaError, Invalid, NotFound
from insula.host import xattrs
from insula.host.folders import entries
from insula.host.rootfd import open_in
from insula.host.tarstream import Pipe, Plain, consume, produce
from insula.host.untar import unpack
from insula.tasks import in_thread

T = TypeVar("T")

# Go's os.FileMode, the form in which the Docker API says a mode (https://pkg.go.dev/io/fs#FileMode).
_GO_KINDS = {
    stat.S_IFDIR: 1 << 31,
    stat.S_IFLNK: 1 << 27,
    stat.S_IFBLK: 1 << 26,
    stat.S_IFCHR: 1 << 26 | 1 << 21,
    stat.S_IFIFO: 1 << 25,
    stat.S_IFSOCK: 1 << 24,
}
_GO_BITS = ((stat.S_ISUID, 1 << 23), (stat.S_ISGID, 1 << 22), (stat.S_ISVTX, 1 << 20))

MODIFIED, ADDED, DELETED = 0, 1, 2


def go_mode(mode: int) -> int:
    """A mode of stat(2) in Go's bits."""
    special = sum(go for bit, go in _GO_BITS if mode & bit)
    return _GO_KINDS.get(stat.S_IFMT(mode), 0) | special | (mode & 0o777)


@contextmanager
def _parent_of(place: Place) -> Iterator[tuple[int, str]]:
    """The folder that holds the path's last part, and that part; the part itself is not followed."""
    root = os.open(place.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        head, name = posixpath.split(place.path.rstrip("/") or "/")
        parent = open_in(root, head or "/", os.O_PATH | os.O_DIRECTORY)
        try:
            yield parent, name or "."
        finally:
            os.close(parent)
    finally:
        os.close(root)


def _in_root(place: Place, path: str, resident: Resident, work: Callable[[int, str], T]) -> T:
    """Work on what the path names. Raises NotFound with the Docker Engine's sentence."""
    try:
        with _parent_of(_real(place) if _followed(path) else place) as (parent, name):
            return work(parent, name)
    except (FileNotFoundError, NotADirectoryError) as fault:
        raise NotFound(
            f"Could not find the file {path} in container {resident.entry.name}", kind="container", name=path
        ) from fault
    except OSError as fault:
        raise _odd(path, fault) from fault


def _odd(path: str, fault: OSError) -> InsulaError:
    """A path that cannot be walked: the client's fault where it goes round in circles or is too long."""
    if fault.errno in (errno.ELOOP, errno.ENAMETOOLONG):
        return Invalid(f"{os.strerror(fault.errno).lower()} in {path[:255]}", field="path")
    return HostFault(f"cannot reach {path[:255]}: {os.strerror(fault.errno or 0)}", code=fault.errno)


def _followed(path: str) -> bool:
    """A trailing `/` or `/.` asks for what a link leads to."""
    return path.endswith(("/", "/.")) and path.strip("/.") != ""


def _real(place: Place) -> Place:
    """The folder behind a link, found inside the root. Raises FileNotFoundError, NotADirectoryError."""
    root = os.open(place.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = open_in(root, place.path, os.O_PATH | os.O_DIRECTORY)
    finally:
        os.close(root)
    try:
        # A descriptor's path on the host, cut back to the root's own.
        inside = Path(f"/proc/self/fd/{found}").readlink()
        base = Path(place.root).resolve()
        return Place(place.root, "/" + str(inside.relative_to(base)), place.readonly)
    except ValueError:
        return place
    finally:
        os.close(found)


# --- docker cp --------------------------------------------------------------------------------------------------


async def stat_path(parts: Parts, resident: Resident, path: str) -> PathStat:
    """Raises NotFound."""
    async with placed(parts, resident, path) as place:
        return await in_thread(_stat, place, path, resident)


def _stat(place: Place, path: str, resident: Resident) -> PathStat:
    def look(parent: int, name: str) -> PathStat:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        target = os.readlink(name, dir_fd=parent) if stat.S_ISLNK(status.st_mode) else ""
        folder = posixpath.dirname(clean_path(path))
        return PathStat(
            name=posixpath.basename(path.rstrip("/")) or "/",
            size=status.st_size,
            mode=go_mode(status.st_mode),
            mtime=clock.rfc3339_nano(datetime.fromtimestamp(status.st_mtime, UTC)),
            link_target=clean_path(posixpath.join(folder, target)) if target else "",
        )

    return _in_root(place, path, resident, look)


async def get_archive(parts: Parts, resident: Resident, path: str) -> AsyncIterator[bytes]:
    """A tar of a path; its first member carries the path's last part as its name, as `docker cp` expects."""
    async with placed(parts, resident, path) as place:
        await in_thread(_stat, place, path, resident)  # refuse before the first byte
        name = "." if path.endswith("/.") else posixpath.basename(path.rstrip("/")) or "/"

        def work(pipe: Pipe) -> None:
            _in_root(place, path, resident, lambda parent, entry: write_tar(pipe, parent, entry, name))

        async for chunk in produce(work, "get archive"):
            yield chunk


async def put_archive(
    parts: Parts,
    resident: Resident,
    path: str,
    archive: AsyncIterator[bytes],
    *,
    no_overwrite_dir: bool,
    as_user: bool = False,
) -> None:
    """Unpack into a folder of the instance. Raises NotFound, Invalid (not a folder, a bad archive), Forbidden (read-only)."""
    async with placed(parts, resident, path) as place:
        if place.readonly:
            raise Forbidden(place.readonly)
        owner = await in_thread(_user_of, resident, place.root) if as_user else None
        folder = await in_thread(_open_folder, place, path, resident)
        try:
            target = f"/proc/self/fd/{folder}"
            await consume(
                archive, lambda source: unpack(Plain(source), target, keep_folders=no_overwrite_dir, owner=owner)
            )
        finally:
            os.close(folder)


def _user_of(resident: Resident, root: str) -> tuple[int, int]:
    """Whom the instance's first process runs as."""
    image = resident.image.config.user if resident.image else ""
    user = look_up(resident.entry.config.user or image, read_accounts(root))
    return user.uid, user.gid


def _open_folder(place: Place, path: str, resident: Resident) -> int:
    root = os.open(place.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return open_in(root, place.path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError as fault:
        raise NotFound(
            f"Could not find the file {path} in container {resident.entry.name}", kind="container", name=path
        ) from fault
    except NotADirectoryError as fault:
        raise Invalid("extraction point is not a directory", field="path") from fault
    except OSError as fault:
        raise _odd(path, fault) from fault
    finally:
        os.close(root)


async def export(parts: Parts, resident: Resident) -> AsyncIterator[bytes]:
    """The root file system without what is mounted into it."""
    async with mounted(parts, resident) as merged:

        def work(pipe: Pipe) -> None:
            root = os.open(merged, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                write_tar(pipe, root, ".", "")
            finally:
                os.close(root)

        async for chunk in produce(work, "export"):
            yield chunk


# --- docker diff and sizes --------------------------------------------------------------------------------------


async def changes(resident: Resident) -> list[tuple[str, int]]:
    """Paths that differ from the image, in order: 0 modified, 1 added, 2 deleted."""
    return await in_thread(_changes, resident.entry.upper, resident.entry.lowers)


def _changes(upper: str, lowers: tuple[str, ...]) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    if upper:
        _walk_upper(upper, "", lowers, found)
    return found


def _walk_upper(upper: str, below: str, lowers: tuple[str, ...], found: list[tuple[str, int]]) -> None:
    with suppress(FileNotFoundError):
        for entry in sorted(entries(upper + below), key=lambda each: each.name):
            path = f"{below}/{entry.name}"
            status = entry.stat(follow_symlinks=False)
            if xattrs.is_whiteout(status):
                found.append((path, DELETED))
                continue
            found.append((path, MODIFIED if _in_lowers(path, lowers) else ADDED))
            if entry.is_dir(follow_symlinks=False):
                _walk_upper(upper, path, lowers, found)


def _in_lowers(path: str, lowers: tuple[str, ...]) -> bool:
    """Whether the image has that path: the topmost layer that says anything about it decides."""
    for lower in lowers:
        try:
            return not xattrs.is_whiteout(os.lstat(lower + path))
        except (FileNotFoundError, NotADirectoryError):
            if _hides(lower, path):
                return False
    return False


def _hides(lower: str, path: str) -> bool:
    """Whether a layer covers a path that it does not have: by an opaque folder, a whiteout or a file above it."""
    folder = posixpath.dirname(path)
    while folder not in ("", "/"):
        try:
            status = os.lstat(lower + folder)
        except OSError:
            folder = posixpath.dirname(folder)
            continue
        return not stat.S_ISDIR(status.st_mode) or xattrs.is_opaque(lower + folder)
    return False


async def disk_usage(resident: Resident) -> tuple[int, int]:
    """Bytes of the writable layer, and of all of the root file system."""
    own = await in_thread(_size_of, resident.entry.upper) if resident.entry.upper else 0
    return own, own + (resident.image.size_bytes if resident.image else 0)


def _size_of(folder: str) -> int:
    """Bytes of the regular files below, each counted once."""
    total = 0
    seen: set[tuple[int, int]] = set()
    pending = [folder]
    while pending:
        with suppress(FileNotFoundError, NotADirectoryError):
            for entry in entries(pending.pop()):
                status = entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif stat.S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    total += status.st_size
    return total
