"""The volumes of one node: `contract.Volumes` on a folder.

<data>/volumes/<name>/_data         the folder that instances see
                     /volume.json   labels, options; written before the volume is acknowledged
                     /populating    there while `populate` copies: a copy that was killed is done again
      /disks/<owner>/<name>.<format>   see disks.py
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from pathlib import Path
from typing import Self
from weakref import WeakValueDictionary

import msgspec
from msgspec import Struct, field

from insula import clock
from insula.errors import Conflict, HostFault, NotFound
from insula.host.copytree import copy_tree
from insula.host.folders import entries
from insula.host.mounts import is_mounted
from insula.host.rmtree import remove_tree
from insula.host.threads import change
from insula.model.instance import Disk, DiskConfig
from insula.tasks import in_thread
from insula.volumes import naming
from insula.volumes.contract import Volume
from insula.volumes.disks import Disks
from insula.volumes.mounting import Mounted
from insula.volumes.options import check, plan_of

ANONYMOUS_LABEL = "com.docker.volume.anonymous"
MAX_DISK_BYTES = 1 << 44  # 16 TiB


class _Record(Struct, frozen=True, kw_only=True):
    created: str
    labels: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)


class NodeVolumes:
    """The volumes and disks of one node."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = Path(data_dir) / "volumes"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o711)
        self._mounted = Mounted()
        self._disks = Disks(Path(data_dir) / "disks")
        self._records: dict[str, _Record] = self._read_all()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @classmethod
    async def open(cls, data_dir: Path) -> Self:
        """Open the volumes below a folder, made if it is missing."""
        return await in_thread(cls, data_dir)

    def _read_all(self) -> dict[str, _Record]:
        """A folder without its record was being made or removed when we were killed: its removal is finished."""
        records = {}
        for entry in entries(self._folder):
            try:
                records[entry.name] = msgspec.json.decode((Path(entry.path) / "volume.json").read_bytes(), type=_Record)
            except FileNotFoundError:
                remove_tree(entry.path, ignore_errors=True)
            except msgspec.DecodeError as error:
                raise HostFault(f"the record of volume {entry.name} cannot be read: {error}") from None
        return records

    # --- volumes --------------------------------------------------------------------------------------------------

    async def get(self, name: str) -> Volume:
        """Raises NotFound."""
        if name not in self._records:
            raise NotFound(f"get {name}: no such volume", kind="volume", name=name)
        return self._volume(name)

    async def list(self) -> Sequence[Volume]:
        """All, by name."""
        return [self._volume(name) for name in sorted(self._records)]

    async def create(
        self, name: str = "", *, labels: dict[str, str] | None = None, options: dict[str, str] | None = None
    ) -> Volume:
        """Make it, or return the one of that name as it is; an empty name makes an anonymous one. Raises Invalid."""
        if not name:
            name, labels = naming.anonymous(), {**(labels or {}), ANONYMOUS_LABEL: ""}
        naming.check_volume(name)
        async with self._lock(name):
            if name not in self._records:
                check(name, options or {})
                record = _Record(created=clock.rfc3339(clock.now()), labels=labels or {}, options=options or {})
                await change(self._make, name, record)
                self._records[name] = record
        return self._volume(name)

    def _make(self, name: str, record: _Record) -> None:
        place = self._folder / name
        try:
            (place / "_data").mkdir(parents=True, exist_ok=True)
            (place / "_data").chmod(0o755)
            fresh = place / "volume.json.new"
            with fresh.open("wb") as file:
                file.write(msgspec.json.encode(record))
                file.flush()
                os.fdatasync(file.fileno())
            fresh.rename(place / "volume.json")
        except OSError as error:
            remove_tree(place, ignore_errors=True)
            raise HostFault(
                f"cannot make the volume {name}: {os.strerror(error.errno or 0)}", code=error.errno
            ) from None

    async def remove(self, name: str) -> None:
        """Delete with contents. Raises NotFound, HostFault."""
        async with self._lock(name):
            volume = await self.get(name)
            mounted = await in_thread(is_mounted, volume.path) if volume.options else False
            if mounted:
                raise Conflict(f"remove {name}: volume has active mounts", kind="volume", name=name)
            await change(self._delete, name)

    def _delete(self, name: str) -> None:
        place = self._folder / name
        try:
            (place / "volume.json").unlink(missing_ok=True)  # from here on a restart finishes it
            self._records.pop(name, None)
            remove_tree(place)
        except OSError as error:
            raise HostFault(
                f"cannot remove the volume {name}: {os.strerror(error.errno or 0)}", code=error.errno
            ) from None

    # --- what options name ----------------------------------------------------------------------------------------

    async def take(self, name: str, owner: str) -> None:
        """`owner` is about to use it. Repeatable. Raises NotFound, HostFault."""
        if not (await self.get(name)).options:
            return
        async with self._lock(name):
            volume = await self.get(name)
            await self._mounted.take(name, owner, volume.path, plan_of(volume.options))

    async def leave(self, owner: str) -> None:
        """`owner` uses no volume any more. Repeatable. Raises HostFault."""
        for name in self._mounted.of(owner):
            async with self._lock(name):
                await self._mounted.leave(name, owner, str(self._folder / name / "_data"))

    async def recover(self, users: Mapping[str, Collection[str]]) -> None:
        """At start: who uses what."""
        for volume in await self.list():
            if volume.options:
                async with self._lock(volume.name):
                    await self._mounted.recover(volume.name, users.get(volume.name, ()), volume.path)

    async def populate(self, volume: Volume, source: str) -> None:
        """Copy `source` into an empty volume, everything kept; one with content is left alone. Raises HostFault."""
        async with self._lock(volume.name):
            await self.get(volume.name)
            await change(self._populate, self._folder / volume.name, source)

    @staticmethod
    def _populate(place: Path, source: str) -> None:
        data, mark = place / "_data", place / "populating"
        if mark.exists():
            for entry in entries(data):
                if entry.is_dir(follow_symlinks=False):
                    remove_tree(entry.path)
                else:
                    Path(entry.path).unlink()
        elif any(data.iterdir()):
            return
        mark.touch()
        copy_tree(source, str(data))
        mark.unlink()

    def _volume(self, name: str) -> Volume:
        record = self._records[name]
        return Volume(
            name=name,
            path=str(self._folder / name / "_data"),
            created=record.created,
            labels=record.labels,
            options=record.options,
            anonymous=ANONYMOUS_LABEL in record.labels,
        )

    def _lock(self, name: str) -> asyncio.Lock:
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        return lock

    # --- disks ----------------------------------------------------------------------------------------------------

    async def make_disk(self, owner: str, disk: DiskConfig, *, backing: str = "") -> Disk:
        """Make a machine's disk in the owner's folder. Raises Invalid, NotFound, Unsupported, HostFault."""
        return await self._disks.make(owner, disk, backing)

    async def drop_disks(self, owner: str) -> None:
        """Delete an owner's disks. Repeatable."""
        await self._disks.drop(owner)

    async def import_disk(self, source: AsyncIterator[bytes], path: str, *, max_bytes: int = MAX_DISK_BYTES) -> None:
        """Write an uploaded or downloaded disk image (raw or qcow2; gzip, xz, zstd, bzip2), sparse, verified to be whole.
        Raises Invalid, Unsupported, TooLarge, Conflict, HostFault."""
        await self._disks.receive(source, path, max_bytes)
