"""Unpack a tar below a folder, never outside of it: image layers, root file systems, `docker cp`.

Names are resolved by `rootfd`, so links of any kind lead nowhere else. Owners, modes (setuid too), times, hard links,
device nodes, FIFOs and extended attributes are kept. With `overlay`, OCI whiteouts become overlayfs's, see the OCI image
specification, layer.md.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from base64 import b64decode

from insula.errors import HostFault, Invalid, TooLarge
from insula.host import xattrs
from insula.host.rmtree import remove_tree
from insula.host.rootfd import Root, open_in, split
from insula.host.tarmembers import Members
from insula.host.tarstream import Source

WHITEOUT = ".wh."
OPAQUE_MARK = ".wh..wh..opq"
_PAX_XATTR = "SCHILY.xattr."
_LIBARCHIVE_XATTR = "LIBARCHIVE.xattr."
MAX_ENTRIES = 4_000_000
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Unpacked:
    """What came out: bytes of regular files, number of entries, whether the root itself was among them."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self.entries = 0
        self.has_root = False


def unpack(
    source: Source,
    folder: str,
    *,
    overlay: bool = False,
    keep_folders: bool = False,
    owner: tuple[int, int] | None = None,
) -> Unpacked:
    """Unpack a plain tar into an existing folder and read it to its very end.

    `keep_folders`: refuse to put a file where a folder is and a folder where a file is. `owner`: user and group of all that is
    made, whatever the archive says. Raises Invalid, TooLarge,
    HostFault (the disk).
    """
    with Root(folder) as root:
        work = _Unpack(root, overlay, keep_folders)
        members = Members(source)
        for member in members:
            if owner is not None:
                member.uid, member.gid = owner
            try:
                work.add(members, member)
            except OSError as error:
                raise _translate(error, member.name) from None
            except (OverflowError, ValueError) as error:
                raise Invalid(f"the header of {member.name!r} in the archive is wrong: {error}") from None
        members.drain()
        work.finish()
    return work.result


def _translate(error: OSError, name: str) -> Exception:
    """The archive's fault or the host's."""
    reason = os.strerror(error.errno or 0)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
        return HostFault(f"cannot write {name!r}: {reason}", code=error.errno)
    return Invalid(f"cannot unpack {name!r} from the archive: {reason}")


