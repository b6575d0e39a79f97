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
from insula.errors import Invalid, TooLarge, Unsupported
from insula.host.rootfd import open_in
from insula.images.dockerfile.ignore import read_patterns
from insula.tasks import in_thread

_TEXT_LIMIT = 4 * 1024 * 1024  # of a Dockerfile or .dockerignore
_STORED = frozenset({"moby", "image", "docker", "oci"})


class Solved(Struct, frozen=True, kw_only=True):
    """A result that the client may name. `keyed`: it is asked for as a list by platform."""

    id: str
    built: tuple[Built, ...]
    keyed: bool
    result: BuildResult


class Build:
    """One build, from `Control.Solve` to its end."""

    def __init__(self, request: SolveRequest, session: Callable[[], Awaitable[Session]]) -> None:
        self.request = request
        self.session = session
        self.told = Told()
        self.returned: asyncio.Future[ReturnRequest] = asyncio.get_running_loop().create_future()
        self.solved: dict[str, Solved] = {}

    async def solve(
        self,
        builder: Builder,
        contexts: Contexts,
        name: str,
        options: Mapping[str, str],
        imports: Sequence[CacheEntry],
        inputs: Sequence[str],
    ) -> Solved:
        """Build a Dockerfile. Raises what the builder raises, Invalid, Unsupported, RpcFault."""
        asked = frontend.read(name, options, entitlements=self.request.entitlements, imports=imports, inputs=inputs)
        async with AsyncExitStack() as held:
            made = await self._request(asked, contexts, held)
            result = await builder.build(made, self.told)
        solved = Solved(id=secrets.token_hex(16), built=result.built, keyed=asked.platforms_in_names, result=result)
        self.solved[solved.id] = solved
        return solved

    async def outline_request(self, contexts: Contexts, asked: Asked, held: AsyncExitStack) -> BuildRequest:
        """The same request, for reading only."""
        return await self._request(asked, contexts, held)

    async def end(self, builder: Builder) -> None:
        """Let go of all results. The client may still read how it went."""
        for solved in self.solved.values():
            await builder.done(solved.result)
        self.solved.clear()
        self.told.end()

    # --- the request ----------------------------------------------------------------------------------------------

    async def _request(self, asked: Asked, contexts: Contexts, held: AsyncExitStack) -> BuildRequest:
        session = await self.session()
        fetch = _Fetch(session, self.told, contexts, held)
        text, ignore = await fetch.entry(asked)
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
            store=any(exporter.type in _STORED for exporter in self.request.exporters),
            auth=lambda host: attached.credentials(session, host),
            secret=lambda id: attached.secret(session, id),
            ssh=lambda id: attached.agent(session, id),
        )

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

    def __init__(self, session: Session, told: Told, contexts: Contexts, held: AsyncExitStack) -> None:
        self._session, self._told, self._contexts, self._held = session, told, contexts, held

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
        raise Unsupported(f"the result of another solve is not taken as the context {name or named.input!r}")

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
                await synchronize(self._session, place, folder, follow=follow, excludes=excludes, report=part.set)
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
