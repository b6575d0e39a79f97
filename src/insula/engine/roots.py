"""An instance's root file system as a folder to work in, whether it runs or not; and a path's place in it.

A running instance is seen through its process's root, with all that is mounted there. A stopped one is mounted for as long
as somebody uses it, with its volumes and binds in a view that nobody else sees.
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
from insula.host.mountview import Binding, View
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
        volatile = resident.entry.fleeting
        yield (await parts.images.mount(resident.image, resident.id, volatile=volatile)).path
    finally:
        resident.root_users -= 1
        if resident.root_users == 0 and resident.entry.stage is Stage.EXITED and not resident.lock.locked():
            await parts.images.unmount(resident.id, remove=False)


@asynccontextmanager
async def placed(parts: Parts, resident: Resident, path: str) -> AsyncIterator[Place]:
    """Where `path` of the instance is, with what is mounted into its root. Raises as `mounted`."""
    clean = clean_path(path)
    readonly = _readonly(resident, covering(resident.entry.mounts, clean))
    async with mounted(parts, resident) as merged:
        if resident.running and await in_thread(_is_root_of, resident.entry.pid, merged):
            yield Place(f"/proc/{resident.entry.pid}/root", clean, readonly)
            return
        bindings = _bindings(resident.entry.mounts)
        if not bindings:
            yield Place(merged, clean, readonly)
            return
        view = await in_thread(View, merged, bindings)
        try:
            yield Place(view.path, clean, readonly)
        finally:
            await in_thread(view.close)


def _bindings(mounts: tuple[ResolvedMount, ...]) -> list[Binding]:
    return [
        Binding(source=mount.source, target=mount.config.target, readonly=mount.config.readonly)
        for mount in mounts
        if mount.source
    ]


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
