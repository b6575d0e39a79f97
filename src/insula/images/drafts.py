"""Images that are being built: root file systems made of layers that no image has yet, and the layers that come out of them.

A *state* is the layers of a root file system, lowest first. `mount` makes one writable under a name, `seal` takes what was
written as the next layer: its tar is hashed and kept as a blob, and the written folder itself becomes the unpacked layer.
Whoever builds does all of it inside `hold()`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from insula.errors import InsulaError
from insula.host.threads import change
from insula.images import manifests
from insula.images.blobs import Blobs, digest_of
from insula.images.buildcache import BuildCache, Record
from insula.images.content import Content
from insula.images.contract import Image, Rootfs
from insula.images.diff import write_diff
from insula.images.layers import LayerRecord, chain_ids
from insula.images.metadata import Entry, LayerBlob, with_image
from insula.images.reference import parse_name
from insula.images.rootfs import BUILDING
from insula.tasks import in_thread

State = tuple[LayerBlob, ...]


class Sealed(Struct, frozen=True, kw_only=True):
    """A layer that was written; None when nothing was."""

    layer: LayerBlob | None
    chain: str = ""
    size_bytes: int = 0


class Drafts:
    """What a builder needs of one node's image store."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self.cache: BuildCache = content.cache

    @property
    def platform(self) -> manifests.Platform:
        """What this machine runs."""
        return manifests.host_platform(os.uname().machine)

    def hold(self) -> AbstractAsyncContextManager[None]:
        """While this is open nothing is swept."""
        return self._content.hold()

    def temporary(self, kind: str) -> Path:
        """A new name on the store's file system; what is left there is removed at the next start."""
        return self._content.blobs.temporary_path(kind)

    @property
    def folder(self) -> Path:
        """Where the store is."""
        return self._content.folder

    # --- images ---------------------------------------------------------------------------------------------------

    def state_of(self, image: Image) -> State:
        """The layers of an image. Raises NotFound."""
        return self._content.entry(image.id).layers

    def announce(self, state: State, config: dict[str, Any], platform: manifests.Platform) -> Image:
        """Make a state known as an image to whoever asks by its id, in memory only; until `forget`."""
        document = {
            "architecture": platform.architecture,
            "os": platform.os,
            "variant": platform.variant,
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [each.diff_id for each in state]},
        }
        encoded = manifests.encode(document)
        entry = Entry(id=f"sha256:{os.urandom(32).hex()}", layers=state, size_bytes=0)
        image = manifests.describe(entry, encoded, ())
        self._content.drafts[entry.id] = (entry, image)
        return image

    def forget(self, image: Image) -> None:
        """Repeatable."""
        self._content.drafts.pop(image.id, None)

    async def publish(self, config: bytes, state: State, *, names: Sequence[str], parent: str = "") -> Image:
        """Make an image of a state. Raises Invalid, HostFault."""
        tagged = [parse_name(name).tagged for name in names]
        identity = digest_of(config)
        known = self._content.catalog.images.get(identity)
        if known is None:
            return await self._content.add(config, state, names=tagged, parent=parent)
        if any(self._content.catalog.names.get(name) != identity for name in tagged):
            await self._content.metadata.change(
                lambda catalog: with_image(catalog, catalog.images.get(identity, known), tuple(tagged))
            )
        return self._content.image(identity)

    # --- root file systems ----------------------------------------------------------------------------------------

    async def usable(self, record: Record, state: State) -> bool:
        """Whether a cached layer is there, whole; one that is not is dropped from the cache. `state` is what it lies upon."""
        if record.layer is None:
            return True
        layer = record.layer
        chain = chain_ids([*(each.diff_id for each in state), layer.diff_id])[-1]
        if self._content.layers.record(chain) is not None and self._content.blobs.has(layer.digest):
            return True
        try:
            if self._content.blobs.has(layer.digest):
                await self._content.layers.ensure(chain, layer.diff_id, layer.digest)
                return True
        except InsulaError:  # damaged
            self._content.blobs.delete(layer.digest)
        await in_thread(self.cache.drop, record.key)
        return False

    def size_of(self, state: State) -> int:
        """Bytes of its topmost layer, unpacked."""
        record = self._content.layers.record(chain_ids([each.diff_id for each in state])[-1]) if state else None
        return record.size_bytes if record else 0

    async def mount(self, name: str, state: State) -> Rootfs:
        """A writable root file system on top of a state, never synced. Raises HostFault."""
        diff_ids = [layer.diff_id for layer in state]
        chains = chain_ids(diff_ids)
        layers = self._content.layers
        if any(layers.record(chain) is None for chain in chains):
            await layers.ensure_all(diff_ids, [layer.digest for layer in state])
        return await change(self._content.rootfs.mount, name, "", tuple(chains), volatile=True)

    def name(self) -> str:
        """A new name for a root file system that is needed for a moment."""
        return BUILDING + os.urandom(8).hex()

    async def mount_over(self, name: str, folder: str) -> Rootfs:
        """A folder that can be written to without being changed. Raises HostFault."""
        return await change(self._content.rootfs.mount, name, "", (), volatile=True, over=folder)

    async def upper(self, name: str) -> str:
        """The folder that holds what was written into a mounted root file system. Raises NotFound."""
        return (await in_thread(self._content.rootfs.get, name)).upper

    async def discard(self, name: str) -> None:
        """Unmount it and delete what was written. Repeatable."""
        await change(self._content.rootfs.unmount, name, remove=True)

    async def seal(self, name: str, state: State) -> Sealed:
        """Take what was written into a mounted root file system as the next layer. It is unmounted and used up. Raises
        HostFault."""
        sealed = await change(self._seal, name, state)
        self._content.layers.flush_later()
        return sealed

    def _seal(self, name: str, state: State) -> Sealed:
        rootfs = self._content.rootfs
        upper = rootfs.get(name).upper
        rootfs.unmount(name, remove=False)
        try:
            return self._adopt(Path(upper), state)
        finally:
            rootfs.unmount(name, remove=True)

    def _adopt(self, upper: Path, state: State) -> Sealed:
        if not os.listdir(upper):  # noqa: PTH208 - only whether there is anything
            return Sealed(layer=None)
        layer, size = written_layer(self._content.blobs, str(upper))
        chain = chain_ids([*(each.diff_id for each in state), layer.diff_id])[-1]
        record = LayerRecord(diff_id=layer.diff_id, size_bytes=size, has_root=False, boot=self._content.layers.boot)
        self._content.layers.adopt(chain, upper, record)
        return Sealed(layer=layer, chain=chain, size_bytes=size)

    async def seal_copy(self, upper: str, state: State) -> Sealed:
        """Likewise of a folder that stays as it is."""

        def work() -> Sealed:
            if not os.listdir(upper):  # noqa: PTH208
                return Sealed(layer=None)
            layer, size = written_layer(self._content.blobs, upper)
            return Sealed(layer=layer, size_bytes=size)

        sealed = await change(work)
        if sealed.layer is None:
            return sealed
        chain = chain_ids([*(each.diff_id for each in state), sealed.layer.diff_id])[-1]
        await self._content.layers.ensure(chain, sealed.layer.diff_id, sealed.layer.digest)
        return msgspec.structs.replace(sealed, chain=chain)

    # --- room -----------------------------------------------------------------------------------------------------

    def needed_chains(self) -> set[str]:
        """The unpacked layers that images need: dropping a cache record of one of these frees nothing."""
        images = [*self._content.catalog.images.values(), *self._content.catalog.orphans.values()]
        return {chain for entry in images for chain in chain_ids([layer.diff_id for layer in entry.layers])}

    async def sweep(self) -> None:
        """Delete what nothing needs any more."""
        await self._content.sweep()


def written_layer(blobs: Blobs, folder: str) -> tuple[LayerBlob, int]:
    """Keep a written folder's difference as a blob, not yet flushed to disk. Returns it with the bytes of its files. Blocks."""
    writer = blobs.writer()
    try:
        size = write_diff(folder, writer)
        digest = writer.commit()
    finally:
        writer.abort()
    return LayerBlob(diff_id=digest, digest=digest, media_type=manifests.OCI_LAYER, size_bytes=writer.size), size