class _Unpack:
    def __init__(self, root: Root, overlay: bool, keep_folders: bool) -> None:
        self._root = root
        self._overlay = overlay
        self._keep_folders = keep_folders
        self._folder_times: list[tuple[tuple[str, ...], int]] = []
        self.result = Unpacked()

    def add(self, members: Members, member: tarfile.TarInfo) -> None:
        self.result.entries += 1
        if self.result.entries > MAX_ENTRIES:
            raise TooLarge(f"the archive holds more than {MAX_ENTRIES} entries")
        parts = split(member.name)
        if not parts:
            self._add_root(member)
            return
        name = parts[-1]
        if any(part.startswith(WHITEOUT) for part in parts) and self._overlay:
            self._whiteout(parts)
            return
        parent = self._root.folder(parts[:-1], create=True)
        if member.isdir():
            self._folder(parent, name, parts, member)
            return
        if member.isreg():
            self._file(parent, parts, members, member)
            return
        self._make_room(parts)
        if member.islnk():
            self._hard_link(parent, name, member)
        elif member.issym():
            os.symlink(member.linkname, name, dir_fd=parent)
            self._finish_entry(parent, name, member)
        elif member.ischr() or member.isblk() or member.isfifo():
            self._node(parent, name, member)
        else:
            raise Invalid(f"{member.name!r} in the archive is of the unknown type {member.type!r}")

    def _add_root(self, member: tarfile.TarInfo) -> None:
        if not member.isdir():
            raise Invalid("the archive's root is not a folder")
        self.result.has_root = True
        os.fchown(self._root.fd, member.uid, member.gid)
        os.fchmod(self._root.fd, stat.S_IMODE(member.mode))
        xattrs.set_all(self._root.fd, _attributes(member))
        self._folder_times.append(((), _time_ns(member)))

    def _whiteout(self, parts: tuple[str, ...]) -> None:
        """`.wh.NAME` deletes NAME of the layers below, `.wh..wh..opq` all of them; other `.wh..wh.` names are aufs's own."""
        if parts[-1] == OPAQUE_MARK:
            xattrs.mark_opaque(self._root.folder(parts[:-1], create=True))
            return
        if any(part.startswith(WHITEOUT + WHITEOUT) for part in parts):
            return
        hidden = parts[-1].removeprefix(WHITEOUT)
        if hidden in ("", ".", "..") or any(part.startswith(WHITEOUT) for part in parts[:-1]):
            raise Invalid(f"the whiteout {'/'.join(parts)!r} names nothing")
        parent = self._root.folder(parts[:-1], create=True)
        self._make_room((*parts[:-1], hidden))
        os.mknod(hidden, stat.S_IFCHR, 0, dir_fd=parent)

    def _folder(self, parent: int, name: str, parts: tuple[str, ...], member: tarfile.TarInfo) -> None:
        try:
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            found = None
        if found is None or not stat.S_ISDIR(found.st_mode):
            if found is not None:
                if self._keep_folders:
                    raise Invalid(f"cannot overwrite non-directory {'/'.join(parts)!r} with directory")
                os.unlink(name, dir_fd=parent)
            os.mkdir(name, 0o700, dir_fd=parent)
        folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            os.fchown(folder, member.uid, member.gid)
            os.fchmod(folder, stat.S_IMODE(member.mode))
            xattrs.set_all(folder, _attributes(member))
        finally:
            os.close(folder)
        self._folder_times.append((parts, _time_ns(member)))

    def _make_room(self, parts: tuple[str, ...]) -> None:
        """Remove what is there: a later entry wins."""
        parent, name = self._root.folder(parts[:-1]), parts[-1]
        try:
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            return
        except IsADirectoryError:
            if self._keep_folders:
                raise Invalid(f"cannot overwrite directory {'/'.join(parts)!r} with non-directory") from None
            self._root.forget(parts)
            remove_tree(name, dir_fd=parent)

    def _hard_link(self, parent: int, name: str, member: tarfile.TarInfo) -> None:
        target = split(member.linkname)
        if not target:
            raise Invalid(f"{member.name!r} in the archive is a hard link to nothing")
        os.link(target[-1], name, src_dir_fd=self._root.folder(target[:-1]), dst_dir_fd=parent, follow_symlinks=False)

    def _node(self, parent: int, name: str, member: tarfile.TarInfo) -> None:
        kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK if member.isblk() else stat.S_IFIFO
        device = 0 if member.isfifo() else os.makedev(member.devmajor, member.devminor)
        os.mknod(name, kind | 0o600, device, dir_fd=parent)
        self._finish_entry(parent, name, member)

    def _new_file(self, parent: int, parts: tuple[str, ...]) -> int:
        """Most archives name a file once: what is there is looked for only when something is."""
        try:
            return os.open(parts[-1], _NEW_FILE, 0o600, dir_fd=parent)
        except FileExistsError:
            self._make_room(parts)
            return os.open(parts[-1], _NEW_FILE, 0o600, dir_fd=self._root.folder(parts[:-1]))

    def _file(self, parent: int, parts: tuple[str, ...], members: Members, member: tarfile.TarInfo) -> None:
        file = self._new_file(parent, parts)
        try:
            end = 0
            for offset, data in members.content(member):
                if offset != end:
                    os.lseek(file, offset, os.SEEK_SET)
                _write(file, data)
                end = offset + len(data)
                self.result.size_bytes += len(data)
            if end < member.size:
                os.ftruncate(file, member.size)
            os.fchown(file, member.uid, member.gid)
            os.fchmod(file, stat.S_IMODE(member.mode))
            xattrs.set_all(file, _attributes(member))
            time = _time_ns(member)
            os.utime(file, ns=(time, time))
        finally:
            os.close(file)

    def _finish_entry(self, parent: int, name: str, member: tarfile.TarInfo) -> None:
        """Owner, mode, attributes and time of what cannot be opened."""
        os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
        if not member.issym():
            os.chmod(name, stat.S_IMODE(member.mode), dir_fd=parent)
        if attributes := _attributes(member):
            xattrs.set_all(f"/proc/self/fd/{parent}/{name}", attributes)
        time = _time_ns(member)
        os.utime(name, ns=(time, time), dir_fd=parent, follow_symlinks=False)

    def finish(self) -> None:
        """Times of folders, last: every entry made in them changed those."""
        for parts, time in reversed(self._folder_times):
            try:
                folder = open_in(self._root.fd, "/".join(parts) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except OSError:
                continue  # replaced by a later entry
            try:
                os.utime(folder, ns=(time, time))
            finally:
                os.close(folder)


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _time_ns(member: tarfile.TarInfo) -> int:
    """The modification time, to the microsecond where PAX gave one; out of range ones become 0."""
    time = int(member.mtime * 1_000_000) * 1000 if isinstance(member.mtime, float) else member.mtime * 1_000_000_000
    return time if abs(time) < 1 << 63 else 0


def _attributes(member: tarfile.TarInfo) -> dict[str, bytes]:
    """The extended attributes in a member's PAX records, in the two notations that tar programs write."""
    found: dict[str, bytes] = {}
    for key, value in member.pax_headers.items():
        if key.startswith(_PAX_XATTR):
            found[key.removeprefix(_PAX_XATTR)] = value.encode("utf-8", "surrogateescape")
        elif key.startswith(_LIBARCHIVE_XATTR):
            try:
                found.setdefault(key.removeprefix(_LIBARCHIVE_XATTR), b64decode(value + "=="))
            except ValueError:
                raise Invalid(f"an attribute of {member.name!r} is not base64") from None
    return found
