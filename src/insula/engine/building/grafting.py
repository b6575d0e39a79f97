"""COPY and ADD: sources found in a context or a root file system, and put into another root file system.

Rules are the Dockerfile reference's. Sources are resolved inside of their root, links in it included; so is the target. Below
a source nothing is followed. Both trees are private to the build, so nobody changes them meanwhile. Everything blocks.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from insula.errors import HostFault, Invalid
from insula.host import xattrs
from insula.host.copytree import copy_data
from insula.host.folders import entries
from insula.host.rootfd import Root, open_in, split
from insula.images.dockerfile.globs import Glob, is_wild
from insula.images.dockerfile.ignore import Matcher

MAX_DEPTH = 200
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


class Found(Struct, frozen=True, kw_only=True):
    """One source. `path` on this host; `name` its last part as it was asked for; `relative` its place in its root; `into`: where
    below the target it goes (`--parents`), else empty. `skip` are patterns of what is left out, matched on places in the root
    (`.dockerignore`); `exclude` likewise on places below the source."""

    path: str
    name: str
    relative: str
    into: str = ""
    skip: Matcher | None = None
    exclude: Matcher | None = None

    @property
    def is_folder(self) -> bool:
        """Whether its content is copied."""
        return stat.S_ISDIR(os.lstat(self.path).st_mode)


class Options(Struct, frozen=True, kw_only=True):
    """How sources are put in place. `owner` None keeps the sources' owners, `mode` None their modes."""

    owner: tuple[int, int] | None = (0, 0)
    mode: int | None = None
    owners_of_new_folders: tuple[int, int] = (0, 0)


class Missing(Invalid):
    """A source is not there; `path` as it was asked for."""

    def __init__(self, path: str) -> None:
        super().__init__(f'"{path}": not found')
        self.path = path


# --- finding ------------------------------------------------------------------------------------------------------


def find(
    root: str,
    source: str,
    *,
    skip: Matcher | None = None,
    exclude: Matcher | None = None,
    parents: bool = False,
) -> list[Found]:
    """What a source stands for, in order; a pattern may stand for nothing. Raises Missing, Invalid."""
    pivot, _, rest = source.partition("/./") if parents else ("", "", source)
    below = [part for part in posixpath.normpath("/" + (f"{pivot}/{rest}" if pivot else rest)).split("/") if part]
    wild = is_wild(source)
    cut = len([part for part in posixpath.normpath("/" + pivot).split("/") if part])
    base = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = [] if below else [""]
        if below:
            found = _expand(base, below, wild)
        made = [_found(base, relative, cut, parents, skip, exclude) for relative in sorted(found)]
    finally:
        os.close(base)
    kept = [each for each in made if each is not None]
    if not kept and not wild:
        raise Missing("/" + "/".join(below))
    return kept


def _expand(base: int, parts: Sequence[str], wild: bool) -> list[str]:
    """The places that a pattern stands for."""
    places = [""]
    for part in parts:
        if not (wild and is_wild(part)):
            places = [f"{place}/{part}".lstrip("/") for place in places]
            continue
        glob, inner = Glob(part), []
        for place in places:
            inner += [f"{place}/{name}".lstrip("/") for name in _names(base, place) if glob.matches(name)]
        places = inner
    return places


