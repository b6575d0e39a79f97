"""Extended attributes as layers need them: what may be set from an archive, and overlayfs's own marks.

See xattr(7) and the kernel's filesystems/overlayfs.rst: a deleted name is a character device 0:0, a folder that hides
what is below it carries `trusted.overlay.opaque=y`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

OPAQUE = "trusted.overlay.opaque"
# Written by overlayfs for itself; from an archive they could make a layer reach into folders of another.
_OVERLAY_OWN = ("trusted.overlay.", "user.overlay.")
# A file system without xattrs, or one that refuses this name, still holds a usable file: Docker ignores these too.
_REFUSED = (errno.ENOTSUP, errno.EPERM)

Target = int | str


def get_all(target: Target, *, follow_symlinks: bool = False) -> dict[str, bytes]:
    """All attributes but overlayfs's own. `target` is a path or an open descriptor."""
    follow = True if isinstance(target, int) else follow_symlinks
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError as error:
        if error.errno in _REFUSED:
            return {}
        raise
    found = {}
    for name in names:
        if not name.startswith(_OVERLAY_OWN):
            with contextlib.suppress(OSError):  # an attribute can vanish between list and get
                found[name] = os.getxattr(target, name, follow_symlinks=follow)
    return found


def set_all(target: Target, attributes: dict[str, bytes], *, follow_symlinks: bool = False) -> None:
    """Set attributes; overlayfs's own and those that the file system refuses are left out. Raises OSError."""
    for name, value in attributes.items():
        if name.startswith(_OVERLAY_OWN):
            continue
        try:
            os.setxattr(target, name, value, follow_symlinks=True if isinstance(target, int) else follow_symlinks)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise


def mark_opaque(folder: Target) -> None:
    """Make a folder of an overlay layer hide all that lower layers have there."""
    os.setxattr(folder, OPAQUE, b"y")


def is_opaque(folder: Target) -> bool:
    """Whether a folder hides what lower layers have there."""
    try:
        return os.getxattr(folder, OPAQUE) == b"y"
    except OSError:
        return False


def is_whiteout(status: os.stat_result) -> bool:
    """Whether an entry of an overlay layer means "deleted"."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
