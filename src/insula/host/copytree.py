"""Copy a folder with everything that makes it up: owners, modes, times, extended attributes, hard links, holes, devices."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack

from insula.errors import HostFault, Invalid
from insula.host import xattrs

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
MAX_DEPTH = 200  # two descriptors each
_CHUNK = 8 * 1024 * 1024


def copy_tree(source: str, target: str) -> None:
    """Copy the content of folder `source` into the existing, empty folder `target`, which gets its owner, mode and
    attributes too. Symlinks are copied, never followed. Other mounts below `source` are not entered. Blocks.

    Raises HostFault.
    """
    try:
        with ExitStack() as files:
            from_folder, to_folder = os.open(source, _FOLDER), os.open(target, _FOLDER)
            files.callback(os.close, from_folder)
            files.callback(os.close, to_folder)
            _Copy(from_folder, to_folder).folder(from_folder, to_folder)
    except OSError as error:
        name = error.filename or source
        raise HostFault(f"cannot copy {name!r}: {os.strerror(error.errno or 0)}", code=error.errno) from None


class _Copy:
    def __init__(self, from_root: int, to_root: int) -> None:
        self._device = os.fstat(from_root).st_dev
        self._to_root = to_root
        self._linked: dict[int, str] = {}  # inode to its path below the target's root

    def folder(self, from_folder: int, to_folder: int, path: str = "") -> None:
        if path.count("/") > MAX_DEPTH:
            raise Invalid(f"the folders to copy are nested more than {MAX_DEPTH} deep")
        for name in os.listdir(from_folder):
            status = os.stat(name, dir_fd=from_folder, follow_symlinks=False)
            if status.st_dev == self._device or not stat.S_ISDIR(status.st_mode):
                self._entry(from_folder, to_folder, name, status, f"{path}{name}")
        status = os.fstat(from_folder)
        os.fchown(to_folder, status.st_uid, status.st_gid)
        os.fchmod(to_folder, stat.S_IMODE(status.st_mode))
        xattrs.set_all(to_folder, xattrs.get_all(from_folder))
        os.utime(to_folder, ns=(status.st_atime_ns, status.st_mtime_ns))

    def _entry(self, from_folder: int, to_folder: int, name: str, status: os.stat_result, path: str) -> None:
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=to_folder)
            with ExitStack() as files:
                inner_from, inner_to = (
                    os.open(name, _FOLDER, dir_fd=from_folder),
                    os.open(name, _FOLDER, dir_fd=to_folder),
                )
                files.callback(os.close, inner_from)
                files.callback(os.close, inner_to)
                self.folder(inner_from, inner_to, f"{path}/")
            return
        if status.st_nlink > 1:
            if (first := self._linked.get(status.st_ino)) is not None:
                os.link(first, name, src_dir_fd=self._to_root, dst_dir_fd=to_folder, follow_symlinks=False)
                return
            self._linked[status.st_ino] = path
        if kind == stat.S_IFREG:
            self._file(from_folder, to_folder, name, status)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=from_folder), name, dir_fd=to_folder)
            self._finish(from_folder, to_folder, name, status)
        elif kind != stat.S_IFSOCK:  # a socket without its listener is nothing
            os.mknod(name, status.st_mode, status.st_rdev, dir_fd=to_folder)
            os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=to_folder)  # mknod obeys the umask
            self._finish(from_folder, to_folder, name, status)

    def _file(self, from_folder: int, to_folder: int, name: str, status: os.stat_result) -> None:
        with ExitStack() as files:
            source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=from_folder)
            files.callback(os.close, source)
            target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=to_folder)
            files.callback(os.close, target)
            copy_data(source, target, status.st_size)
            os.fchown(target, status.st_uid, status.st_gid)
            os.fchmod(target, stat.S_IMODE(status.st_mode))
            xattrs.set_all(target, xattrs.get_all(source))
            os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))

    def _finish(self, from_folder: int, to_folder: int, name: str, status: os.stat_result) -> None:
        os.chown(name, status.st_uid, status.st_gid, dir_fd=to_folder, follow_symlinks=False)
        attributes = xattrs.get_all(f"/proc/self/fd/{from_folder}/{name}")
        xattrs.set_all(f"/proc/self/fd/{to_folder}/{name}", attributes)
        times = (status.st_atime_ns, status.st_mtime_ns)
        os.utime(name, ns=times, dir_fd=to_folder, follow_symlinks=False)


def copy_data(source: int, target: int, size: int) -> None:
    """The extents that hold data, the kernel copying (and sharing blocks where the file system can)."""
    os.ftruncate(target, size)
    position = 0
    while position < size:
        try:
            start = os.lseek(source, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return
            raise
        end = os.lseek(source, start, os.SEEK_HOLE)
        _copy_extent(source, target, start, end)
        position = end


def _copy_extent(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        try:
            done = os.copy_file_range(source, target, min(_CHUNK, end - start), start, start)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            done = os.pwrite(target, os.pread(source, min(_CHUNK, end - start), start), start)
        if done == 0:
            return  # the file became shorter meanwhile
        start += done