def _names(base: int, place: str) -> list[str]:
    try:
        folder = open_in(base, place or ".", os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return []
    try:
        return os.listdir(folder)  # noqa: PTH208 - a descriptor
    finally:
        os.close(folder)


def _found(
    base: int, relative: str, cut: int, parents: bool, skip: Matcher | None, exclude: Matcher | None
) -> Found | None:
    try:
        opened = open_in(base, relative or ".", os.O_PATH)
    except OSError:
        return None
    try:
        path = str(Path(f"/proc/self/fd/{opened}").readlink())
        folder = stat.S_ISDIR(os.fstat(opened).st_mode)
    finally:
        os.close(opened)
    if relative and skip is not None and skip.ignores(relative) and not (folder and skip.has_exceptions):
        return None
    into = "/".join(relative.split("/")[cut:]) if parents else ""
    if relative and not folder and exclude is not None and exclude.ignores(posixpath.basename(relative)):
        return None
    return Found(path=path, name=posixpath.basename(relative), relative=relative, into=into, skip=skip, exclude=exclude)


def walk(source: Found) -> Iterator[tuple[str, str, os.stat_result]]:
    """Every entry of a source in order, folders before what is in them: its place below the source (empty for itself), its
    path, its status."""
    status = os.lstat(source.path)
    yield "", source.path, status
    if stat.S_ISDIR(status.st_mode):
        yield from _walk(source, source.path, "", 0)


def _walk(source: Found, folder: str, below: str, depth: int) -> Iterator[tuple[str, str, os.stat_result]]:
    if depth > MAX_DEPTH:
        raise Invalid(f"the folders to copy are nested more than {MAX_DEPTH} deep")
    for entry in sorted(entries(folder), key=lambda each: each.name):
        relative = f"{below}{entry.name}"
        is_folder = entry.is_dir(follow_symlinks=False)
        out = _left_out(source, relative)
        if out and not is_folder:
            continue
        if is_folder:
            inner = _walk(source, entry.path, f"{relative}/", depth + 1)
            if out:  # something below it may have been taken back in
                if _takes_back(source):
                    first = next(inner, None)
                    if first is not None:
                        yield relative, entry.path, entry.stat(follow_symlinks=False)
                        yield first
                        yield from inner
                continue
            yield relative, entry.path, entry.stat(follow_symlinks=False)
            yield from inner
        else:
            yield relative, entry.path, entry.stat(follow_symlinks=False)


def _left_out(source: Found, relative: str) -> bool:
    place = f"{source.relative}/{relative}" if source.relative else relative
    return (source.skip is not None and source.skip.ignores(place)) or (
        source.exclude is not None and source.exclude.ignores(relative)
    )


def _takes_back(source: Found) -> bool:
    return any(each is not None and each.has_exceptions for each in (source.skip, source.exclude))


# --- putting ------------------------------------------------------------------------------------------------------


def target_folder(root: Root, target: str, options: Options) -> int:
    """A descriptor of the target as a folder, made with its parents where it is missing; owned by `root`. Raises Invalid,
    HostFault."""
    parts = split(target)
    try:
        return _make_folder(root, parts, options)
    except OSError as fault:
        raise _refusal(fault, target) from None


def graft(sources: Sequence[Found], root: str, target: str, options: Options) -> None:
    """Put sources at `target`: a folder when it ends with a slash, is one already, or takes several or a folder's content.
    Raises Invalid, HostFault."""
    with Root(root) as inside:
        try:
            for source in sources:
                _one(inside, source, target, options)
        except OSError as fault:
            raise _refusal(fault, target) from None


def write_file(root: str, target: str, data: bytes, options: Options, *, name: str = "") -> None:
    """Put a file made of bytes at `target`, or below it as `name` where it is a folder. Raises Invalid, HostFault."""
    with Root(root) as inside:
        try:
            parent, last = _place_of_file(inside, target, name, options)
            file = _new_file(parent, last)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(file, view) :]
                os.fchown(file, *(options.owner or (0, 0)))
                os.fchmod(file, options.mode if options.mode is not None else 0o644)
            finally:
                os.close(file)
        except OSError as fault:
            raise _refusal(fault, target) from None


def _refusal(fault: OSError, target: str) -> Exception:
    reason = os.strerror(fault.errno or 0)
    if fault.errno in _DISK:
        return HostFault(f"cannot write {target!r}: {reason}", code=fault.errno)
    if fault.errno in (errno.ENOTDIR, errno.EEXIST):
        return Invalid(f"cannot copy to non-directory: {target}")
    if fault.errno == errno.EISDIR:
        return Invalid(f"cannot replace to directory {target} with file")
    return Invalid(f"cannot copy to {target!r}: {reason}")


def _one(root: Root, source: Found, target: str, options: Options) -> None:
    if source.into:
        target = f"{target.rstrip('/')}/{source.into}"
        _make_parents(root, source, target, options)
    if source.is_folder:
        parts = split(target)
        known = _is_folder(root, parts)
        top = _make_folder(root, parts, options)
        _Graft(options).content(source, top, set_top=not known)
        return
    parent, name = _place_of_file(root, target, "" if source.into else source.name, options)
    _Graft(options).entry(source.path, os.lstat(source.path), parent, name)


def _make_parents(root: Root, source: Found, target: str, options: Options) -> None:
    """With --parents, folders on the way look like the source's."""
    depth = source.into.count("/")
    folder, place = posixpath.dirname(source.path), posixpath.dirname(target)
    missing = []
    for _ in range(depth):
        if not _is_folder(root, split(place)):
            missing.append((folder, place))
        folder, place = posixpath.dirname(folder), posixpath.dirname(place)
    for folder, place in reversed(missing):
        made = _make_folder(root, split(place), options)
        _Graft(options).finish_folder(folder, os.lstat(folder), made)


def _is_folder(root: Root, parts: tuple[str, ...]) -> bool:
    try:
        root.folder(parts)
    except OSError:
        return False
    return True


def _make_folder(root: Root, parts: tuple[str, ...], options: Options) -> int:
    """Missing folders belong to the owner that was asked for, else to root."""
    for count in range(1, len(parts) + 1):
        here = parts[:count]
        if not _is_folder(root, here):
            made = root.folder(here, create=True)
            os.fchown(made, *(options.owner or options.owners_of_new_folders))
    return root.folder(parts)


def _place_of_file(root: Root, target: str, name: str, options: Options) -> tuple[int, str]:
    """The folder and the name that a file gets. A link at its place is followed, inside the root."""
    parts = split(target)
    if target.endswith(("/", "/.")) or not parts or _is_folder(root, parts):
        if not name:
            raise Invalid(f"cannot replace to directory {target} with file")
        return _make_folder(root, parts, options), name
    real = _real(root, parts)
    return _make_folder(root, real[:-1], options), real[-1]


