"""A folder or file as a tar stream, walked by descriptors so that nothing that changes meanwhile leads outside. Blocks."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from typing import IO, cast

from insula.errors import NotFound
from insula.host import xattrs
from insula.host.tarstream import Pipe, forward_tar

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_KINDS = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


def write_tar(pipe: Pipe, parent: int, entry: str, name: str) -> None:
    """Write `entry` of the folder behind `parent` and all below it; in the archive it is called `name`; with an empty name
    what lies in a folder has no prefix. Sockets are left out: a tar cannot hold them. Raises NotFound."""
    with forward_tar(pipe) as archive:
        try:
            _Writer(archive).add(parent, entry, name)
        except FileNotFoundError as fault:
            raise NotFound(f"Could not find the file {entry}") from fault


class _Padded:
    """A file that keeps its promised size: the tar's header is written already when it shrinks."""

    def __init__(self, file: int, size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        data = os.read(self._file, wanted) if wanted else b""
        if len(data) < wanted:
            data += os.read(self._file, wanted - len(data))
        data += bytes(wanted - len(data))
        self._left -= wanted
        return data


class _Writer:
    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._links: dict[tuple[int, int], str] = {}

    def add(self, parent: int, entry: str, name: str) -> None:
        status = os.stat(entry, dir_fd=parent, follow_symlinks=False)
        kind = _KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is None:
            return
        member = self._header(parent, entry, name, status, kind)
        if member.type == tarfile.REGTYPE:
            self._file(parent, entry, member)
        else:
            self._archive.addfile(member)
        if kind == tarfile.DIRTYPE:
            self._folder(parent, entry, name)

    def _header(self, parent: int, entry: str, name: str, status: os.stat_result, kind: bytes) -> tarfile.TarInfo:
        member = tarfile.TarInfo(name or ".")
        member.type, member.mode = kind, stat.S_IMODE(status.st_mode)
        member.uid, member.gid = status.st_uid, status.st_gid
        member.mtime = status.st_mtime_ns / 1e9 if status.st_mtime_ns % 1_000_000_000 else status.st_mtime_ns // 10**9
        if kind == tarfile.SYMTYPE:
            member.linkname = os.readlink(entry, dir_fd=parent)
        elif kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
            member.devmajor, member.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
        elif kind == tarfile.REGTYPE:
            member.size = status.st_size
            if status.st_nlink > 1:
                self._link(member, (status.st_dev, status.st_ino))
        return member

    def _link(self, member: tarfile.TarInfo, identity: tuple[int, int]) -> None:
        first = self._links.setdefault(identity, member.name)
        if first != member.name:
            member.type, member.linkname, member.size = tarfile.LNKTYPE, first, 0

    def _file(self, parent: int, entry: str, member: tarfile.TarInfo) -> None:
        file = os.open(entry, _OPEN, dir_fd=parent)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                return  # replaced since it was looked at
            member.size = status.st_size
            member.pax_headers = _attributes(file)
            self._archive.addfile(member, cast(IO[bytes], _Padded(file, member.size)))
        finally:
            os.close(file)

    def _folder(self, parent: int, entry: str, name: str) -> None:
        folder = os.open(entry, _OPEN | os.O_DIRECTORY, dir_fd=parent)
        try:
            for child in self._children(folder):
                try:
                    self.add(folder, child, f"{name.rstrip('/')}/{child}" if name else child)
                except FileNotFoundError:
                    continue  # gone since it was listed
        finally:
            os.close(folder)

    def _children(self, folder: int) -> Iterator[str]:
        return iter(sorted(os.listdir(folder)))


def _attributes(file: int) -> dict[str, str]:
    found = xattrs.get_all(file)
    return {f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape") for name, value in found.items()}
