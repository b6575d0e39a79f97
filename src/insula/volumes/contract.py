"""What the rest of the node tower needs of volumes: named folders, and disks for machines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Protocol

from msgspec import Struct, field

from insula.model.instance import Disk, DiskConfig


class Volume(Struct, frozen=True, kw_only=True):
    """A named folder that outlives instances."""

    name: str
    path: str
    driver: str = "local"
    created: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    anonymous: bool = False


class Volumes(Protocol):
    """The volumes of one node."""

    async def get(self, name: str) -> Volume:
        """Raises NotFound."""
        ...

    async def list(self) -> Sequence[Volume]:
        """All, by name."""
        ...

    async def create(
        self, name: str = "", *, labels: dict[str, str] | None = None, options: dict[str, str] | None = None
    ) -> Volume:
        """Make it, or return the one of that name as it is; an empty name makes an anonymous one. `options` are those of
        Docker's `local` driver. Raises Invalid."""
        ...

    async def take(self, name: str, owner: str) -> None:
        """`owner` is about to use it: what its options name is mounted onto its folder. Repeatable. Raises NotFound,
        HostFault."""
        ...

    async def leave(self, owner: str) -> None:
        """`owner` uses no volume any more: what nobody uses is unmounted. Repeatable. Raises HostFault."""
        ...

    async def recover(self, users: Mapping[str, Collection[str]]) -> None:
        """At start: which owners use which volumes, by name; what nobody uses is unmounted."""
        ...

    async def remove(self, name: str) -> None:
        """Delete with contents. Who calls has checked that nobody uses it."""
        ...

    async def populate(self, volume: Volume, source: str) -> None:
        """Copy `source` (a folder of an instance's root) into an empty volume, owners and modes kept."""
        ...

    async def make_disk(self, owner: str, disk: DiskConfig, *, backing: str = "") -> Disk:
        """Make a machine's disk in the owner's folder: an overlay on `backing`, an empty one, or a NoCloud seed ISO.
        Formats are probed by us: a qcow2 with a backing file of its own is refused. Raises Invalid (truncated, unknown)."""
        ...

    async def drop_disks(self, owner: str) -> None:
        """Delete an owner's disks. Repeatable."""
        ...

    async def import_disk(self, source: AsyncIterator[bytes], path: str) -> None:
        """Write an uploaded or downloaded disk image, sparse, verified to be whole."""
        ...
