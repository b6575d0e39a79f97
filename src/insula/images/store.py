"""The image store of one node: `contract.ImageStore` on a folder.

    <data>/blobs/sha256/<hex>    configurations and layers as they came, see blobs.py
          /layers/<chain>/diff   unpacked, see layers.py
          /rootfs/<instance>     writable layers and mounts of instances, see rootfs.py
          /images.json           names and ids, see metadata.py
          /tmp                   whatever is half done

Open it with `await NodeImages.open(folder)`, then `recover()` once before use.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Self, TypeVar

from msgspec.structs import replace

from insula import clock
from insula.errors import Forbidden, Invalid, NotFound, TooManyRequests, Unauthorized, Unavailable
from insula.host.tarstream import consume, produce
from insula.host.threads import change
from insula.images import archive_in, archive_out, build, demo, manifests, resolve
from insula.images.bounded import Bounded
from insula.images.changes import apply_changes
from insula.images.content import Content
from insula.images.contract import Auth, Distribution, Image, Progress, Pushed, Report, Rootfs, Usage, Use
from insula.images.diff import write_diff
from insula.images.drafts import Drafts
from insula.images.history import history_rows
from insula.images.layers import chain_ids, usage_of
from insula.images.lookup import find_file
from insula.images.metadata import LayerBlob, with_image, without_image, without_names, without_parents
from insula.images.pull import Pull, look_at
from insula.images.push import Push
from insula.images.reference import Reference, parse, parse_name
from insula.images.registries import Registries, endpoints, with_environment
from insula.images.registry import Registry
from insula.images.transfers import Transfers
from insula.tasks import in_thread

log = logging.getLogger(__name__)
T = TypeVar("T")


class NodeImages:
    """The images of one node."""

    def __init__(self, content: Content, registries: Registries) -> None:
        self._content = content
        self._platform = manifests.host_platform(os.uname().machine)
        self._transfers = Transfers(registries)
        self.registries = registries

    @classmethod
    async def open(cls, data_dir: Path, *, registries: Registries | None = None) -> Self:
        """Open the store below a folder, made if it is missing."""
        return cls(await in_thread(Content, Path(data_dir)), with_environment(registries or Registries()))

    async def close(self) -> None:
        """Wait for background work; mounts stay."""
        await self._content.close()

    async def recover(self) -> None:
        """At start: drop half-written blobs and layers, remount nothing."""
        await self._content.recover()

    def drafts(self) -> Drafts:
        """See the contract."""
        return Drafts(self._content)

    # --- looking --------------------------------------------------------------------------------------------------

    async def get(self, reference: str, *, platform: str = "") -> Image:
        """Raises NotFound with Docker's sentence, also for an image of another platform than the one asked for; Invalid."""
        image = self._content.image(
            reference if reference in self._content.drafts else resolve.find(self._content.catalog, reference)
        )
        wanted = manifests.parse_platform(platform) if platform else None
        if wanted and not manifests.fits(image, wanted):
            raise NotFound(manifests.mismatch(reference, image, wanted), kind="image", name=reference)
        return image

    async def held(self, id: str) -> Image:
        """An image by its full id, also one removed by force that a stopped instance still needs. Raises NotFound."""
        return self._content.image(id)

    async def list(self) -> Sequence[Image]:
        """All images, newest first."""
        images = [self._content.image(identity) for identity in self._content.catalog.images]
        return sorted(images, key=lambda image: image.created, reverse=True)

    async def history(self, reference: str, *, platform: str = "") -> Sequence[dict[str, Any]]:
        """Newest first, as the Docker API answers."""
        image = await self.get(reference, platform=platform)
        layers = self._content.layers
        sizes = [
            record.size_bytes if (record := layers.record(chain)) else 0
            for chain in await self._content.ensure(image.id)
        ]
        return history_rows(image, sizes, list(self._ancestors(image)))

    def _ancestors(self, image: Image) -> Iterator[Image]:
        """What an image was made from, as far as it is here."""
        seen = {image.id}
        while image.parent and image.parent not in seen:
            seen.add(image.parent)
            image = self._content.image(image.parent)
            yield image

    async def usage(self) -> Usage:
        """What images take on the disk."""
        content = self._content
        chains = {
            image: chain_ids([layer.diff_id for layer in entry.layers])
            for image, entry in content.catalog.images.items()
        }
        return await in_thread(usage_of, chains, content.layers.record)

    async def drop_partial(self) -> int:
        """Give up downloads that were cut short, but for those under way."""
        async with self._content.alone() as is_alone:
            return await in_thread(self._content.blobs.drop_partial, 0.0) if is_alone else 0

    # --- names ----------------------------------------------------------------------------------------------------

    async def tag(self, reference_text: str, name: str) -> None:
        """Give one more name; a name that another image had moves. Raises NotFound, Invalid."""
        target = parse_name(name).tagged
        identity = resolve.find(self._content.catalog, reference_text)
        now = clock.rfc3339_nano(clock.now())
        await self._content.metadata.change(
            lambda catalog: with_image(catalog, catalog.images[resolve.find(catalog, identity)], (target,), now=now)
        )

    async def remove(
        self,
        reference: str,
        *,
        force: bool = False,
        uses: Sequence[Use] = (),
        prune: bool = True,
        platforms: Sequence[str] = (),
    ) -> Sequence[tuple[str, str]]:
        """Untag, and delete when no name is left. Raises NotFound, Conflict."""
        await self._check_platforms(reference, platforms)
        plan = resolve.plan_removal(self._content.catalog, reference, force=force, uses=uses, prune=prune)
        if plan.delete:
            await self._content.metadata.change(
                lambda catalog: without_parents(without_image(catalog, plan.image, orphan=plan.orphan), plan.parents)
            )
        else:
            await self._content.metadata.change(
                lambda catalog: without_names(catalog, plan.image, plan.names, plan.digests)
            )
        done = [("untagged", name) for name in (*plan.names, *plan.digests)]
        if plan.delete:
            chains = await self._content.sweep()
            done += [("deleted", image) for image in (plan.image, *plan.parents)]
            done += [("deleted", f"sha256:{chain}") for chain in chains]
        return done

    async def _check_platforms(self, reference: str, platforms: Sequence[str]) -> None:
        """One of them must be the image's. Raises NotFound of the last."""
        for left, platform in enumerate(platforms, 1 - len(platforms)):
            try:
                await self.get(reference, platform=platform)
                return
            except NotFound:
                if left == 0:
                    raise

    # --- content in -----------------------------------------------------------------------------------------------

    async def load(
        self, archive: AsyncIterator[bytes], *, platform: str = "", report: Report | None = None
    ) -> Sequence[Image]:
        """Read a `docker save` or OCI layout tar (plain, gzip, zstd...). Raises Invalid, Unsupported, TooLarge, HostFault,
        NotFound where nothing fits the platform."""
        content = self._content
        asked = manifests.parse_platform(platform) if platform else None
        async with content.hold():
            content.soil()
            taken = await consume(
                archive, lambda source: archive_in.receive(source, content.blobs, content.folder), "load"
            )
            found = await in_thread(archive_in.images_in, taken, asked or self._platform, strict=asked is not None)
            images = []
            for each in found:
                config = await in_thread(taken.document, each.config)
                diff_ids = manifests.parse_config(config).diff_ids
                layers = await in_thread(archive_in.layer_blobs, diff_ids, each.layers, content.blobs)
                image = await content.add(config, layers, names=each.names)
                images.append(image)
                _report_loaded(report, layers, each.names or (), image)
            return images

    async def add_files_image(
        self, name: str, files: Sequence[build.FileEntry], config: dict[str, Any], *, comment: str = ""
    ) -> Image:
        """Make an image of one layer from files, deterministic; `config` in the OCI words (`Cmd`, `Env`, `Labels`)."""
        content = self._content
        tagged = parse_name(name).tagged
        async with content.hold():
            layer = await change(build.store_layer, content.blobs, files)
            document = build.configuration(
                [layer],
                config,
                architecture=self._platform.architecture,
                created=build.EPOCH_TEXT,
                history=[{"created": build.EPOCH_TEXT, "created_by": comment or "insula: files"}],
            )
            return await content.add(document, [layer], names=[tagged])

    async def add_demo(self) -> Image:
        """Make `insula/busybox:latest`, and name it `busybox:latest` too where that name is free. Raises Unavailable."""
        busybox = demo.find_busybox()
        names = await in_thread(demo.applets, busybox)
        image = await self.add_files_image(
            demo.NAME, demo.files(busybox, names), demo.CONFIG, comment="insula: the distribution's static busybox"
        )
        if demo.SHORT_NAME not in self._content.catalog.names:
            await self.tag(image.id, demo.SHORT_NAME)
        return await self.get(image.id)

    async def import_rootfs(
        self,
        archive: AsyncIterator[bytes],
        *,
        name: str = "",
        changes: Sequence[str] = (),
        message: str = "",
        platform: str = "",
    ) -> Image:
        """Make an image of one layer from a root file system tar. Raises Invalid, TooLarge, HostFault."""
        content = self._content
        made_for = manifests.parse_platform(platform) if platform else self._platform
        if made_for.os != "linux":
            raise Invalid(f"operating system {made_for.os!r} is not supported: it must be linux", field="platform")
        names = [parse_name(name).tagged] if name else []
        config = apply_changes({}, changes)
        async with content.hold():
            content.soil()
            digest, size = await consume(
                archive, lambda source: content.blobs.put_stream(Bounded(source, content.folder)), "import"
            )
            layer = LayerBlob(diff_id=digest, digest=digest, media_type=manifests.OCI_LAYER, size_bytes=size)
            created = clock.rfc3339_nano(clock.now())
            document = build.configuration(
                [layer],
                config,
                architecture=made_for.architecture or self._platform.architecture,
                variant=made_for.variant if platform else "",
                created=created,
                history=[{"created": created, "comment": message or "Imported from -"}],
            )
            return await content.add(document, [layer], names=names)

    async def commit(
        self, upper: str, *, base: Image, name: str, config: dict[str, Any], history: dict[str, Any]
    ) -> Image:
        """Make an image of `base` plus the writable layer in the folder `upper`. `config` is the whole new `config` part,
        `history` the new entry (`created_by`, `author`, `comment`). Raises NotFound, Invalid, HostFault."""
        content = self._content
        names = [parse_name(name).tagged] if name else []
        async with content.hold():
            entry = content.entry(base.id)
            layer = await change(build.store_written, content.blobs, lambda out: write_diff(upper, out))
            layers = [*entry.layers, layer]
            created = clock.rfc3339_nano(clock.now())
            document = build.configuration(
                layers,
                config,
                architecture=base.architecture or self._platform.architecture,
                created=created,
                history=[*(base.config.raw.get("history") or []), {"created": created, **history}],
                author=str(history.get("author") or ""),
            )
            return await content.add(document, layers, names=names, parent=base.id)

    # --- registries -----------------------------------------------------------------------------------------------

    async def pull(
        self, reference: str, *, auth: Auth | None = None, platform: str = "", report: Report | None = None
    ) -> Image:
        """Fetch from its registry, verifying every digest. Raises NotFound, Invalid, Unauthorized, Unavailable, HostFault."""
        image, news = await self._pull(parse(reference), auth, platform, report)
        familiar = parse(reference).familiar
        if report is not None:
            report(_outcome(news, familiar))
        wanted = manifests.parse_platform(platform) if platform else None
        if wanted and report is not None and not manifests.fits(image, wanted):
            report(Progress(status=f"WARNING: {manifests.mismatch(familiar, image, wanted)}"))
        return image

    async def pull_all(
        self, repository: str, *, auth: Auth | None = None, platform: str = "", report: Report | None = None
    ) -> Sequence[Image]:
        """Fetch every tag of a repository. Raises as `pull`."""
        parsed = parse_name(repository)
        tags = await self._anywhere(parsed, auth, lambda registry: registry.tags())
        images, any_news = [], False
        for tag in tags:
            image, news = await self._pull(replace(parsed, tag=tag), auth, platform, report)
            images.append(image)
            any_news = any_news or news
        if report is not None:
            report(_outcome(any_news, parsed.name))
        return images

    async def _pull(
        self, parsed: Reference, auth: Auth | None, platform: str, report: Report | None
    ) -> tuple[Image, bool]:
        if parsed.path == "scratch" or parsed.full_name == "docker.io/library/scratch":
            raise Invalid("'scratch' is a reserved name")
        wanted = manifests.parse_platform(platform) if platform else self._platform
        content = self._content
        async with content.hold():
            content.soil()
            return await self._anywhere(
                parsed,
                auth,
                lambda registry: Pull(content, registry, parsed, wanted, report, self._transfers).run(),
            )

    async def _anywhere(self, parsed: Reference, auth: Auth | None, work: Callable[[Registry], Awaitable[T]]) -> T:
        """Do it at the first endpoint that can: a mirror that cannot is passed over. It sees no credentials: they are the
        registry's."""
        *mirrors, last = endpoints(self.registries, parsed.domain)
        for endpoint in mirrors:
            try:
                async with Registry(parsed, None, endpoint, self.registries) as registry:
                    return await work(registry)
            except (NotFound, Invalid, Unauthorized, Forbidden, TooManyRequests, Unavailable) as fault:
                log.info("a mirror cannot help", extra={"mirror": endpoint.url, "fault": str(fault)})
        async with Registry(parsed, auth, last, self.registries) as registry:
            return await work(registry)

    async def push(
        self, reference: str, *, auth: Auth | None = None, platform: str = "", report: Report | None = None
    ) -> Pushed:
        """Send to its registry. Raises NotFound, Forbidden, Unauthorized, Unavailable."""
        parsed = parse(reference)
        if parsed.digest:
            raise Invalid("cannot push a digest reference")
        identity = self._content.catalog.names.get(parsed.tagged)
        if identity is None:
            raise NotFound(f"An image does not exist locally with the tag: {parsed.name}", kind="image", name=reference)
        await self.get(parsed.tagged, platform=platform)
        endpoint = endpoints(self.registries, parsed.domain, pushing=True)[0]
        async with (
            self._content.hold(),
            Registry(parsed, auth, endpoint, self.registries, pushing=True) as registry,
        ):
            push = Push(self._content, registry, parsed, report, self._transfers)
            return await push.run(self._content.catalog.images[identity])

    async def login(self, server: str, auth: Auth) -> str:
        """Find out whether a registry takes credentials. Returns the identity token that it gave for them, empty for none. Raises
        Unauthorized, Unavailable, Invalid."""
        repository = parse(f"{server}/login/check" if server else "login/check")
        endpoint = endpoints(self.registries, repository.domain, pushing=True)[0]
        async with Registry(repository, auth, endpoint, self.registries) as registry:
            return await registry.check_login()

    async def distribution(self, reference: str, *, auth: Auth | None = None) -> Distribution:
        """What a registry says of an image, without fetching it. Raises as `pull`."""
        parsed = parse(reference)
        return await self._anywhere(parsed, auth, lambda registry: look_at(registry, parsed))

    # --- content out ----------------------------------------------------------------------------------------------

    async def save(self, references: Sequence[str], *, platform: str = "") -> AsyncIterator[bytes]:
        """Write an archive that Docker loads and that is an OCI layout too. Raises NotFound before the first byte."""
        for reference in references if platform else ():
            await self.get(reference, platform=platform)
        async with self._content.hold():
            async for chunk in self._written(archive_out.select(self._content.catalog, references)):
                yield chunk

    async def save_as(
        self, images: Sequence[tuple[str, str]], names: Sequence[str], told: Callable[[str], None]
    ) -> AsyncIterator[bytes]:
        """See the contract. Raises NotFound before the first byte."""
        async with self._content.hold():
            catalog, blobs = self._content.catalog, self._content.blobs
            entries = [(platform, catalog.images[resolve.find(catalog, image)]) for platform, image in images]
            tagged = tuple(parse_name(name).tagged for name in names)

            def work(out: Any) -> None:
                if len(entries) > 1:
                    told(archive_out.write_index(out, entries, tagged, blobs))
                else:
                    told(archive_out.write_one(out, archive_out.Saved(entry=entries[0][1], names=tagged), blobs))

            async with aclosing(produce(work, "save")) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def _written(self, images: Sequence[archive_out.Saved]) -> AsyncIterator[bytes]:
        async with aclosing(produce(lambda out: archive_out.write(out, images, self._content.blobs), "save")) as chunks:
            async for chunk in chunks:
                yield chunk

    # --- instances ------------------------------------------------------------------------------------------------

    async def mount(self, image: Image, instance: str, *, volatile: bool = False) -> Rootfs:
        """Make (or take back after a crash) the root file system of an instance. Raises NotFound, HostFault."""
        async with self._content.hold():
            chains = await self._content.ensure(image.id)
            return await change(self._content.rootfs.mount, instance, image.id, chains, volatile=volatile)

    async def unmount(self, instance: str, *, remove: bool) -> None:
        """Unmount it and, with `remove`, delete the writable layer. Repeatable."""
        await change(self._content.rootfs.unmount, instance, remove=remove)
        if remove and self._content.catalog.orphans:
            await self._content.sweep()

    async def rootfs(self, instance: str) -> Rootfs:
        """What `mount` returned for an instance. Raises NotFound."""
        return await in_thread(self._content.rootfs.get, instance)

    async def file(self, image: Image, path: str) -> str:
        """The path on this host of a regular file inside an image. Raises NotFound."""
        chains = await self._content.ensure(image.id)
        lowers = [self._content.layers.diff(chain) for chain in reversed(chains)]
        return await in_thread(find_file, lowers, path)


def _outcome(news: bool, name: str) -> Progress:
    done = "Downloaded newer image for" if news else "Image is up to date for"
    return Progress(status=f"Status: {done} {name}")


def _report_loaded(report: Report | None, layers: Sequence[Any], names: Sequence[str], image: Image) -> None:
    """Docker's last lines tell the names that came with the archive, which may be fewer than the image has."""
    if report is None:
        return
    for layer in layers:
        size = layer.size_bytes
        report(Progress(status="Loading layer", id=resolve.short(layer.diff_id), current=size, total=size))
    for line in [f"Loaded image: {name}" for name in names] or [f"Loaded image ID: {image.id}"]:
        report(Progress(status=line))
