"""The mounts of a RUN: what they are known by in the cache, and what is bound in when the step is really run."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

from msgspec import Struct

from insula.engine.building import grafting
from insula.engine.building.contract import BuildFault, BuildRequest
from insula.engine.building.frame import Frame
from insula.engine.building.grafting import Missing
from insula.engine.building.keys import Digests, identity, key
from insula.engine.building.mountwords import Mount, parse_mount
from insula.engine.building.running import bind, check_socket, tmpfs, write_secret
from insula.engine.building.sources import MAIN, Sources
from insula.engine.parts import Parts
from insula.host.copytree import copy_tree
from insula.host.rootfd import open_in
from insula.images.dockerfile.instructions import Run
from insula.images.drafts import Drafts
from insula.model.instance import MountConfig
from insula.tasks import in_thread

FrameOf = Callable[[str], Awaitable[Frame]]
_cache_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()


class _Asked(Struct, frozen=True):
    mount: Mount
    source: Frame | None = None


class Mounts(Struct, frozen=True):
    """All mounts of one RUN. `resolve` makes them, and says which variables come with them."""

    key: str
    resolve: Callable[[], Awaitable[tuple[tuple[MountConfig, ...], dict[str, str]]]]


class Mounting:
    """The mounts of one RUN; what it makes is taken away by `undo`, after the run."""

    def __init__(
        self,
        parts: Parts,
        drafts: Drafts,
        sources: Sources,
        request: BuildRequest,
        digests: Digests,
        undo: AsyncExitStack,
    ) -> None:
        self._parts = parts
        self._drafts = drafts
        self._sources = sources
        self._request = request
        self._digests = digests
        self._undo = undo

    async def plan(self, what: Run, frame: Frame, frame_of: FrameOf) -> Mounts:
        """Read them, and hash what is bound in from a context. Raises Invalid, BuildFault, NotFound."""
        asked, words = [], []
        for text in what.mounts:
            mount = parse_mount(text, frame.variables, working_dir=str(frame.config.get("WorkingDir") or "/"))
            source = await frame_of(mount.source_stage) if mount.source_stage else None
            asked.append(_Asked(mount, source))
            words.append(await self._words(mount, source))
        return Mounts(key(words) if words else "", lambda: self._resolve(asked))

    async def _words(self, mount: Mount, source: Frame | None) -> object:
        if mount.kind != "bind":
            return (mount.kind, mount.target, mount.id, mount.env)
        if source is not None:
            return ("bind", mount.target, mount.source, identity(source.state), source.more.get("folder"))
        place = await self._sources.context(MAIN)
        try:
            found = await in_thread(grafting.find, place.root, mount.source or "/", skip=place.skip)
        except Missing as fault:
            raise BuildFault(f'failed to compute cache key: "{fault.path}": not found') from None
        return ("bind", mount.target, mount.source, await in_thread(self._digests.trees, found, owners=False))

    async def _resolve(self, asked: list[_Asked]) -> tuple[tuple[MountConfig, ...], dict[str, str]]:
        made: list[MountConfig] = []
        env: dict[str, str] = {}
        for each in asked:
            match each.mount.kind:
                case "tmpfs":
                    made.append(tmpfs(each.mount.target, each.mount.size_bytes))
                case "secret":
                    made += await self._secret(each.mount, env)
                case "ssh":
                    made += await self._ssh(each.mount, env)
                case "cache":
                    made.append(await self._cache(each))
                case _:
                    made.append(await self._bind(each))
        return tuple(made), env

    # --- bind -----------------------------------------------------------------------------------------------------

    async def _bind(self, asked: _Asked) -> MountConfig:
        mount = asked.mount
        readonly = mount.readonly is not False
        if asked.source is not None and not asked.source.more.get("folder"):
            root = await self._mounted(asked.source)
        else:
            folder = asked.source.more["folder"] if asked.source else (await self._sources.context(MAIN)).root
            root = str(folder) if readonly else await self._throwaway(str(folder))
        path = await in_thread(_inside, root, mount.source or "/")
        return bind(path, mount.target, readonly=readonly)

    async def _mounted(self, source: Frame) -> str:
        name = self._drafts.name()
        self._undo.push_async_callback(self._drafts.discard, name)
        return (await self._drafts.mount(name, source.state)).path

    async def _throwaway(self, folder: str) -> str:
        """A context that may be written to, without anybody seeing it afterwards."""
        name = self._drafts.name()
        self._undo.push_async_callback(self._drafts.discard, name)
        return (await self._drafts.mount_over(name, folder)).path

    # --- cache ----------------------------------------------------------------------------------------------------

    async def _cache(self, asked: _Asked) -> MountConfig:
        mount, cache = asked.mount, self._drafts.cache
        id = mount.id
        if mount.sharing == "private" and cache.in_use.get(id):
            id = f"{id}#{secrets.token_hex(4)}"
        if mount.sharing == "locked":
            lock = _cache_locks.setdefault(f"{self._drafts.folder}:{id}", asyncio.Lock())
            await lock.acquire()
            self._undo.callback(lock.release)
        cache.in_use[id] = cache.in_use.get(id, 0) + 1
        self._undo.callback(_release, cache.in_use, id)
        first = await self._first_content(asked)

        def prepare(folder: Path) -> None:
            if first:
                copy_tree(first, str(folder))
            os.chown(folder, mount.uid or 0, mount.gid or 0)
            folder.chmod(mount.mode if mount.mode is not None else 0o755)

        folder = await in_thread(cache.mount_folder, id, prepare)
        return bind(folder, mount.target, readonly=bool(mount.readonly))

    async def _first_content(self, asked: _Asked) -> str:
        """`from=` fills a cache that is new."""
        if asked.source is None:
            return ""
        root = str(asked.source.more.get("folder") or await self._mounted(asked.source))
        return await in_thread(_inside, root, asked.mount.source or "/")

    # --- secrets and agents ---------------------------------------------------------------------------------------

    async def file(self, data: bytes, *, mode: int, uid: int = 0, gid: int = 0) -> str:
        """A file in memory, gone after the step."""
        path = await in_thread(write_secret, self._parts.paths.building, data, mode=mode, uid=uid, gid=gid)
        self._undo.push_async_callback(in_thread, partial(Path(path).unlink, missing_ok=True))
        return path

    async def _secret(self, mount: Mount, env: dict[str, str]) -> list[MountConfig]:
        data = await self._request.secret(mount.id) if self._request.secret else None
        if data is None:
            if mount.required:
                raise BuildFault(f"secret {mount.id}: not found")
            return []
        if mount.env:
            env[mount.env] = data.decode("utf-8", "surrogateescape")
        if not mount.target:
            return []
        mode = mount.mode if mount.mode is not None else 0o400
        path = await self.file(data, mode=mode, uid=mount.uid or 0, gid=mount.gid or 0)
        return [bind(path, mount.target, readonly=True)]

    async def _ssh(self, mount: Mount, env: dict[str, str]) -> list[MountConfig]:
        if self._request.ssh is None:
            if mount.required:
                raise BuildFault(f"no SSH key {mount.id!r} forwarded from the client")
            return []
        path = await self._undo.enter_async_context(self._request.ssh(mount.id))
        await in_thread(check_socket, path)
        env.setdefault("SSH_AUTH_SOCK", mount.target)
        return [bind(path, mount.target, readonly=False)]


def _release(in_use: dict[str, int], id: str) -> None:
    in_use[id] -= 1
    if not in_use[id]:
        del in_use[id]


def _inside(root: str, path: str) -> str:
    """A place of a folder, links resolved in it. Raises BuildFault."""
    base = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        opened = open_in(base, path.lstrip("/") or ".", os.O_PATH)
    except OSError as fault:
        raise BuildFault(f'"{path}": {os.strerror(fault.errno or 0).lower()}') from None
    finally:
        os.close(base)
    try:
        return str(Path(f"/proc/self/fd/{opened}").readlink())
    finally:
        os.close(opened)
