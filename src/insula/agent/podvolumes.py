"""A pod's volumes as folders on this node, each given to containers as a bind mount.

Files of configMap, secret, downwardAPI and projected volumes are exchanged all at once: a new folder is written beside the old
and the link `..data` renamed onto it, the layout that programs watching such volumes know from the kubelet.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

from insula.agent.podfiles import Files
from insula.errors import HostFault, Invalid, Unsupported
from insula.host import mounts
from insula.host.rmtree import remove_tree
from insula.host.rootfd import Root, open_in, split
from insula.model.instance import MountConfig
from insula.model.quantity import parse_quantity
from insula.model.resource import Resource
from insula.tasks import in_thread

LIFE = "life"
WRITTEN = ("configMap", "secret", "downwardAPI", "projected")


async def prepare(base: Path, pod: Resource, files: Mapping[str, Files]) -> dict[str, MountConfig]:
    """Make every volume of a pod below `base`; repeatable, and the way to refresh written ones. `files` by volume name.
    Raises Unsupported, Invalid (hostPath), HostFault."""
    found = {}
    for volume in pod["spec"].get("volumes") or ():
        try:
            found[volume["name"]] = await _prepare_one(base, pod, volume, files)
        except OSError as fault:
            text = f'MountVolume.SetUp failed for volume "{volume["name"]}" : {fault.strerror or fault}'
            raise HostFault(text) from fault
    return found


async def _prepare_one(base: Path, pod: Resource, volume: Resource, files: Mapping[str, Files]) -> MountConfig:
    folder = base / "volumes" / volume["name"]
    group = (pod["spec"].get("securityContext") or {}).get("fsGroup")
    if any(kind in volume for kind in WRITTEN):
        await in_thread(write_files, folder, files[volume["name"]], group)
        return MountConfig(kind="bind", source=str(folder), target="", readonly=True)
    if "emptyDir" in volume:
        await in_thread(_empty_folder, folder, volume["emptyDir"] or {}, group)
        return MountConfig(kind="bind", source=str(folder), target="")
    if "hostPath" in volume:
        path = await in_thread(_host_path, volume["hostPath"])
        return MountConfig(kind="bind", source=path, target="")
    kinds = sorted(key for key in volume if key != "name")
    raise Unsupported(
        f"volume {volume['name']}: {', '.join(kinds)} is not supported on this node yet", field="spec.volumes"
    )


def write_files(folder: Path, files: Files, group: int | None) -> None:
    """Make the folder hold exactly these files, switching from the old ones in one rename."""
    folder.mkdir(parents=True, exist_ok=True)
    if _same(folder, files):
        return
    fresh = folder / f"..{secrets.token_hex(6)}"
    fresh.mkdir(mode=0o755)
    for path, file in files.items():
        target = fresh / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.data)
        target.chmod(file.mode | (0o040 if group is not None else 0))
        if group is not None:
            os.chown(target, -1, group)
    _switch(folder, fresh, {path.split("/", 1)[0] for path in files})


def _same(folder: Path, files: Files) -> bool:
    data = folder / "..data"
    if not data.is_symlink():
        return False
    present = {str(p.relative_to(data)): p.read_bytes() for p in data.rglob("*") if p.is_file()}
    return present == {path: file.data for path, file in files.items()}


def _switch(folder: Path, fresh: Path, heads: set[str]) -> None:
    data = folder / "..data"
    old = folder / data.readlink() if data.is_symlink() else None
    link = folder / f"..tmp{secrets.token_hex(4)}"
    link.symlink_to(fresh.name)
    link.rename(data)
    for head in heads:
        if not (folder / head).is_symlink():
            (folder / head).symlink_to(f"..data/{head}")
    for entry in folder.iterdir():
        if not entry.name.startswith("..") and entry.name not in heads:
            entry.unlink()
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _empty_folder(folder: Path, wish: Resource, group: int | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    memory = wish.get("medium") == "Memory"
    if memory and not mounts.is_mounted(str(folder)):
        size = int(parse_quantity(wish["sizeLimit"])) if wish.get("sizeLimit") else None
        mounts.tmpfs(str(folder), size_bytes=size, mode=0o777)
    folder.chmod(0o777 if group is None else 0o2777)
    if group is not None:
        os.chown(folder, -1, group)


_TYPES = {
    "Directory": stat.S_ISDIR,
    "File": stat.S_ISREG,
    "Socket": stat.S_ISSOCK,
    "CharDevice": stat.S_ISCHR,
    "BlockDevice": stat.S_ISBLK,
}


def _host_path(source: Resource) -> str:
    """The path, checked to be of the wanted type; the OrCreate types make it. Raises Invalid."""
    path, kind = Path(source["path"]), source.get("type") or ""
    if kind == "DirectoryOrCreate" or (not kind and not path.exists()):
        path.mkdir(parents=True, exist_ok=True)
    elif kind == "FileOrCreate":
        path.touch(mode=0o644, exist_ok=True)
    check = _TYPES.get(kind.removesuffix("OrCreate"))
    if check is not None and not (path.exists() and check(path.stat().st_mode)):
        raise Invalid(f"hostPath type check failed: {path} is not a {kind.lower()}", field="hostPath.type")
    return str(path)


def termination_log(base: Path, container: str, attempt: int) -> Path:
    """Where a container writes its last words, as seen from the node."""
    return base / "containers" / container / f"{attempt}.log"


def subpath(base: Path, source: MountConfig, path: str, place: str) -> str:
    """The source of a `subPath` mount: that part of a volume, however its links point, never outside of it; made as a folder
    where it is missing. Blocks. Raises OSError.

    A container may change what it can write while this looks, so the part is bound, by the descriptor that was checked, to a
    place of the agent's own (as the kubelet does since CVE-2017-1002101). What only the agent writes needs no such care."""
    parts = split(path)
    with Root(source.source) as root:
        try:
            found = open_in(root.fd, "/".join(parts) or ".", os.O_PATH)
        except FileNotFoundError:
            if source.readonly:
                raise
            found = os.dup(root.folder(parts, create=True))
        try:
            if source.readonly:
                return str(Path(f"/proc/self/fd/{found}").readlink())
            return _bound(found, base / "subpaths" / place)
        finally:
            os.close(found)


