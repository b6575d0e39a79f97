"""Everything that BuildKit's clients share on one node: sessions, builds, kept contexts; and the tables of methods."""

from __future__ import annotations

import asyncio
import platform
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

from insula.api.docker.buildkit import definitions
from insula.api.docker.buildkit.building import Build, Wanted
from insula.api.docker.buildkit.contexts import Contexts
from insula.api.docker.buildkit.messages import CacheEntry, Definition, Platform, SolveRequest, Version, Worker
from insula.api.docker.buildkit.sessions import Sessions
from insula.api.docker.door import Door
from insula.api.grpc.connection import Method
from insula.api.grpc.status import Code, RpcFault
from insula.api.grpc.stream import Stream
from insula.engine.building.contract import Builder
from insula.engine.contract import Engine
from insula.errors import AlreadyExists, Conflict, NotFound
from insula.model.protobuf import decode, encode

APPEARS_S = 6.0  # calls about a build may overtake its solve
_REMEMBERED = 16  # builds that are over, whose progress a client may still ask for
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}
Q = TypeVar("Q", bound=Struct)


class Service:
    """One node's BuildKit."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.sessions = Sessions()
        self.contexts = Contexts(Path(door.info.data_root) / "contexts")
        self._builds: OrderedDict[str, Build] = OrderedDict()
        self._over: OrderedDict[str, Build] = OrderedDict()
        self._changed = asyncio.Condition()

    @property
    def engine(self) -> Engine:
        """The node's engine."""
        return self.door.engine

    @property
    def builder(self) -> Builder:
        """The node's builder."""
        return self.door.engine.builder

    # --- builds ---------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def building(self, request: SolveRequest) -> AsyncIterator[Build]:
        """A build, from its solve to its end. Raises AlreadyExists."""
        if not request.ref or request.ref in self._builds:
            raise AlreadyExists(f"a build with the ref {request.ref!r} is under way")
        before = frozenset(image.id for image in await self.engine.images.list())
        build = Build(request, lambda: self.sessions.get(request.session), before)
        async with self._changed:
            self._builds[request.ref] = build
            self._changed.notify_all()
        try:
            yield build
        finally:
            del self._builds[request.ref]
            self._over[request.ref] = build
            while len(self._over) > _REMEMBERED:
                self._over.popitem(last=False)
            passing = build.passing
            await build.end(self.builder)
            await self._forget(passing)

    async def _forget(self, images: Iterable[str]) -> None:
        """Images that only this build needed."""
        for image in images:
            with suppress(NotFound, Conflict):
                if not (await self.engine.images.get(image)).names:
                    await self.engine.images.remove(image, uses=await self.engine.image_uses())

    async def wanted(
        self, name: str, options: Mapping[str, str], imports: tuple[CacheEntry, ...], inputs: Mapping[str, Definition]
    ) -> Wanted:
        """A solve, its inputs found among the results of all builds. Raises Unsupported, NotFound."""
        found = {key: self._result(definitions.result_of(definition)) for key, definition in inputs.items()}
        return Wanted(frontend=name, options=options, imports=imports, inputs=found)

    def _result(self, ref: str) -> str:
        for build in self._builds.values():
            with suppress(NotFound):
                return build.built(ref).image
        raise NotFound(f"no such ref: {ref}")

    async def build(self, ref: str, *, over: bool = False) -> Build:
        """A build that is under way, or was. Waits a little for one that is not there yet. Raises NotFound."""
        try:
            async with asyncio.timeout(APPEARS_S), self._changed:
                await self._changed.wait_for(lambda: ref in self._builds or ref in self._over)
        except TimeoutError:
            raise NotFound(f"no such job {ref}") from None
        found = self._builds.get(ref) or (self._over[ref] if over else None)
        if found is None:
            raise NotFound(f"no such job {ref}: it is over")
        return found

    # --- words ----------------------------------------------------------------------------------------------------

    async def worker(self) -> Worker:
        """Who builds. The snapshotter's label is how buildx learns that archives and several platforms can be had."""
        labels = {
            "org.mobyproject.buildkit.worker.executor": "insula",
            "org.mobyproject.buildkit.worker.hostname": self.door.info.name,
            "org.mobyproject.buildkit.worker.snapshotter": "overlayfs",
        }
        with suppress(NotFound):  # what `--add-host NAME:host-gateway` means is resolved by the client
            gateway = (await self.engine.networks.get("default")).gateway
            labels["org.mobyproject.buildkit.worker.moby.host-gateway-ip"] = gateway
        return Worker(self.door.info.id, labels, (self._platform(),), self.version())

    def version(self) -> Version:
        """What answers here."""
        return Version("insula", f"v{self.door.info.version}")

    def _platform(self) -> Platform:
        machine = platform.machine()
        return Platform(_ARCHITECTURES.get(machine, machine), "linux")


# --- methods as rows ------------------------------------------------------------------------------------------------


async def request_of(stream: Stream, kind: type[Q]) -> Q:
    """The one message of a call. Raises RpcFault, Invalid."""
    message = await stream.recv()
    if message is None:
        raise RpcFault(Code.INVALID_ARGUMENT, "the call has no message")
    return decode(message, kind)


def unary(kind: type[Q], answer: Callable[[Q, Stream], Awaitable[Struct]]) -> Method:
    """A method with one message each way."""

    async def serve(stream: Stream) -> None:
        await stream.send(encode(await answer(await request_of(stream, kind), stream)))

    return serve


def streaming(kind: type[Q], answers: Callable[[Q, Stream], AsyncIterator[Struct]]) -> Method:
    """A method with one message there and many back."""

    async def serve(stream: Stream) -> None:
        async for each in answers(await request_of(stream, kind), stream):
            await stream.send(encode(each))

    return serve


def table(service: str, methods: Mapping[str, Method]) -> dict[str, Method]:
    """Paths of a service's methods."""
    return {f"/{service}/{name}": method for name, method in methods.items()}
