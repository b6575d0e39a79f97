"""Mounts, by system call: mount(2), umount2(2), the file descriptor API (fsopen(2), mount_setattr(2)), /proc/self/mountinfo.

Nothing here forks. The calls may block (an unmount writes back dirty pages), so an event loop reaches them through
`tasks.in_thread`. Faults are `HostFault` with the mount(8) command that would do the same.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from msgspec import Struct

from insula.errors import HostFault

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC = 32, 4096, 16384
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8

PROPAGATION = {
    "private": 1 << 18,
    "rprivate": 1 << 18 | MS_REC,
    "slave": 1 << 19,
    "rslave": 1 << 19 | MS_REC,
    "shared": 1 << 20,
    "rshared": 1 << 20 | MS_REC,
    "unbindable": 1 << 17,
    "runbindable": 1 << 17 | MS_REC,
}

# These numbers are the same on every architecture that came after Linux 5.1 unified the tables (syscalls(2)).
_MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _MOUNT_SETATTR = 429, 430, 431, 432, 442
_FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 1, 6
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_ATTR_RDONLY = 1

# mount(2) takes one page of options, with its terminating zero byte.
_OPTION_BYTES = os.sysconf("SC_PAGE_SIZE") - 1 if platform.system() == "Linux" else 4095

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class MountPoint(Struct, frozen=True, kw_only=True):
    """One line of mountinfo, see proc_pid_mountinfo(5). `optional` holds the propagation (`shared:7`, `master:2`)."""

    id: int
    parent: int
    root: str
    target: str
    options: tuple[str, ...]
    optional: tuple[str, ...]
    kind: str
    source: str
    super_options: tuple[str, ...]


def parse_mountinfo(text: str) -> list[MountPoint]:
    """Read the text of /proc/PID/mountinfo; a later line covers an earlier one with the same target."""
    return [_parse_line(line) for line in text.splitlines() if line]


def _parse_line(line: str) -> MountPoint:
    head, _, tail = line.partition(" - ")
    identity, parent, _device, root, target, options, *optional = head.split(" ")
    kind, source, super_options = [*tail.split(" "), "", ""][:3]
    return MountPoint(
        id=int(identity),
        parent=int(parent),
        root=_unescape(root),
        target=_unescape(target),
        options=tuple(options.split(",")),
        optional=tuple(optional),
        kind=kind,
        source=_unescape(source),
        super_options=tuple(super_options.split(",")),
    )


def _unescape(text: str) -> str:
    """The kernel writes blank, tab, newline, # and backslash as three octal digits."""
    if "\\" not in text:
        return text
    head, *parts = text.split("\\")
    return head + "".join(chr(int(part[:3], 8)) + part[3:] if part[:3].isdigit() else "\\" + part for part in parts)


def mount_points(below: str | None = None) -> list[MountPoint]:
    """The mounts of this process's namespace, oldest first; with `below` only that folder and what is under it."""
    points = parse_mountinfo(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))
    if below is None:
        return points
    folder = below.rstrip("/")
    return [point for point in points if point.target == folder or point.target.startswith(folder + "/")]


def is_mounted(target: str | Path) -> bool:
    """Whether something is mounted exactly there."""
    path = os.path.realpath(target)
    return any(point.target == path for point in mount_points())


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    """mount(2). Raises HostFault."""
    done = _libc.mount(
        *(os.fsencode(part) for part in (source, target, kind)), ctypes.c_ulong(flags), os.fsencode(options)
    )
    if done != 0:
        raise _fault(f"mount {kind} on {target}", ["mount", "-t", kind, "-o", options or "defaults", source, target])


def unmount(target: str | Path, *, lazy: bool = False) -> None:
    """umount2(2), never following a symlink. What is not mounted or not there is fine. Raises HostFault (busy)."""
    flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)
    if _libc.umount2(os.fsencode(target), flags) != 0 and ctypes.get_errno() not in (errno.EINVAL, errno.ENOENT):
        raise _fault(f"unmount {target}", ["umount", *(["-l"] if lazy else []), str(target)])


def unmount_below(folder: str | Path) -> None:
    """Unmount everything at and under a folder, newest first; what is busy is detached."""
    for point in reversed(mount_points(os.path.realpath(folder))):
        unmount(point.target, lazy=True)


def bind(source: str, target: str, *, readonly: bool = False, recursive: bool = True, propagation: str = "") -> None:
    """Make `source` appear at `target` too; `readonly` holds for the submounts as well. Raises HostFault."""
    mount(source, target, "none", MS_BIND | (MS_REC if recursive else 0))
    with _undone_by_unmount(target):
        if readonly:
            set_readonly(target, recursive=recursive)
        if propagation:
            set_propagation(target, propagation)


