"""One build of a client: what it asked, what it is told, the results that it may name, and how the builder is called for it."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
from msgspec import Struct

from insula.api.docker.buildkit import attached, frontend
from insula.api.docker.buildkit.contexts import Contexts
from insula.api.docker.buildkit.frontend import Asked, Named
from insula.api.docker.buildkit.messages import CacheEntry, ReturnRequest, SolveRequest, SourceInfo
from insula.api.docker.buildkit.progress import Told
from insula.api.docker.buildkit.sessions import Session
from insula.api.docker.buildkit.syncing import key_of, synchronize
from insula.engine.building.contract import (
    Builder,
    BuildRequest,
    BuildResult,
    Built,
    Context,
    ContextWish,
    Folder,
    FolderSource,
    ImageContext,
    RemoteContext,
)
from insula.errors import Invalid, NotFound, TooLarge, Unsupported
from insula.host.rootfd import open_in
from insula.images.dockerfile.ignore import read_patterns
from insula.tasks import in_thread

_TEXT_LIMIT = 4 * 1024 * 1024  # of a Dockerfile or .dockerignore
_STORED = frozenset({"moby", "image", "docker", "oci"})
_SINGLE = frozenset({"moby", "image", "docker", "tar"})


class Solved(Struct, frozen=True, kw_only=True):
    """A result that the client may name. `keyed`: it is asked for as a list by platform."""

    id: str
    built: tuple[Built, ...]
    keyed: bool
    result: BuildResult


class Wanted(Struct, frozen=True, kw_only=True):
    """A solve as the client words it. `inputs` are results of other solves, as images, by name."""

    frontend: str
    options: Mapping[str, str]
    imports: tuple[CacheEntry, ...] = ()
    inputs: Mapping[str, str] = {}


class Build:
    """One build, from `Control.Solve` to its end."""

    def __init__(
        self, request: SolveRequest, session: Callable[[], Awaitable[Session]], images: frozenset[str]
    ) -> None:
        self.request = request
        self._images = images  # that were there before
        self.session = session
        self.told = Told()
        self.returned: asyncio.Future[ReturnRequest] = asyncio.get_running_loop().create_future()
        self.solved: dict[str, Solved] = {}

    async def solve(self, builder: Builder, contexts: Contexts, wanted: Wanted) -> Solved:
        """Build a Dockerfile. Raises what the builder raises, Invalid, Unsupported, RpcFault."""
        asked = self.read(wanted)
        self._check_platforms(asked.request.platforms)
        async with AsyncExitStack() as held:
            made = await self.prepare(asked, wanted, contexts, held)
            result = await builder.build(made, self.told)
        solved = Solved(id=secrets.token_hex(16), built=result.built, keyed=asked.platforms_in_names, result=result)
        self.solved[solved.id] = solved
        return solved

    def built(self, ref: str) -> Built:
        """What a ref (`ID`, or `ID#NUMBER` of several) names. Raises NotFound."""
        id, _, text = ref.partition("#")
        number, solved = text or "0", self.solved.get(id)
        if solved is None or not number.isdecimal() or int(number) >= len(solved.built):
            raise NotFound(f"no such ref: {ref}")
        return solved.built[int(number)]

    @property
    def passing(self) -> list[str]:
        """The images of results that nobody asked to keep as images."""
        if any(exporter.type in ("moby", "image") for exporter in self.request.exporters) or not self.stored:
            return []
        return [
            built.image for solved in self.solved.values() for built in solved.built if built.image not in self._images
        ]

    async def end(self, builder: Builder) -> None:
        """Let go of all results. The client may still read how it went."""
        for solved in self.solved.values():
            await builder.done(solved.result)
        self.solved.clear()
        self.told.end()

    # --- the request ----------------------------------------------------------------------------------------------

    def read(self, wanted: Wanted) -> Asked:
        """Raises Invalid, Unsupported."""
        return frontend.read(
            wanted.frontend,
            wanted.options,
            entitlements=self.request.entitlements,
            imports=wanted.imports,
            inputs=tuple(wanted.inputs),
        )

    def _check_platforms(self, platforms: Sequence[str]) -> None:
        """Refused before anything is built."""
        single = [exporter.type for exporter in self.request.exporters if exporter.type in _SINGLE]
        if len(platforms) > 1 and single:
            raise Unsupported(
                f"type={single[0]} takes one platform, not {len(platforms)}: build one by one", field="platform"
            )

    async def prepare(self, asked: Asked, wanted: Wanted, contexts: Contexts, held: AsyncExitStack) -> BuildRequest:
        """The whole request. Raises Invalid, Unsupported, RpcFault."""
        session = await self.session()
        fetch = _Fetch(session, self.told, contexts, held, wanted.inputs)
        text, ignore = await fetch.entry(asked)
        frontend.check_syntax(text or "", wanted.options)
        if text is not None:
            self.told.dockerfile = SourceInfo(asked.filename, text.encode(), "Dockerfile")
        return msgspec.structs.replace(
            asked.request,
            context=await fetch.context(asked.context),
            named_contexts={name: await fetch.context(named, name) for name, named in asked.named.items()},
            dockerfile=text,
            dockerfile_path=asked.filename,
            ignore=ignore,
            annotations=self._annotations(),
            store=self.stored,
            auth=lambda host: attached.credentials(session, host),
            secret=lambda id: attached.secret(session, id),
            ssh=lambda id: attached.agent(session, id),
        )

    @property
    def stored(self) -> bool:
        """Results become images: exporters ask for it, or nobody says what becomes of them and other solves may need them."""
        exporters = self.request.exporters
        return not exporters or any(exporter.type in _STORED for exporter in exporters)

    def _annotations(self) -> dict[str, str]:
        prefix = "annotation."
        return {
            name.removeprefix(prefix): value
            for exporter in self.request.exporters
            for name, value in exporter.attrs.items()
            if name.startswith(prefix)
        }


class _Fetch:
    """Brings what a build needs from its client."""

    def __init__(
        self, session: Session, told: Told, contexts: Contexts, held: AsyncExitStack, inputs: Mapping[str, str]
    ) -> None:
        self._session, self._told, self._contexts, self._held = session, told, contexts, held
        self._inputs = inputs

    async def entry(self, asked: Asked) -> tuple[str | None, str | None]:
        """The Dockerfile and its `.dockerignore`; None for what is in a context that only the builder fetches."""
        if not asked.dockerfile_local:
            return None, None
        beside = asked.filename + ".dockerignore"
        with self._told.step(f"[internal] load build definition from {asked.filename}") as step:
            lower = str(Path(asked.filename).with_name("dockerfile"))
            names = [asked.filename, beside, *([lower] if Path(asked.filename).name == "Dockerfile" else [])]
            texts = await self._texts(asked.dockerfile_local, names, step, "transferring dockerfile:")
            text = texts.get(asked.filename, texts.get(lower))
            if text is None:
                raise Invalid(f"failed to read dockerfile: open {asked.filename}: no such file or directory")
        if beside in texts or not asked.context.local:
            return text, texts.get(beside)
        return text, await self._ignore(asked.context.local)

    async def _ignore(self, folder: str) -> str:
        with self._told.step("[internal] load .dockerignore") as step:
            texts = await self._texts(folder, [".dockerignore"], step, "transferring context:")
        return texts.get(".dockerignore", "")

    async def _texts(self, folder: str, names: Sequence[str], step: str, what: str) -> dict[str, str]:
        """Small files of a client's folder, those that are there."""
        async with self._contexts.place("") as place:
            with self._told.part(step, what, "transferring") as part:
                await synchronize(self._session, place, folder, follow=names, report=part.set)
            return await in_thread(_read_texts, place.tree, names)

    async def context(self, named: Named, name: str = "") -> Context | None:
        """A context in the builder's words."""
        if named.image:
            return ImageContext(reference=named.image)
        if named.url:
            return RemoteContext(url=named.url)
        if named.upload:
            return await self._upload(named.upload)
        if named.local:
            return self._source(named.local, name)
        image = self._inputs.get(named.input)
        if image is None or not name:
            raise Unsupported(f"the result of another solve is not taken as the context {name or named.input!r}")
        return ImageContext(reference=image)

    async def _upload(self, id: str) -> Folder:
        place = await self._held.enter_async_context(self._contexts.place(""))
        with self._told.step("[internal] load remote build context"):
            await attached.unpack_upload(self._session, id, place.tree)
        return Folder(path=str(place.tree))

    def _source(self, folder: str, name: str) -> FolderSource:
        async def bring(wish: ContextWish) -> Folder:
            key = key_of(self._session, folder)
            place = await self._held.enter_async_context(self._contexts.place(key))
            excludes = wish.excludes
            if name:
                excludes += read_patterns(await self._ignore(folder))
            paths = wish.paths or ()
            follow = () if any(path in ("", ".") for path in paths) else paths
            words = f"[context {name}] load from client" if name else "[internal] load build context"
            with (
                self._told.step(words) as step,
                self._told.part(step, f"transferring {name or 'context'}:", "transferring") as part,
            ):
                size = await synchronize(
                    self._session, place, folder, follow=follow, excludes=excludes, report=part.set
                )
            self._contexts.sized(place, size)
            return Folder(path=str(place.tree))

        return bring


def _read_texts(tree: Path, names: Sequence[str]) -> dict[str, str]:
    """Links in the tree stay in the tree. Blocks."""
    found: dict[str, str] = {}
    root = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in names:
            try:
                file = open_in(root, name, os.O_RDONLY | os.O_NONBLOCK)
            except OSError:
                continue
            with open(file, "rb") as content:
                data = content.read(_TEXT_LIMIT + 1)
            if len(data) > _TEXT_LIMIT:
                raise TooLarge(f"{name} has more than {_TEXT_LIMIT} bytes")
            found[name] = data.decode("utf-8", "surrogateescape")
    finally:
        os.close(root)
    return found
