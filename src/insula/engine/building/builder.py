"""The builder of one node: `contract.Builder` over its image store and its engine.

A build reads the Dockerfile, works out which stages the target needs, and runs those at once where none waits for another.
Everything a killed build leaves is removed at the next start: containers by their owner, files with the store's temporary
folder; layers that were finished are in the cache and stay.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec

from insula.engine.building import caching
from insula.engine.building.cachefrom import Candidates
from insula.engine.building.contract import (
    BuildFault,
    BuildRequest,
    BuildResult,
    Built,
    CacheRecord,
    Folder,
    Location,
    Outline,
    Progress,
)
from insula.engine.building.frame import Frame
from insula.engine.building.keys import Digests
from insula.engine.building.planning import plan
from insula.engine.building.reading import outline_of, wish_of
from insula.engine.building.sources import Sources
from insula.engine.building.stages import Stages
from insula.engine.building.steps import Build
from insula.engine.contract import Engine
from insula.engine.parts import Parts
from insula.engine.tarring import write_tar
from insula.errors import Invalid, NotFound
from insula.host.rmtree import remove_tree
from insula.host.tarstream import Pipe, consume, produce
from insula.host.untar import unpack
from insula.images.blobs import digest_of
from insula.images.bounded import Bounded
from insula.images.contract import Image
from insula.images.dockerfile.instructions import Dockerfile, parse
from insula.images.dockerfile.lines import DockerfileFault
from insula.images.drafts import Drafts, State
from insula.images.manifests import Platform, parse_platform
from insula.images.metadata import LayerBlob
from insula.images.reference import parse_name
from insula.tasks import in_thread

_SHORT = 64 * 1024  # a Dockerfile that is read at once; longer ones in a thread


class NodeBuilder:
    """The builder of one node."""

    def __init__(self, engine: Engine, parts: Parts, drafts: Drafts) -> None:
        self._engine = engine
        self._parts = parts
        self._drafts = drafts
        self._digests = Digests()
        self._leases: dict[str, AsyncExitStack] = {}

    async def build(self, request: BuildRequest, progress: Progress) -> BuildResult:
        """See the contract."""
        if request.squash:
            raise Invalid("squash is only supported with experimental mode", field="squash")
        for tag in request.tags:
            parse_name(tag)
        if not self._drafts.cache.loaded:
            await in_thread(self._drafts.cache.load)
        async with AsyncExitStack() as kept:
            await kept.enter_async_context(self._drafts.hold())
            async with AsyncExitStack() as undo:
                built = await self._build(request, progress, undo)
            lease = ""
            if not request.store:
                lease = secrets.token_hex(8)
                self._leases[lease] = kept.pop_all()
        await self._collect()
        return BuildResult(built=tuple(built), lease=lease)

    async def _collect(self) -> None:
        """The cache holds no more than its share of the disk."""
        if not self._leases:
            await caching.collect(self._drafts)

    async def _build(self, request: BuildRequest, progress: Progress, undo: AsyncExitStack) -> list[Built]:
        sources = Sources(self._parts.images, self._drafts, request, undo)
        dockerfile = await read(sources, request)
        host = self._drafts.platform
        request = _with_epoch(request)
        platforms = [parse_platform(each) for each in request.platforms] or [host]
        found = await self._candidates(request)
        if request.dialect == "classic" and request.cache_from and not found:
            request = msgspec.structs.replace(request, no_cache=True)  # the classic builder then looks nowhere else
        candidates = Candidates(self._drafts, found)
        consumed: set[str] = set()
        stages = [
            self._stages(
                request, progress, sources, dockerfile, platform, candidates, consumed, len(platforms) > 1, undo
            )
            for platform in platforms
        ]
        frames = await gathered([each.target() for each in stages])
        for each in stages:
            each.tell_unused()
        return [await self._result(request, frame) for frame in frames]

    def _stages(
        self,
        request: BuildRequest,
        progress: Progress,
        sources: Sources,
        dockerfile: Dockerfile,
        platform: Platform,
        candidates: Candidates,
        consumed: set[str],
        several: bool,
        undo: AsyncExitStack,
    ) -> Stages:
        made = plan(dockerfile, request, platform, self._drafts.platform, several=several)
        sources.wish = wish_of(made)
        build = Build(
            engine=self._engine,
            parts=self._parts,
            drafts=self._drafts,
            request=request,
            plan=made,
            sources=sources,
            digests=self._digests,
            candidates=candidates,
            used=[],
            consumed=consumed,
        )
        stages = Stages(build, progress)
        undo.push_async_callback(stages.close)
        return stages

    async def _candidates(self, request: BuildRequest) -> list[Image]:
        found = []
        for reference in request.cache_from:
            try:
                found.append(await self._parts.images.get(reference))
            except (NotFound, Invalid):
                continue  # as dockerd: a source that is not there gives nothing
        return found

    async def _result(self, request: BuildRequest, frame: Frame) -> Built:
        config = dict(frame.config)
        if request.labels:
            config["Labels"] = {**(config.get("Labels") or {}), **request.labels}
        frame = msgspec.structs.replace(frame, config=config)
        document = frame.document()
        identity = digest_of(document)
        if request.store:
            image = await self._drafts.publish(document, frame.state, names=request.tags, parent=frame.base)
            identity = image.id
        return Built(
            platform=str(frame.platform),
            image=identity,
            config=document,
            layers=tuple((layer.diff_id, layer.digest) for layer in frame.state),
        )

    # --- results --------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def rootfs(self, built: Built) -> AsyncIterator[str]:
        """See the contract."""
        name = self._drafts.name()
        try:
            yield (await self._drafts.mount(name, self._state(built))).path
        finally:
            await self._drafts.discard(name)

    def _state(self, built: Built) -> State:
        return tuple(
            LayerBlob(diff_id=diff_id, digest=digest, media_type="", size_bytes=0) for diff_id, digest in built.layers
        )

    async def export_tar(self, built: Built) -> AsyncIterator[bytes]:
        """See the contract."""
        async with self.rootfs(built) as root:

            def work(pipe: Pipe) -> None:
                _write_root(pipe, root)

            async for chunk in produce(work, "export build"):
                yield chunk

    @asynccontextmanager
    async def workspace(self) -> AsyncIterator[Folder]:
        """See the contract."""
        place = self._drafts.temporary("context")
        try:
            place.mkdir(mode=0o755)
            yield Folder(path=str(place))
        finally:  # nobody needs to wait for that
            self._parts.tasks.spawn(in_thread(remove_tree, place, ignore_errors=True), "remove a build context")

    @asynccontextmanager
    async def receive(self, archive: AsyncIterator[bytes]) -> AsyncIterator[Folder]:
        """See the contract."""
        async with self.workspace() as folder:
            room = self._drafts.folder
            await consume(archive, lambda source: unpack(Bounded(source, room), folder.path), "build context")
            yield folder

    async def done(self, result: BuildResult) -> None:
        """See the contract."""
        lease = self._leases.pop(result.lease, None)
        if lease is not None:
            await lease.aclose()

    async def outline(self, request: BuildRequest) -> Outline:
        """See the contract."""
        async with AsyncExitStack() as undo:
            sources = Sources(self._parts.images, self._drafts, request, undo)
            dockerfile = await read(sources, request)
            platform = parse_platform(request.platforms[0]) if request.platforms else self._drafts.platform
            return outline_of(dockerfile, plan(dockerfile, request, platform, self._drafts.platform))
        raise AssertionError("unreachable")

    # --- the cache ------------------------------------------------------------------------------------------------

    async def cache(self) -> Sequence[CacheRecord]:
        """See the contract."""
        return await caching.listed(self._drafts)

    async def prune(
        self, *, all: bool = False, keep_bytes: int = 0, filters: Mapping[str, Any] | None = None
    ) -> tuple[Sequence[str], int]:
        """See the contract."""
        return await caching.prune(self._drafts, all=all, keep_bytes=keep_bytes, filters=filters or {})


async def read(sources: Sources, request: BuildRequest) -> Dockerfile:
    """The Dockerfile, taken apart. Raises BuildFault."""
    text = await sources.dockerfile()
    try:
        return parse(text) if len(text) <= _SHORT else await in_thread(parse, text)
    except DockerfileFault as fault:
        location = Location(start=fault.start, end=fault.end, file=request.dockerfile_path) if fault.start else None
        raise BuildFault(fault.message, location=location, field="dockerfile") from None


def _with_epoch(request: BuildRequest) -> BuildRequest:
    """SOURCE_DATE_EPOCH among the build arguments sets every time. Raises Invalid."""
    text = request.build_args.get("SOURCE_DATE_EPOCH")
    if request.source_date_epoch is not None or not text:
        return request
    if not text.isdecimal() or len(text) > 12:
        raise Invalid(f"invalid SOURCE_DATE_EPOCH: {text}", field="SOURCE_DATE_EPOCH")
    return msgspec.structs.replace(request, source_date_epoch=int(text))


async def gathered(works: Sequence[Awaitable[Frame]]) -> list[Frame]:
    """All results; the first fault ends the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _write_root(pipe: Pipe, root: str) -> None:
    opened = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        write_tar(pipe, opened, ".", ".")
    finally:
        os.close(opened)