def tmpfs(target: str, *, size_bytes: int | None = None, mode: int = 0o755, flags: int = MS_NOSUID | MS_NODEV) -> None:
    """Mount an empty file system in memory."""
    options = f"mode={mode:o}" + (f",size={size_bytes}" if size_bytes else "")
    mount("tmpfs", target, "tmpfs", flags, options)


def set_propagation(target: str, propagation: str) -> None:
    """Change how mount events spread: a key of `PROPAGATION`."""
    mount("none", target, "none", PROPAGATION[propagation])


def set_readonly(target: str, *, recursive: bool = True) -> None:
    """Make a mount read-only: mount_setattr(2) from Linux 5.12 on, else one remount for each submount."""
    attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    if _libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, os.fsencode(target), flags, attributes, ctypes.sizeof(attributes)) == 0:
        return
    if ctypes.get_errno() not in (errno.ENOSYS, errno.EPERM):
        raise _fault(f"make {target} read-only", ["mount", "-o", "remount,bind,ro", target])
    points = mount_points(os.path.realpath(target)) if recursive else []
    for point in [target, *(point.target for point in points)]:
        mount("none", point, "none", MS_REMOUNT | MS_BIND | MS_RDONLY)


def overlay_options(lowers: Sequence[str], upper: str, work: str, *, volatile: bool = False) -> list[tuple[str, str]]:
    """The options of an overlay, lowers topmost first, see the kernel's filesystems/overlayfs.rst.

    The features that record more than plain whiteouts in the writable layer are off, so that it can be read as a
    difference. `volatile` skips every sync: for a layer that nobody wants after a crash of the machine.
    """
    options = [("lowerdir", lower) for lower in lowers]
    if upper:
        options += [("upperdir", upper), ("workdir", work), ("index", "off")]
    options += [("redirect_dir", "nofollow"), ("metacopy", "off")]
    return [*options, ("volatile", "")] if volatile and upper else options


def overlay_option_text(options: Sequence[tuple[str, str]]) -> str:
    """The same for mount(2): lowers joined by colons; the separators inside a path are escaped."""
    lowers = ":".join(_escape(value, "\\:,") for key, value in options if key == "lowerdir")
    others = [f"{key}={_escape(value, chr(92) + ',')}" if value else key for key, value in options if key != "lowerdir"]
    return ",".join([f"lowerdir={lowers}", *others])


def _escape(path: str, special: str) -> str:
    return "".join("\\" + letter if letter in special else letter for letter in path)


def overlay(target: str, lowers: Sequence[str], *, upper: str = "", work: str = "", volatile: bool = False) -> None:
    """Mount an overlay of any number of lower folders (topmost first; the kernel's limit is 500). Raises HostFault.

    Up to a page of options goes through mount(2). Above it the lowers are given one by one (`lowerdir+`, Linux 6.8),
    or, on an older kernel, by the short names of open descriptors.
    """
    options = overlay_options(lowers, upper, work, volatile=volatile)
    text = overlay_option_text(options)
    if len(os.fsencode(text)) <= _OPTION_BYTES:
        mount("overlay", target, "overlay", 0, text)
    elif not _overlay_by_parts(target, options):
        _overlay_by_descriptors(target, options)


def _overlay_by_parts(target: str, options: Sequence[tuple[str, str]]) -> bool:
    """False where this kernel has no `lowerdir+`."""
    with ExitStack() as open_files:
        context = _libc.syscall(_FSOPEN, b"overlay", _FSOPEN_CLOEXEC)
        if context < 0:
            return False
        open_files.callback(os.close, context)
        for key, value in options:
            name = b"lowerdir+" if key == "lowerdir" else key.encode()
            command = _FSCONFIG_SET_STRING if value else 0
            if _libc.syscall(_FSCONFIG, context, command, name, os.fsencode(value) or None, 0) != 0:
                return False
        made = _libc.syscall(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        point = _libc.syscall(_FSMOUNT, context, _FSMOUNT_CLOEXEC, 0) if made == 0 else -1
        if point < 0:
            raise _fault(f"mount overlay of {len(options)} options on {target}", [])
        open_files.callback(os.close, point)
        if _libc.syscall(_MOVE_MOUNT, point, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH) != 0:
            raise _fault(f"mount overlay on {target}", [])
    return True


def _overlay_by_descriptors(target: str, options: Sequence[tuple[str, str]]) -> None:
    with ExitStack() as open_files:
        short = []
        for key, value in options:
            if key == "lowerdir":
                descriptor = os.open(value, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                open_files.callback(os.close, descriptor)
                value = f"/proc/self/fd/{descriptor}"
            short.append((key, value))
        mount("overlay", target, "overlay", 0, overlay_option_text(short))


@contextmanager
def _undone_by_unmount(target: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        unmount(target, lazy=True)
        raise


def _fault(what: str, command: Sequence[str]) -> HostFault:
    number = ctypes.get_errno()
    reason = os.strerror(number)
    return HostFault(f"cannot {what}: {reason}", command=shlex.join(command) or None, stderr=reason, code=number)
