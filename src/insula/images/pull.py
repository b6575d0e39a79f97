"""`docker pull`: from a reference to an image that is here, layers fetched and unpacked in parallel."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from insula.errors import HostFault, Invalid, NotFound, Unsupported
from insula.host.threads import change, to_end
from insula.images import manifests
from insula.images.content import Content
from insula.images.contract import Distribution, Image, Progress, Report
from insula.images.layers import chain_ids
from insula.images.metadata import LayerBlob
from insula.images.reference import Reference
from insula.images.registry import Fetched, Registry
from insula.images.resolve import short
from insula.images.transfers import Transfers
from insula.tasks import in_thread

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
        transfers: Transfers,
    ) -> None:
        self._content = content
        self._registry = registry
        self._reference = reference
        self._platform = platform
        self._report = report or _silent
        self._transfers = transfers

    async def run(self) -> tuple[Image, bool]:
        """The image, and whether it is news: its name did not mean it before. Raises NotFound (name, platform), Invalid (lies),
        Forbidden, Unauthorized, Unavailable, HostFault."""
        reference = self._reference
        wanted = reference.digest or reference.tag or "latest"
        top = await self._registry.manifest(wanted)
        self._report(Progress(status=f"Pulling from {reference.path}", id=wanted))
        manifest = await self._resolve(top)
        config, parsed = await self._config(manifest)
        known = f"{reference.name}@{top.digest}"
        before = self._before(known)
        layers = await self._layers(manifest, parsed.diff_ids)
        image = await self._content.add(
            config, layers, names=[] if reference.digest else [reference.tagged], digests=[known]
        )
        self._report(Progress(status=f"Digest: {top.digest}"))
        return image, before != image.id

    def _before(self, known: str) -> str:
        """The image that the reference means as yet."""
        catalog = self._content.catalog
        if not self._reference.digest:
            return catalog.names.get(self._reference.tagged, "")
        return next((image for image, entry in catalog.images.items() if known in entry.digests), "")

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

    async def _config(self, manifest: manifests.Manifest) -> tuple[bytes, manifests.ConfigFile]:
        descriptor = manifest.config
        if descriptor.size > manifests.MAX_DOCUMENT_BYTES:
            raise Invalid(f"the image's configuration is larger than {manifests.MAX_DOCUMENT_BYTES} bytes")
        manifests.check_config_type(descriptor)
        await self._bring(descriptor, lambda _: None, lambda: None)
        config = await in_thread(self._content.blobs.read, descriptor.digest)
        parsed = manifests.parse_config(config)
        if len(parsed.diff_ids) != len(manifest.layers):
            raise Invalid(
                f"the image has {len(manifest.layers)} layers, but {len(parsed.diff_ids)} in its configuration"
            )
        return config, parsed

    async def _layers(self, manifest: manifests.Manifest, diff_ids: tuple[str, ...]) -> list[LayerBlob]:
        """All layers; when one fails the others are cancelled, and have ended when this raises."""
        chains = chain_ids(diff_ids)
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
        name = short(layer.digest)
        is_here = await in_thread(self._content.blobs.has, layer.digest)
        unpacked = self._content.layers.record(chain) is not None
        if is_here and unpacked:
            self._say("Already exists", name)
        else:
            self._say("Pulling fs layer", name)
            if not is_here:
                await self._download(layer, name)
            await self._content.layers.ensure(chain, diff_id, layer.digest, self._extracting(name, layer.size))
            self._say("Pull complete", name)
        return LayerBlob(diff_id=diff_id, digest=layer.digest, media_type=layer.media_type, size_bytes=layer.size)

    async def _download(self, layer: manifests.Descriptor, name: str) -> None:
        slots = self._transfers.downloads
        if slots.locked():
            self._say("Waiting", name)
        async with slots:
            await self._bring(
                layer, self._counting("Downloading", name, layer.size), lambda: self._say("Verifying Checksum", name)
            )
        self._say("Download complete", name)

    async def _bring(
        self, blob: manifests.Descriptor, progress: Callable[[int], None], verifying: Callable[[], None]
    ) -> None:
        """Bring a blob in unless it is here. What was left of an earlier attempt is gone on with; if that turns out to have been
        damaged, by a crash of the machine, all of it is fetched again."""
        async with self._transfers.one(blob.digest):
            if await in_thread(self._content.blobs.has, blob.digest):
                return
            if await self._bring_once(blob, progress, verifying):
                await self._bring_once(blob, progress, verifying)

    async def _bring_once(
        self, blob: manifests.Descriptor, progress: Callable[[int], None], verifying: Callable[[], None]
    ) -> bool:
        """Whether it is worth another try: what was there from before was wrong."""
        writer = self._content.blobs.resume(blob.digest)
        drop = resumed = False
        try:
            await change(writer.begin)
            resumed = writer.size > 0
            if writer.size > blob.size:
                await change(writer.restart)
            await self._registry.fetch(writer, blob.digest, blob.size, progress)
            verifying()
            await change(writer.commit, blob.digest)
        except NotFound as fault:
            if blob.is_foreign:
                raise Unsupported(
                    f"the layer {blob.digest} is kept outside of the registry (a Windows base layer), which does not have it"
                ) from fault
            raise
        except Invalid:
            drop = True
            if not resumed:
                raise
            return True
        except HostFault:
            drop = True  # a full disk is not kept full
            raise
        finally:
            await change(writer.abort, drop=drop)
        return False

    def _say(self, status: str, name: str) -> None:
        self._report(Progress(status=status, id=name))

    def _counting(self, status: str, name: str, size: int) -> Callable[[int], None]:
        last = 0.0

        def progress(current: int) -> None:
            nonlocal last
            if time.monotonic() - last >= _REPORT_EVERY_S or current == size:
                last = time.monotonic()
                self._report(Progress(status=status, id=name, current=current, total=size))

        return progress

    def _extracting(self, name: str, size: int) -> Callable[[int], None]:
        """For the thread that unpacks."""
        loop, tell = asyncio.get_running_loop(), self._counting("Extracting", name, size)

        def progress(current: int) -> None:
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(tell, current)

        return progress


async def look_at(registry: Registry, parsed: Reference) -> Distribution:
    """What a registry says of an image. Of an image without an index the configuration knows the platform."""
    top = await registry.manifest(parsed.digest or parsed.tag or "latest")
    found = manifests.parse_manifest(top.data, top.media_type)
    if isinstance(found, manifests.Index):
        platforms = [each.platform for each in found.manifests if each.platform is not None]
    else:
        config = manifests.parse_config(await registry.document(found.config.digest, found.config.size))
        platforms = [manifests.Platform(os=config.os, architecture=config.architecture, variant=config.variant)]
    return Distribution(
        media_type=top.media_type.partition(";")[0] or found.media_type,
        digest=top.digest,
        size_bytes=len(top.data),
        platforms=tuple(
            {name: text for name in ("architecture", "os", "variant") if (text := getattr(each, name))}
            for each in platforms
        ),
    )