def _real(root: Root, parts: tuple[str, ...]) -> tuple[str, ...]:
    """Where a file really is that is there already, through links."""
    try:
        opened = open_in(root.fd, "/".join(parts), os.O_PATH)
    except OSError:
        return parts
    try:
        base = str(Path(f"/proc/self/fd/{root.fd}").readlink())
        path = str(Path(f"/proc/self/fd/{opened}").readlink())
    finally:
        os.close(opened)
    return split(path[len(base.rstrip("/")) :]) if path.startswith(base) else parts


def _new_file(parent: int, name: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    _make_room(parent, name)
    return os.open(name, flags, 0o600, dir_fd=parent)


def _make_room(parent: int, name: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=parent)


def _first_name(linked: dict[tuple[int, int], str], status: os.stat_result, relative: str) -> str | None:
    """The place that holds this file already; None when it is the first of its names, or the only one."""
    if status.st_nlink < 2 or not stat.S_ISREG(status.st_mode):
        return None
    first = linked.setdefault((status.st_dev, status.st_ino), relative)
    return None if first == relative else first


class _Graft:
    """Entries, one by one, with owners and modes as asked."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def content(self, source: Found, top: int, *, set_top: bool) -> None:
        """A folder's content into a folder; that one gets the source's looks only when it is new."""
        folders: dict[str, int] = {"": top}
        linked: dict[tuple[int, int], str] = {}  # files that have more names: where the first one was put
        later: list[tuple[str, os.stat_result, int]] = []
        try:
            for relative, path, status in walk(source):
                if not relative:
                    if set_top:
                        later.append((path, status, top))
                    continue
                above, _, name = relative.rpartition("/")
                if stat.S_ISDIR(status.st_mode):
                    folders[relative] = self._folder(folders[above], name)
                    later.append((path, status, folders[relative]))
                    self._let_go(folders, relative, top, later)
                elif (first := _first_name(linked, status, relative)) is None:
                    self.entry(path, status, folders[above], name)
                else:
                    _make_room(folders[above], name)
                    os.link(first, name, src_dir_fd=top, dst_dir_fd=folders[above], follow_symlinks=False)
            for path, status, opened in reversed(later):
                self.finish_folder(path, status, opened)
        finally:
            for opened in set(folders.values()) - {top}:
                os.close(opened)

    def _let_go(
        self, folders: dict[str, int], now: str, top: int, later: list[tuple[str, os.stat_result, int]]
    ) -> None:
        """Close folders that the walk has left: only those above the present one stay open."""
        for relative in [each for each in folders if each and not f"{now}/".startswith(f"{each}/")]:
            opened = folders.pop(relative)
            for item in [item for item in later if item[2] == opened and opened != top]:
                self.finish_folder(*item)
                later.remove(item)
            os.close(opened)

    def _folder(self, parent: int, name: str) -> int:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                raise Invalid(f"cannot replace file {name!r} with a directory") from None
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)

    def finish_folder(self, path: str, status: os.stat_result, opened: int) -> None:
        """Owner, mode, attributes and times."""
        os.fchown(opened, *self._owner(status))
        os.fchmod(opened, self._mode(status))
        self._attributes(path, opened)
        os.utime(opened, ns=(status.st_mtime_ns, status.st_mtime_ns))

    def entry(self, path: str, status: os.stat_result, parent: int, name: str) -> None:
        """A file, a link, a device, a FIFO. Sockets are left out."""
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFREG:
            self._file(path, status, parent, name)
            return
        if kind == stat.S_IFSOCK:
            return
        _make_room(parent, name)
        if kind == stat.S_IFLNK:
            os.symlink(os.readlink(path), name, dir_fd=parent)  # noqa: PTH115 - as it is written
        else:
            os.mknod(name, kind | 0o600, status.st_rdev, dir_fd=parent)
        os.chown(name, *self._owner(status), dir_fd=parent, follow_symlinks=False)
        if kind != stat.S_IFLNK:
            os.chmod(name, self._mode(status), dir_fd=parent)
        os.utime(name, ns=(status.st_mtime_ns, status.st_mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _file(self, path: str, status: os.stat_result, parent: int, name: str) -> None:
        target = _new_file(parent, name)
        try:
            source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                copy_data(source, target, status.st_size)
            finally:
                os.close(source)
            os.fchown(target, *self._owner(status))
            os.fchmod(target, self._mode(status))
            self._attributes(path, target)
            os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))
        finally:
            os.close(target)

    def _attributes(self, path: str, opened: int) -> None:
        kept = {
            name: value
            for name, value in xattrs.get_all(path).items()
            if name == "security.capability" or name.startswith("user.")
        }
        if kept:
            xattrs.set_all(opened, kept)

    def _owner(self, status: os.stat_result) -> tuple[int, int]:
        return self._options.owner or (status.st_uid, status.st_gid)

    def _mode(self, status: os.stat_result) -> int:
        return self._options.mode if self._options.mode is not None else stat.S_IMODE(status.st_mode)
