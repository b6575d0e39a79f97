"""Root file systems of instances: an overlay of an image's layers under a writable folder.

    rootfs/<instance>/record.json   the layers in use: they are kept even when the image is removed
                     /upper /work   the writable layer
                     /merged        the view

The record is written before the mount, so a sweep never takes a layer away from under an instance.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from insula.errors import Invalid, NotFound
from insula.host import mounts
from insula.host.folders import entries
from insula.host.rmtree import remove_tree
from insula.images.contract import Rootfs
from insula.images.layers import Layers

BUILDING = "build-"  # how the names begin that builders give; they live no longer than this process
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class _Record(Struct, frozen=True, kw_only=True):
    image: str
    chains: tuple[str, ...]  # lowest first


class RootFilesystems:
    """All of one node. Its methods block."""

    def __init__(self, folder: Path, layers: Layers, temporary: Path) -> None:
        self._folder = folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self._layers = layers
        self._temporary = temporary

    def mount(self, instance: str, image: str, chains: tuple[str, ...], *, volatile: bool, over: str = "") -> Rootfs:
        """Make it, or take back one that is mounted or was mounted before. `over`: a folder to lie upon instead of layers.
        Raises HostFault."""
        place = self._place(instance)
        lowers = (over,) if over else tuple(self._layers.diff(chain) for chain in reversed(chains))
        merged, upper, work = place / "merged", place / "upper", place / "work"
        rootfs = Rootfs(path=str(merged), upper=str(upper), lowers=lowers)
        if merged.is_dir() and mounts.is_mounted(merged):
            return rootfs
        if not upper.is_dir():
            self._prepare(place, _Record(image=image, chains=chains))
        # Overlayfs keeps only scratch there, and refuses to mount again over the traces of a volatile mount.
        remove_tree(work, ignore_errors=True)
        work.mkdir(mode=0o700)
        if lowers:
            mounts.overlay(str(merged), lowers, upper=str(upper), work=str(work), volatile=volatile)
        else:
            mounts.bind(str(upper), str(merged), recursive=False)
        return rootfs

    def _prepare(self, place: Path, record: _Record) -> None:
        """All of the folders in one rename: a killed attempt leaves nothing that looks complete."""
        fresh = self._temporary / f"rootfs-{place.name}"
        remove_tree(fresh, ignore_errors=True)
        (fresh / "upper").mkdir(parents=True)
        (fresh / "merged").mkdir(mode=0o700)
        (fresh / "record.json").write_bytes(msgspec.json.encode(record))
        self._inherit_root(fresh / "upper", record.chains)
        remove_tree(place, ignore_errors=True)
        fresh.rename(place)

    def _inherit_root(self, upper: Path, chains: tuple[str, ...]) -> None:
        """`/` of an overlay is the topmost layer's, the empty writable one; give it what the image says of `/`."""
        for chain in reversed(chains):
            record = self._layers.record(chain)
            if record is not None and record.has_root:
                found = Path(self._layers.diff(chain)).stat()
                os.chown(upper, found.st_uid, found.st_gid)
                upper.chmod(stat.S_IMODE(found.st_mode))
                return
        upper.chmod(0o755)

    def unmount(self, instance: str, *, remove: bool) -> None:
        """Repeatable; unknown is fine."""
        place = self._place(instance)
        if not place.exists():
            return
        mounts.unmount(place / "merged", lazy=True)
        if remove:
            trash = self._temporary / f"trash-rootfs-{instance}"
            remove_tree(trash, ignore_errors=True)
            with suppress(FileNotFoundError):
                place.rename(trash)
                remove_tree(trash, ignore_errors=True)

    def recover(self) -> None:
        """Drop what builds that were killed have left."""
        for entry in entries(self._folder):
            if entry.name.startswith(BUILDING):
                self.unmount(entry.name, remove=True)

    def get(self, instance: str) -> Rootfs:
        """What `mount` returned. Raises NotFound."""
        place = self._place(instance)
        record = self._record(place)
        if record is None:
            raise NotFound(f"instance {instance} has no root file system")
        lowers = tuple(self._layers.diff(chain) for chain in reversed(record.chains))
        return Rootfs(path=str(place / "merged"), upper=str(place / "upper"), lowers=lowers)

    def chains(self) -> set[str]:
        """The layers that instances use."""
        return {chain for record in self._records() for chain in record.chains}

    def images(self) -> set[str]:
        """The images that instances were made from."""
        return {record.image for record in self._records()}

    def _records(self) -> list[_Record]:
        found = [self._record(Path(entry.path)) for entry in entries(self._folder)]
        return [record for record in found if record is not None]

    def _record(self, place: Path) -> _Record | None:
        try:
            return msgspec.json.decode((place / "record.json").read_bytes(), type=_Record)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def _place(self, instance: str) -> Path:
        if not _NAME.fullmatch(instance):
            raise Invalid(f"{instance!r} cannot name a root file system")
        return self._folder / instance
