"""Which images there are: names to ids, ids to blobs. One small file, replaced atomically and flushed at each change.

Kept in memory; changes are plain functions from one `Catalog` to the next, so that a write that fails changes nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec
from msgspec import Struct, field

from insula.errors import HostFault
from insula.host.threads import change as in_thread_to_end
from insula.images.blobs import disk_fault


class LayerBlob(Struct, frozen=True, kw_only=True):
    """One layer as it is kept and pushed: its content's identity, and the blob (compressed or not) that holds it."""

    diff_id: str
    digest: str
    media_type: str
    size_bytes: int


class Entry(Struct, frozen=True, kw_only=True):
    """One image. `digests` are `name@sha256:...` of the manifests it was pulled or pushed as."""

    id: str
    layers: tuple[LayerBlob, ...]
    size_bytes: int  # unpacked
    digests: tuple[str, ...] = ()
    parent: str = ""  # the image it was committed from
    tagged_at: str = ""  # when a name was given to it last, RFC 3339
    boot: str = ""  # in which boot of the machine its blobs came, as long as they may not be on the disk


class Catalog(Struct, frozen=True, kw_only=True):
    """Everything. `names` maps `busybox:latest` to an id. `orphans` were removed by force while stopped instances needed
    them: nobody finds them by looking, and they go with the last of those instances."""

    version: int = 1
    images: dict[str, Entry] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    orphans: dict[str, Entry] = field(default_factory=dict)

    def entry(self, image: str) -> Entry | None:
        """An image by its full id, orphans too."""
        return self.images.get(image) or self.orphans.get(image)

    def children_of(self, image: str) -> list[str]:
        """The images that were committed from one."""
        return [each.id for each in self.images.values() if each.parent == image and each.id != image]

    def names_of(self, image: str) -> tuple[str, ...]:
        """The names of an image, sorted."""
        return tuple(sorted(name for name, target in self.names.items() if target == image))


def with_image(catalog: Catalog, entry: Entry, names: tuple[str, ...] = (), *, now: str = "") -> Catalog:
    """Add an image and its names, given at `now`; the digests it had before stay."""
    if known := catalog.images.get(entry.id):
        digests = tuple(dict.fromkeys((*known.digests, *entry.digests)))
        entry = msgspec.structs.replace(
            entry, digests=digests, parent=entry.parent or known.parent, tagged_at=known.tagged_at
        )
    if names:
        entry = msgspec.structs.replace(entry, tagged_at=now)
    return Catalog(
        images=catalog.images | {entry.id: entry},
        names=catalog.names | dict.fromkeys(names, entry.id),
        orphans=_without(catalog.orphans, entry.id),
    )


def without_names(catalog: Catalog, image: str, names: tuple[str, ...], digests: tuple[str, ...] = ()) -> Catalog:
    """Take names and `name@digest`s of an image away; a name that has moved to another image meanwhile stays."""
    kept = {name: target for name, target in catalog.names.items() if name not in names or target != image}
    images = catalog.images
    if entry := images.get(image):
        left = tuple(each for each in entry.digests if each not in digests)
        images = images | {image: msgspec.structs.replace(entry, digests=left)}
    return msgspec.structs.replace(catalog, images=images, names=kept)


def without_image(catalog: Catalog, image: str, *, orphan: bool = False) -> Catalog:
    """Delete an image and its names. With `orphan` it is kept for the instances that need it."""
    orphans = _without(catalog.orphans, image)
    if orphan and (entry := catalog.entry(image)):
        orphans[image] = msgspec.structs.replace(entry, digests=())
    names = {name: target for name, target in catalog.names.items() if target != image}
    return Catalog(images=_without(catalog.images, image), names=names, orphans=orphans)


def with_safe(catalog: Catalog, images: Collection[str]) -> Catalog:
    """The blobs of these are on the disk."""

    def marked(entries: dict[str, Entry]) -> dict[str, Entry]:
        return {
            key: msgspec.structs.replace(entry, boot="") if key in images and entry.boot else entry
            for key, entry in entries.items()
        }

    return msgspec.structs.replace(catalog, images=marked(catalog.images), orphans=marked(catalog.orphans))


def without_parents(catalog: Catalog, images: Collection[str]) -> Catalog:
    """Delete nameless images that others were made from; one that got a name meanwhile stays."""
    for image in images:
        entry = catalog.images.get(image)
        if entry is not None and not entry.digests and not catalog.names_of(image):
            catalog = without_image(catalog, image)
    return catalog


def with_orphans(catalog: Catalog, needed: Collection[str]) -> Catalog:
    """Keep only those orphans."""
    kept = {image: entry for image, entry in catalog.orphans.items() if image in needed}
    return msgspec.structs.replace(catalog, orphans=kept)


def _without(entries: dict[str, Entry], image: str) -> dict[str, Entry]:
    return {key: entry for key, entry in entries.items() if key != image}


class Metadata:
    """The catalog on disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = asyncio.Lock()
        self.catalog = self._read()

    def _read(self) -> Catalog:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Catalog)
        except FileNotFoundError:
            return Catalog()
        except msgspec.DecodeError as error:
            raise HostFault(f"the list of images in {self._path} cannot be read: {error}") from None

    async def change(self, step: Callable[[Catalog], Catalog]) -> Catalog:
        """Apply a pure step to the newest catalog and write it down. Raises HostFault; then nothing has changed."""
        async with self._lock:
            changed = step(self.catalog)
            if changed != self.catalog:
                await in_thread_to_end(self._write, changed)
            return changed

    def _write(self, catalog: Catalog) -> None:
        fresh = self._path.with_suffix(".new")
        try:
            with fresh.open("wb") as file:
                file.write(msgspec.json.encode(catalog))
                file.flush()
                os.fdatasync(file.fileno())
            fresh.rename(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
            self.catalog = catalog
        except OSError as error:
            raise disk_fault(error, "write the list of images") from None
