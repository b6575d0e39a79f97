"""`docker pull`: from a reference to an image that is here, layers fetched and unpacked in parallel."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from insula.errors import Invalid, NotFound
from insula.host.threads import to_end
from insula.images import manifests
from insula.images.content import Content
from insula.images.contract import Image, Progress, Report
from insula.images.layers import chain_ids
from insula.images.metadata import LayerBlob
from insula.images.reference import Reference
from insula.images.registry import Fetched, Registry
from insula.images.resolve import short
from insula.tasks import in_thread

_PARALLEL = 3  # downloads at once, as dockerd
_REPORT_EVERY_S = 0.1


def _silent(_: Progress) -> None:
    return


class Pull:
    """One pull. Call `run` inside `Content.hold()`."""

    def __init__(
        self,
        content: Content,
        registry: Registry,
        reference: Reference,
        platform: manifests.Platform,
        report: Report | None,
    ) -> None:
        self._content = content
        self._registry = registry
        self._reference = reference
        self._platform = platform
        self._report = report or _silent
        self._slots = asyncio.Semaphore(_PARALLEL)

    async def run(self, *, strict_platform: bool) -> Image:
        """Raises NotFound (name, platform), Invalid (lies), Forbidden, Unauthorized, Unavailable, HostFault."""
        reference = self._reference
        wanted = reference.digest or reference.tag or "latest"
        self._report(Progress(status=f"Pulling from {reference.path}", id=wanted))
        top = await self._registry.manifest(wanted)
        manifest = await self._resolve(top)
        config, parsed = await self._config(manifest, strict_platform)
        before = self._content.catalog.names.get(reference.tagged)
        layers = await self._layers(manifest, parsed.diff_ids)
        image = await self._content.add(
            config,
            layers,
            names=[] if reference.digest else [reference.tagged],
            digests=[f"{reference.name}@{top.digest}"],
        )
        self._report(Progress(status=f"Digest: {top.digest}"))
        status = "Image is up to date for" if before == image.id else "Downloaded newer image for"
        self._report(Progress(status=f"Status: {status} {reference.familiar}"))
        return image

    async def _resolve(self, top: Fetched) -> manifests.Manifest:
        parsed = manifests.parse_manifest(top.data, top.media_type)
        for _ in range(3):
            if isinstance(parsed, manifests.Manifest):
                return parsed
            chosen = manifests.choose(parsed.manifests, self._platform)
            if chosen is None:
                raise NotFound(f"no matching manifest for {self._platform} in the manifest list entries", kind="image")
            fetched = await self._registry.manifest(chosen.digest)
            if len(fetched.data) != chosen.size:
                raise Invalid(
                    f"the manifest {chosen.digest} has {len(fetched.data)} bytes, not the promised {chosen.size}"
                )
            parsed = manifests.parse_manifest(fetched.data, fetched.media_type)
        raise Invalid("the registry's indexes are nested too deeply")

    async def _config(self, manifest: manifests.Manifest, strict_platform: bool) -> tuple[bytes, manifests.ConfigFile]:
        descriptor = manifest.config
        blobs = self._content.blobs
        if descriptor.size > manifests.MAX_DOCUMENT_BYTES:
            raise Invalid(f"the image's configuration is larger than {manifests.MAX_DOCUMENT_BYTES} bytes")
        if not await in_thread(blobs.has, descriptor.digest):
            await self._registry.fetch(blobs, descriptor.digest, descriptor.size, lambda _: None)
        config = await in_thread(blobs.read, descriptor.digest)
        parsed = manifests.parse_config(config)
        if len(parsed.diff_ids) != len(manifest.layers):
            raise Invalid(
                f"the image has {len(manifest.layers)} layers, but {len(parsed.diff_ids)} in its configuration"
            )
        if strict_platform and parsed.architecture != self._platform.architecture:
            raise NotFound(
                f"image with reference {self._reference.familiar} was found but does not match the specified platform: "
                f"wanted {self._platform}, actual: {parsed.os}/{parsed.architecture}",
                kind="image",
            )
        return config, parsed

    async def _layers(self, manifest: manifests.Manifest, diff_ids: tuple[str, ...]) -> list[LayerBlob]:
        """All layers; when one fails the others are cancelled, and have ended when this raises."""
        chains = chain_ids(diff_ids)
        for layer in manifest.layers:
            self._report(Progress(status="Pulling fs layer", id=short(layer.digest)))
        work = [
            asyncio.ensure_future(self._layer(*each)) for each in zip(manifest.layers, diff_ids, chains, strict=True)
        ]
        try:
            return list(await asyncio.gather(*work))
        except BaseException:
            for task in work:
                task.cancel()
            await to_end(asyncio.gather(*work, return_exceptions=True))
            raise

    async def _layer(self, layer: manifests.Descriptor, diff_id: str, chain: str) -> LayerBlob:
        blobs, name = self._content.blobs, short(layer.digest)
        if await in_thread(blobs.has, layer.digest):
            done = "Already exists"
        else:
            async with self._slots:
                progress = self._downloading(name, layer.size)
                await self._registry.fetch(blobs, layer.digest, layer.size, progress)
            self._report(Progress(status="Download complete", id=name))
            done = "Pull complete"
        if self._content.layers.record(chain) is None:
            self._report(Progress(status="Extracting", id=name, current=layer.size, total=layer.size))
            await self._content.layers.ensure(chain, diff_id, layer.digest)
        self._report(Progress(status=done, id=name))
        return LayerBlob(diff_id=diff_id, digest=layer.digest, media_type=layer.media_type, size_bytes=layer.size)

    def _downloading(self, name: str, size: int) -> Callable[[int], None]:
        last = 0.0

        def progress(current: int) -> None:
            nonlocal last
            if time.monotonic() - last >= _REPORT_EVERY_S:
                last = time.monotonic()
                self._report(Progress(status="Downloading", id=name, current=current, total=size))

        return progress
