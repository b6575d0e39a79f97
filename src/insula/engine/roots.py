"""An instance's root file system as a folder to work in, whether it runs or not; and a path's place in it.

A running instance is seen through its process's root, with all that is mounted there. A stopped one is mounted for as long
as somebody uses it, and its volumes are looked up by hand: a path below a mount's target is looked for in its source.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from msgspec import Struct

from insula.engine.contract import ResolvedMount
from insula.engine.parts import Parts
from insula.engine.records import Stage
from insula.engine.resident import Resident
from insula.engine.resolve import clean_path
from insula.errors import Conflict, Unsupported
from insula.tasks import in_thread


class Place(Struct, frozen=True):
    """Where a path is looked for: below the folder `root` on the host, at `path`. `readonly` names what forbids writing."""

    root: str
    path: str
    readonly: str = ""


@asynccontextmanager
async def mounted(parts: Parts, resident: Resident) -> AsyncIterator[str]:
    """The merged root file system, mounted while in use. Raises Unsupported for one without (a machine), Conflict while it
    is being removed."""
    if resident.image is None or resident.entry.config.machine is not None:
        raise Unsupported(f"{resident.entry.name} has no root file system that can be seen from outside")
    if resident.entry.stage is Stage.REMOVING:
        raise Conflict(f"removal of container {resident.entry.name} is already in progress")
    resident.root_users += 1
    try:
        volatile = resident.entry.config.auto_remove
        yield (await parts.images.mount(resident.image, resident.id, volatile=volatile)).path
    finally:
        resident.root_users -= 1
        if resident.root_users == 0 and resident.entry.stage is Stage.EXITED and not resident.lock.locked():
            await parts.images.unmount(resident.id, remove=False)


async def place_of(resident: Resident, merged: str, path: str) -> Place:
    """Where `path` of the instance is to be looked for."""
    clean = clean_path(path)
    mount = covering(resident.entry.mounts, clean)
    readonly = _readonly(resident, mount)
    if resident.running and await in_thread(_is_root_of, resident.entry.pid, merged):
        return Place(f"/proc/{resident.entry.pid}/root", clean, readonly)
    if mount is not None and mount.source and clean != mount.config.target:
        return Place(mount.source, clean.removeprefix(mount.config.target), readonly)
    if mount is not None and mount.source:
        return Place(mount.source, "/", readonly)
    return Place(merged, clean, readonly)


def covering(mounts: tuple[ResolvedMount, ...], path: str) -> ResolvedMount | None:
    """The innermost mount that a path lies in."""
    found = [mount for mount in mounts if (path + "/").startswith(mount.config.target.rstrip("/") + "/")]
    return max(found, key=lambda mount: len(mount.config.target), default=None)


def _readonly(resident: Resident, mount: ResolvedMount | None) -> str:
    if mount is not None:
        return "mounted volume is marked read-only" if mount.config.readonly else ""
    return "container rootfs is marked read-only" if resident.entry.config.security.readonly_rootfs else ""


def _is_root_of(pid: int, merged: str) -> bool:
    """Whether that process's root is this file system: a pid may have been given away, a process may have changed its root."""
    try:
        inside, outside = Path(f"/proc/{pid}/root/").stat(), Path(merged).stat()
    except OSError:
        return False
    return (inside.st_dev, inside.st_ino) == (outside.st_dev, outside.st_ino)
