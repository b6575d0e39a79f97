"""Where the files of a build come from: its context, named contexts, base images. Each is brought in at most once a build."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct

from insula.engine.building import remote
from insula.engine.building.contract import (
    BuildFault,
    BuildRequest,
    Context,
    ContextWish,
    Folder,
    ImageContext,
    RemoteContext,
)
from insula.engine.building.telling import Told
from insula.errors import Invalid, NotFound
from insula.host.rmtree import remove_tree
from insula.host.rootfd import open_in
from insula.host.tarmembers import Members
from insula.host.untar import unpack
from insula.images.bounded import Bounded
from insula.images.contract import Image, ImageStore
from insula.images.contract import Progress as Moved
from insula.images.dockerfile.ignore import Matcher, read_patterns
from insula.images.drafts import Drafts
from insula.images.manifests import Platform, fits
from insula.images.reference import parse
from insula.tasks import in_thread

T = TypeVar("T")
MAIN = ""
_MAX_DOCKERFILE = 16 * 1024 * 1024


class Place(Struct, frozen=True):
    """A context on this host, and what of it does not count."""

    root: str
    skip: Matcher | None = None


class Sources:
    """Of one build. What it makes is removed by `undo`."""

    def __init__(self, images: ImageStore, drafts: Drafts, request: BuildRequest, undo: AsyncExitStack) -> None:
        self._images = images
        self._drafts = drafts
        self._request = request
        self._undo = undo
        self._once: dict[Any, asyncio.Task[Any]] = {}
        self.wish = ContextWish()
        self.remote_dockerfile: str | None = None
        undo.push_async_callback(self._end)

    async def _end(self) -> None:
        for task in self._once.values():
            task.cancel()
        if self._once:
            await asyncio.wait(self._once.values())

    async def once(self, key: Any, work: Callable[[], Awaitable[T]]) -> T:
        """Do it once; all who ask wait for the same."""
        if key not in self._once:

            async def run() -> T:
                return await work()

            self._once[key] = asyncio.create_task(run(), name=f"build source {key}")
            self._once[key].add_done_callback(lambda done: done.cancelled() or done.exception())
        result: T = await asyncio.shield(self._once[key])
        return result

    # --- contexts -------------------------------------------------------------------------------------------------

    async def context(self, name: str = MAIN) -> Place:
        """The folder of a context. Raises NotFound (there is none), Unavailable, Invalid."""
        return await self.once(("context", name), lambda: self._context(name))

    async def _context(self, name: str) -> Place:
        given: Context | None = self._request.named_contexts.get(name) if name else self._request.context
        if isinstance(given, Folder):
            return Place(given.path, await in_thread(self._ignoring, given.path) if not name else None)
        if isinstance(given, RemoteContext):
            folder = await self._remote(given.url)
            return Place(folder, await in_thread(self._ignoring, folder) if not name else None)
        if given is None or isinstance(given, ImageContext):
            return Place(await in_thread(self._empty), None)
        return Place((await given(self.wish if not name else ContextWish())).path)

    def _empty(self) -> str:
        folder = self._drafts.temporary("context")
        folder.mkdir(mode=0o700)
        self._undo.callback(remove_tree, folder, ignore_errors=True)
        return str(folder)

    def _ignoring(self, folder: str) -> Matcher | None:
        """The patterns of `.dockerignore`; the Dockerfile's own go before the context's."""
        text = self._request.ignore
        for name in (f"{self._request.dockerfile_path}.dockerignore", ".dockerignore"):
            if text is None:
                text = read_inside(folder, name)
        matcher = Matcher(read_patterns(text or ""))
        return matcher if matcher else None

    async def _remote(self, url: str) -> str:
        place = self._drafts.temporary("context")
        self._undo.push_async_callback(in_thread, remove_tree, place, ignore_errors=True)
        if (found := remote.repository(url)) is not None:
            return (await remote.clone(found, place))[0]
        if not remote.is_url(url):
            raise Invalid(f"{url!r} is no address of a build context", field="remote")
        file = self._drafts.temporary("download")
        self._undo.push_async_callback(in_thread, file.unlink, missing_ok=True)
        await remote.fetch(url, file)
        await in_thread(self._unpack_or_take, file, place)
        return str(place)

    def _unpack_or_take(self, file: Path, place: Path) -> None:
        """An archive is the context; a text is a Dockerfile without one."""
        place.mkdir(mode=0o755)
        if is_archive(file, self._drafts.folder):
            unpack_context(file, place, self._drafts.folder)
            return
        if file.stat().st_size > _MAX_DOCKERFILE:
            raise Invalid("the remote context is neither an archive nor a Dockerfile", field="remote")
        self.remote_dockerfile = decode(file.read_bytes())

    async def dockerfile(self) -> str:
        """Its text. Raises BuildFault."""
        if self._request.dockerfile is not None:
            return self._request.dockerfile
        place = await self.context()
        if self.remote_dockerfile is not None:
            return self.remote_dockerfile
        path = self._request.dockerfile_path
        text = await in_thread(read_inside, place.root, path)
        if text is None and path == "Dockerfile":
            text = await in_thread(read_inside, place.root, "dockerfile")
        if text is None:
            raise BuildFault(
                f"Cannot locate specified Dockerfile: {path}"
                if self._request.dialect == "classic"
                else f"failed to read dockerfile: open {path}: no such file or directory",
                field="dockerfile",
            )
        if not text.strip():
            raise BuildFault(f"the Dockerfile ({path}) cannot be empty", field="dockerfile")
        return text

    # --- images ---------------------------------------------------------------------------------------------------

    async def image(self, reference: str, platform: Platform, told: Told, *, asked: bool) -> Image:
        """A base image: the one that is here, else pulled. `asked`: only this platform will do. Raises NotFound, Unauthorized,
        Unavailable."""
        key = ("image", reference, str(platform))
        return await self.once(key, lambda: self._image(reference, platform, told, asked))

    async def _image(self, reference: str, platform: Platform, told: Told, asked: bool) -> Image:
        if not self._request.pull:
            try:
                image = await self._images.get(reference)
            except NotFound:
                pass
            else:
                if not asked or fits(image, platform):
                    return image
        auth = await self._request.auth(parse(reference).domain) if self._request.auth else None

        def report(step: Moved) -> None:
            told.moved(step)

        return await self._images.pull(reference, auth=auth, platform=str(platform) if asked else "", report=report)


def read_inside(root: str, path: str) -> str | None:
    """A text file of a context, links resolved in it; None where there is none. Blocks. Raises Invalid."""
    base = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        opened = open_in(base, path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    finally:
        os.close(base)
    with os.fdopen(opened, "rb") as file:
        try:
            data = file.read(_MAX_DOCKERFILE + 1)
        except OSError:
            return None
    if len(data) > _MAX_DOCKERFILE:
        raise Invalid(f"{path} is larger than {_MAX_DOCKERFILE} bytes")
    return decode(data)


def decode(data: bytes) -> str:
    """A Dockerfile's bytes. Raises Invalid."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise Invalid("the Dockerfile is no UTF-8 text", field="dockerfile") from None
    if "\0" in text:
        raise Invalid("the Dockerfile holds a NUL byte", field="dockerfile")
    return text


# --- archives -----------------------------------------------------------------------------------------------------


def is_archive(path: Path, folder: Path) -> bool:
    """Whether a file is a tar archive, compressed or not. Blocks."""

    with path.open("rb") as file:
        try:
            return next(iter(Members(Bounded(file, folder))), None) is not None
        except Invalid:
            return False


def unpack_context(path: Path, place: Path, folder: Path) -> None:
    """Unpack an archive from a stranger. Blocks. Raises Invalid, TooLarge, HostFault."""
    with path.open("rb") as file:
        unpack(Bounded(file, folder), str(place))
