"""`docker push`: the layers that the registry lacks, the configuration, and last the manifest."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterator

import msgspec

from insula.host.tarstream import CHUNK
from insula.host.threads import change, to_end
from insula.images import manifests, reference
from insula.images.archive_out import oci_manifest
from insula.images.blobs import Blobs, digest_of
from insula.images.content import Content
from insula.images.contract import Progress, Pushed, Report
from insula.images.metadata import Catalog, Entry, LayerBlob, with_image
from insula.images.registry import Registry
from insula.images.resolve import short
from insula.images.transfers import Transfers


class Push:
    """One push. Call `run` inside `Content.hold()`."""

    def __init__(
        self,
        content: Content,
        registry: Registry,
        target: reference.Reference,
        report: Report | None,
        transfers: Transfers,
    ) -> None:
        self._content = content
        self._registry = registry
        self._target = target
        self._report = report or (lambda _: None)
        self._slots = transfers.uploads

    async def run(self, entry: Entry) -> Pushed:
        """Raises Forbidden, Unauthorized, Unavailable, HostFault."""
        self._report(Progress(status=f"The push refers to repository [{self._target.full_name}]"))
        for layer in reversed(entry.layers):
            self._report(Progress(status="Preparing", id=short(layer.diff_id)))
        work = [asyncio.ensure_future(self._layer(layer)) for layer in entry.layers]
        try:
            layers = tuple(await asyncio.gather(*work))
        except BaseException:
            for task in work:
                task.cancel()
            await to_end(asyncio.gather(*work, return_exceptions=True))
            raise
        if not await self._registry.has(entry.id):
            await self._registry.upload(self._content.blobs, entry.id, mount_from="", progress=lambda _: None)
        data, media_type = self._manifest(entry, layers)
        tag = self._target.tag or "latest"
        await self._registry.put_manifest(tag, data, media_type)
        digest = digest_of(data)
        pushed = msgspec.structs.replace(entry, layers=layers, digests=(f"{self._target.name}@{digest}",))
        await self._content.metadata.change(
            lambda catalog: with_image(catalog, pushed) if entry.id in catalog.images else catalog
        )
        self._report(Progress(status=f"{tag}: digest: {digest} size: {len(data)}"))
        return Pushed(digest=digest, size_bytes=len(data))

    def _manifest(self, entry: Entry, layers: tuple[LayerBlob, ...]) -> tuple[bytes, str]:
        """Docker's schema 2, which the oldest registries know, where its media types suffice; else OCI's."""
        docker = all(layer.media_type.endswith("gzip") for layer in layers)
        size = self._content.blobs.size(entry.id)
        document = oci_manifest(entry.id, size, layers, docker=docker)
        return manifests.encode(document), str(document["mediaType"])

    async def _layer(self, layer: LayerBlob) -> LayerBlob:
        name = short(layer.diff_id)
        if self._slots.locked():
            self._report(Progress(status="Waiting", id=name))
        async with self._slots:
            if not layer.media_type.endswith(("gzip", "zstd")):
                layer = await change(compress, self._content.blobs, layer)
                self._content.soil()
            if await self._registry.has(layer.digest):
                self._report(Progress(status="Layer already exists", id=name))
                return layer
            source = mount_source(self._content.catalog, self._target, layer.digest)

            def progress(sent: int) -> None:
                self._report(Progress(status="Pushing", id=name, current=sent, total=layer.size_bytes))

            sent = await self._registry.upload(self._content.blobs, layer.digest, mount_from=source, progress=progress)
            self._report(Progress(status="Pushed" if sent else f"Mounted from {source}", id=name))
        return layer


def mount_source(catalog: Catalog, target: reference.Reference, digest: str) -> str:
    """Another repository of the same registry that should have a layer, because an image with it came from or went there."""
    for entry in catalog.images.values():
        if any(layer.digest == digest for layer in entry.layers):
            for each in entry.digests:
                known = reference.parse(each)
                if known.domain == target.domain and known.path != target.path:
                    return known.path
    return ""


def compress(blobs: Blobs, layer: LayerBlob) -> LayerBlob:
    """The same layer in gzip. Blocks. Without a time in its header, so that it always gets the same digest."""
    writer = blobs.writer()
    try:
        for piece in _gzip(blobs, layer.digest):
            writer.write(piece)
        digest = writer.commit()
    finally:
        writer.abort()
    return LayerBlob(
        diff_id=layer.diff_id,
        digest=digest,
        media_type=f"{manifests.OCI_LAYER}+gzip",
        size_bytes=writer.size,
    )


def _gzip(blobs: Blobs, digest: str) -> Iterator[bytes]:
    packer = zlib.compressobj(wbits=31)
    with blobs.path(digest).open("rb") as file:
        while data := file.read(CHUNK * 4):
            yield packer.compress(data)
    yield packer.flush()
