"""The writable layer of an instance as a layer tar: overlayfs's marks become OCI whiteouts.

See the OCI image specification, layer.md.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from typing import Any

from insula.errors import HostFault, Invalid
from insula.host import xattrs
from insula.host.tarstream import forward_tar
from insula.host.untar import OPAQUE_MARK, WHITEOUT

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
MAX_DEPTH = 200  # a descriptor each; no program that does work goes deeper
# What belongs to the content; labels of a security module belong to this machine.
# Places made for the files that every container is given: empty below what is mounted there, and no part of the content.
_PLACES = frozenset({".dockerenv", "etc/hostname", "etc/hosts", "etc/resolv.conf"})
_KEPT_XATTRS = ("security.capability", "user.")


def write_diff(upper: str, out: Any) -> int:
    """Write the tar of a writable layer to a file-like object. Returns the bytes of its files. Blocks. Raises HostFault.

    The instance may go on writing meanwhile: a file is as long as it was when its turn came.
    """
    try:
        with forward_tar(out) as tar:
            root = os.open(upper, _FOLDER)
            try:
                work = _Diff(tar)
                work.folder(root, "")
            finally:
                os.close(root)
    except OSError as error:
        name = error.filename or upper
        raise HostFault(f"cannot read {name!r} of the writable layer: {os.strerror(error.errno or 0)}") from None
    return work.size_bytes


class _Diff:
    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._linked: dict[int, str] = {}
        self.size_bytes = 0

    def folder(self, folder: int, path: str) -> None:
        if path.count("/") > MAX_DEPTH:
            raise Invalid(f"the folders of the writable layer are nested more than {MAX_DEPTH} deep")
        if path and xattrs.is_opaque(folder):
            self._tar.addfile(_mark(path + OPAQUE_MARK))
        for name in sorted(os.listdir(folder)):
            try:
                self._entry(folder, name, path + name)
            except FileNotFoundError:
                continue  # deleted while we looked

    def _entry(self, folder: int, name: str, path: str) -> None:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if path in _PLACES and stat.S_ISREG(status.st_mode) and status.st_size == 0:
            return
        if xattrs.is_whiteout(status):
            self._tar.addfile(_mark(path[: len(path) - len(name)] + WHITEOUT + name))
        elif stat.S_ISDIR(status.st_mode):
            inner = os.open(name, _FOLDER, dir_fd=folder)
            try:
                self._tar.addfile(header_of(path, status, inner))
                self.folder(inner, path + "/")
            finally:
                os.close(inner)
        elif status.st_nlink > 1 and status.st_ino in self._linked:
            header = header_of(path, status, None)
            header.type, header.linkname, header.size = tarfile.LNKTYPE, self._linked[status.st_ino], 0
            self._tar.addfile(header)
        elif not stat.S_ISSOCK(status.st_mode):
            self._linked[status.st_ino] = path
            self._leaf(folder, name, path, status)

    def _leaf(self, folder: int, name: str, path: str, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            header = header_of(path, status, None)
            if stat.S_ISLNK(status.st_mode):
                header.linkname = os.readlink(name, dir_fd=folder)
            self._tar.addfile(header)
            return
        file = os.open(name, _FILE, dir_fd=folder)
        try:
            header = header_of(path, os.fstat(file), file)
            self.size_bytes += header.size
            self._tar.addfile(header, _Exact(file))  # type: ignore[arg-type]
        finally:
            os.close(file)


class _Exact:
    """A file that is exactly as long as its header says: one that shrank meanwhile is filled up with zeros."""

    def __init__(self, file: int) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        return os.read(self._file, size).ljust(size, b"\0")


_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


def header_of(path: str, status: os.stat_result, opened: int | None) -> tarfile.TarInfo:
    """The tar header of one entry. Times are whole seconds, as Docker writes them."""
    kind = stat.S_IFMT(status.st_mode)
    header = tarfile.TarInfo(path)
    header.type = _TYPES[kind]
    header.mode = stat.S_IMODE(status.st_mode)
    header.uid, header.gid = status.st_uid, status.st_gid
    header.mtime = int(status.st_mtime)
    header.size = status.st_size if kind == stat.S_IFREG else 0
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        header.devmajor, header.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    if opened is not None:
        header.pax_headers = dict(_pax_xattrs(opened))
    return header


def _pax_xattrs(opened: int) -> Iterator[tuple[str, str]]:
    for name, value in sorted(xattrs.get_all(opened).items()):
        if name.startswith(_KEPT_XATTRS):
            yield f"SCHILY.xattr.{name}", value.decode("utf-8", "surrogateescape")


def _mark(path: str) -> tarfile.TarInfo:
    header = tarfile.TarInfo(path)
    header.mode = 0o600
    return header
