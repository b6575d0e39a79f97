"""The sources of mounts, looked at just before they are used: a subpath of a volume may have been made a link by somebody who
writes to that volume, and how mounts spread depends on what the host has mounted.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec

from insula.engine.contract import ResolvedMount
from insula.errors import HostFault, NotFound
from insula.host.mounts import MountPoint, bind, mount_points, unmount
from insula.host.rootfd import open_in


def pin(
    mounts: Sequence[ResolvedMount], volumes: Mapping[str, str], place: Path, held: ExitStack
) -> tuple[ResolvedMount, ...]:
    """The mounts with every subpath bound to a place of its own below `place`, for as long as `held`: it was found inside of
    its volume, and a link that is put there afterwards leads nowhere else. `volumes` are the folders by name. Blocks. Raises
    NotFound, HostFault."""
    return tuple(_pinned(mount, volumes, place, held) if mount.config.subpath else mount for mount in mounts)


def _pinned(mount: ResolvedMount, volumes: Mapping[str, str], place: Path, held: ExitStack) -> ResolvedMount:
    root = os.open(volumes[mount.volume], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = open_in(root, mount.config.subpath, os.O_PATH)
    except OSError as fault:
        raise NotFound(f"cannot access path {mount.source}: {os.strerror(fault.errno or 0).lower()}") from fault
    finally:
        os.close(root)
    try:
        target = place / secrets.token_hex(8)
        held.callback(unpin, target)
        if stat.S_ISDIR(os.fstat(found).st_mode):
            target.mkdir(parents=True)
        else:
            place.mkdir(parents=True, exist_ok=True)
            target.touch()
        bind(f"/proc/self/fd/{found}", str(target))
    finally:
        os.close(found)
    return msgspec.structs.replace(mount, source=str(target))


def unpin(target: Path) -> None:
    """Let a bound place go. Nothing below it is deleted, for it is the volume's. Blocks; repeatable."""
    unmount(target, lazy=True)
    with suppress(FileNotFoundError):
        if target.is_dir():
            target.rmdir()
        else:
            target.unlink()


def unpin_all(place: Path) -> None:
    """At start: what a killed start left. Blocks."""
    for target in list(place.iterdir()) if place.is_dir() else ():
        unpin(target)


def check_propagation(mounts: Sequence[ResolvedMount]) -> None:
    """Mounts spread only where the host's own mount lets them. Blocks. Raises HostFault with the Docker Engine's sentence."""
    asked = [mount for mount in mounts if mount.config.kind == "bind" and "private" not in mount.config.propagation]
    points = mount_points() if asked else []
    for mount in asked:
        if sentence := propagation_fault(str(Path(mount.source).resolve()), mount.config.propagation, points):
            raise HostFault(sentence)


def propagation_fault(source: str, propagation: str, points: Sequence[MountPoint]) -> str:
    """Why mounts would not spread as asked, empty when they do. Pure."""
    on = [point for point in points if (source + "/").startswith(point.target.rstrip("/") + "/")]
    if not on:
        return ""
    point = max(on, key=lambda each: (len(each.target), each.id))
    words = {word.partition(":")[0] for word in point.optional}
    if "shared" in propagation:
        fits, sort = "shared" in words, "a shared"
    else:
        fits, sort = bool(words & {"shared", "master"}), "a shared or slave"
    return "" if fits else f"path {source} is mounted on {point.target} but it is not {sort} mount"
