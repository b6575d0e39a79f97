"""The parts of the image store held together: blobs, unpacked layers, the catalog, root file systems; and their sweeping.

Whoever brings content in does it inside `hold()`: what no image needs *yet* is not swept meanwhile. A sweep only renames,
so it is short, and can be killed at any time: what it left is swept next time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec

from insula import clock
from insula.errors import InsulaError, Invalid, NotFound
from insula.host.threads import change
from insula.images import manifests
from insula.images.blobs import Blobs
from insula.images.buildcache import BuildCache
from insula.images.contract import Image
from insula.images.flushing import Flusher, Unsafe
from insula.images.layers import Layers, chain_ids
from insula.images.metadata import (
    Catalog,
    Entry,
    LayerBlob,
    Metadata,
    with_image,
    with_orphans,
    with_safe,
    without_image,
)
from insula.images.rootfs import RootFilesystems
from insula.tasks import in_thread

log = logging.getLogger(__name__)


class Content:
    """Everything below one data folder. Made in a thread: reading it takes time."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # Layers hold setuid programs and device nodes: nobody but root may reach them.
        folder.chmod(0o700)
        self.folder = folder
        self.blobs = Blobs(folder / "blobs", folder / "tmp")
        self.flusher = Flusher(folder, self._unsafe, self._mark_safe)
        self.layers = Layers(folder / "layers", self.blobs, self.flusher.soon)
        self.metadata = Metadata(folder / "images.json")
        self.rootfs = RootFilesystems(folder / "rootfs", self.layers, folder / "tmp")
        self.cache = BuildCache(folder / "buildcache")
        self.drafts: dict[str, tuple[Entry, Image]] = {}  # images being built, known to their builder only
        self._described: dict[str, Image] = {}
        self._gate = asyncio.Lock()
        self._holders = 0
        self._dirty = False

    @property
    def catalog(self) -> Catalog:
        """The newest."""
        return self.metadata.catalog

    # --- images ---------------------------------------------------------------------------------------------------

    def image(self, identity: str) -> Image:
        """One image by its full id, orphans too. Reads its configuration once. Raises NotFound."""
        if identity in self.drafts:
            return self.drafts[identity][1]
        entry = self.entry(identity)
        base = self._described.get(identity)
        if base is None:
            base = manifests.describe(entry, self.blobs.read(identity), ())
            self._described[identity] = base
        return msgspec.structs.replace(
            base,
            names=self.catalog.names_of(identity),
            digests=entry.digests,
            parent=entry.parent if entry.parent in self.catalog.images else "",
            tagged_at=entry.tagged_at,
        )

    def entry(self, identity: str) -> Entry:
        """Raises NotFound."""
        entry = self.drafts[identity][0] if identity in self.drafts else self.catalog.entry(identity)
        if entry is None:
            raise NotFound(f"No such image: {identity}", kind="image", name=identity)
        return entry

    async def add(
        self,
        config: bytes,
        layers: Sequence[LayerBlob],
        *,
        names: Sequence[str] = (),
        digests: Sequence[str] = (),
        parent: str = "",
    ) -> Image:
        """Make an image of blobs that are here: unpack, verify, and only then write it down. Call inside `hold()`.

        Raises Invalid (damaged, wrong digests), TooLarge, HostFault.
        """
        parsed = manifests.parse_config(config)
        if parsed.os not in ("", "linux"):
            raise Invalid(f"cannot load {parsed.os} image on linux")
        if parsed.diff_ids != tuple(layer.diff_id for layer in layers):
            raise Invalid("the image configuration lists other layers than its manifest")
        identity = await change(self.blobs.put, config)
        digests_needed = {layer.digest for layer in layers}
        records = await self.layers.ensure_all(parsed.diff_ids, [layer.digest for layer in layers])
        entry = Entry(
            id=identity,
            layers=tuple(layers),
            size_bytes=sum(record.size_bytes for record in records),
            digests=tuple(digests),
            parent=parent,
            boot=self.layers.boot,
        )
        now = clock.rfc3339_nano(clock.now())
        await self.metadata.change(lambda catalog: with_image(catalog, entry, tuple(names), now=now))
        await in_thread(self.blobs.settle, digests_needed | {identity})
        self.flusher.soon()
        return await in_thread(self.image, identity)

    async def ensure(self, identity: str) -> tuple[str, ...]:
        """The chain ids of an image, lowest first, all of them unpacked. Raises NotFound."""
        entry = self.entry(identity)
        diff_ids = [layer.diff_id for layer in entry.layers]
        chains = chain_ids(diff_ids)
        if any(self.layers.record(chain) is None for chain in chains):
            await self.layers.ensure_all(diff_ids, [layer.digest for layer in entry.layers])
        return tuple(chains)

    # --- sweeping -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """While this is open nothing is swept."""
        async with self._gate:
            self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            if self._dirty:
                await self.sweep()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[bool]:
        """Whether nobody brings content in; nobody begins to while this is open."""
        async with self._gate:
            yield self._holders == 0

    async def sweep(self) -> list[str]:
        """Delete what no image and no instance needs, now or when the last holder is done. Returns chain ids."""
        async with self._gate:
            self._dirty = self._holders > 0
            if self._dirty:
                return []
            if self.catalog.orphans:
                needed = await in_thread(self.rootfs.images)
                await self.metadata.change(lambda catalog: with_orphans(catalog, needed))
            gone = await change(self._sweep)
        await change(self.blobs.empty_trash)
        return gone

    def soil(self) -> None:
        """Say that there is something to sweep, when the present holders are done."""
        self._dirty = True

    def _sweep(self) -> list[str]:
        images = self._entries().values()
        needed = {layer.digest for entry in images for layer in entry.layers} | {entry.id for entry in images}
        needed |= self.cache.blobs()
        for digest in [digest for digest in self.blobs.all() if digest not in needed]:
            self.blobs.delete(digest)
        chains = {chain for entry in images for chain in chain_ids([layer.diff_id for layer in entry.layers])}
        for identity in self._described.keys() - self._entries().keys():
            self._described.pop(identity, None)
        return self.layers.sweep(chains | self.rootfs.chains() | self.cache.chains())

    def _entries(self) -> dict[str, Entry]:
        return self.catalog.images | self.catalog.orphans

    async def recover(self) -> None:
        """At start, before anything else."""
        await in_thread(self.rootfs.recover)
        await in_thread(self.blobs.recover)
        await in_thread(self.cache.recover)
        await in_thread(self.layers.recover)
        for identity in await in_thread(self._broken):
            log.error("an image has lost content on disk and is dropped; pull it again", extra={"image": identity})
            await self.metadata.change(partial(without_image, image=identity))
        await self.sweep()
        if self._unsafe():
            self.flusher.soon()

    def _broken(self) -> list[str]:
        """Images that a damaged disk took content from; the others' configurations are read ahead. Those that were not safe
        when the machine itself stopped are read whole."""
        broken, sound = [], set[str]()
        for identity, entry in self._entries().items():
            try:
                self.image(identity)
                for digest, size in ((identity, None), *((layer.digest, layer.size_bytes) for layer in entry.layers)):
                    if size is not None and self.blobs.size(digest) != size:
                        raise FileNotFoundError(digest)
                    if entry.boot not in ("", self.layers.boot) and digest not in sound:
                        self.blobs.verify(digest)
                        sound.add(digest)
            except (OSError, InsulaError):
                broken.append(identity)
        return broken

    # --- flushing -------------------------------------------------------------------------------------------------

    def _unsafe(self) -> Unsafe:
        images = tuple(identity for identity, entry in self._entries().items() if entry.boot)
        return Unsafe(tuple(self.layers.unsafe()), images)

    async def _mark_safe(self, found: Unsafe) -> None:
        await in_thread(self.layers.mark_safe, found.chains)
        if found.images:
            await self.metadata.change(partial(with_safe, images=found.images))

    async def close(self) -> None:
        """Wait for what runs in the background."""
        await self.flusher.close()
        await self.layers.close()