def _bound(found: int, place: Path) -> str:
    mounts.unmount(place, lazy=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    if stat.S_ISDIR(os.fstat(found).st_mode):
        place.mkdir(exist_ok=True)
    else:
        place.touch()
    mounts.mount(f"/proc/self/fd/{found}", str(place), "none", mounts.MS_BIND)
    return str(place)


def begin_life(base: Path, boot: str) -> None:
    """Note that the pod's sandbox is of this boot. Blocks."""
    base.mkdir(parents=True, exist_ok=True)
    (base / LIFE).write_text(boot)


def same_life(base: Path, boot: str) -> bool:
    """Whether the pod's sandbox is still the one that its containers were started in: neither a reboot nor an `insula down --all`
    came in between. Blocks."""
    try:
        return (base / LIFE).read_text() == boot
    except FileNotFoundError:
        return False


def end_lives(folder: Path) -> None:
    """For `insula down --all`: unmount what any pod below the agent's folder has mounted; the next start is as after a reboot.
    Blocks; repeatable."""
    if folder.exists():
        mounts.unmount_below(folder)
        for mark in folder.glob(f"pods/*/{LIFE}"):
            mark.unlink(missing_ok=True)


async def remove(base: Path) -> None:
    """Delete a pod's folder, unmounting memory volumes first. Repeatable."""

    def work() -> None:
        if base.exists():
            mounts.unmount_below(base)
            remove_tree(base, ignore_errors=True)

    await in_thread(work)
