"""`moby.buildkit.v1.frontend.LLBBridge`: how a client drives a build by itself, as buildx does: it asks for solves, looks into
their results, and returns one of them to be exported. Calls name their build in a header.

A solve is carried out at once, not when its result is first needed.

Source: BuildKit's `frontend/gateway/gateway.go`, `control/gateway/gateway.go`, `gateway.proto`, `caps.go`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import TypeVar

import msgspec
from msgspec import Struct

from insula.api.docker.buildkit import attached, definitions, faults, looking
from insula.api.docker.buildkit.building import Build, Solved, Wanted
from insula.api.docker.buildkit.exporting import metadata_of
from insula.api.docker.buildkit.looking import DirResponse, FileResponse, StatResponse
from insula.api.docker.buildkit.messages import (
    BridgeSolveRequest,
    BridgeSolveResponse,
    Capability,
    Empty,
    InputsResponse,
    PathRequest,
    Platform,
    Pong,
    ReadFileRequest,
    Ref,
    Refs,
    ResolveImageRequest,
    ResolveImageResponse,
    Result,
    ReturnRequest,
    WarnRequest,
)
from insula.api.docker.buildkit.service import Service, table, unary
from insula.api.docker.buildkit.subrequests import answer_to
from insula.api.grpc.connection import Method
from insula.api.grpc.status import RpcFault
from insula.api.grpc.stream import Stream
from insula.engine.building.contract import Location, Warning
from insula.errors import InsulaError, Invalid, NotFound, Unsupported
from insula.images.reference import parse_name
from insula.tasks import in_thread

BUILD_ID = "buildkit-controlapi-buildid"
_FRONTEND_CAPS = (
    "frontend.caps",
    "frontend.inputs",
    "gateway.evaluate",
    "gateway.solve.evaluate",
    "gateway.solve.metadata",
    "gateway.warnings",
    "importcaches",
    "proto.refarray",
    "readdir",
    "readfile",
    "reference.output",
    "resolveimage",
    "resolveimage.resolvemode",
    "return",
    "returnmap",
    "solve.base",
    "statfile",
)
_LLB_CAPS = (
    "constraints",
    "exec.meta.network",
    "exec.meta.security",
    "exec.meta.ulimit",
    "exec.mount.bind",
    "exec.mount.cache",
    "exec.mount.cache.sharing",
    "exec.mount.secret",
    "exec.mount.ssh",
    "exec.mount.tmpfs",
    "exec.secretenv",
    "exporter.image.annotations",
    "exporter.multiple",
    "exporter.sourcedateepoch",
    "file.base",
    "meta.description",
    "platform",
    "source.git",
    "source.http",
    "source.image",
    "source.image.resolvemode",
    "source.local",
    "source.local.excludepatterns",
    "source.local.followpaths",
    "source.local.sessionid",
    "source.local.sharedkeyhint",
    "source.local.unique",
)
Q = TypeVar("Q", bound=Struct)


class Gateway:
    """The service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def methods(self) -> Mapping[str, Method]:
        """Its table."""
        rows = {
            "Ping": self._of(Empty, self.ping),
            "Solve": self._of(BridgeSolveRequest, self.solve),
            "Return": self._of(ReturnRequest, self.back),
            "Evaluate": self._of(PathRequest, self.evaluate),
            "Inputs": self._of(Empty, self.inputs),
            "ResolveImageConfig": self._of(ResolveImageRequest, self.image),
            "ReadFile": self._of(ReadFileRequest, self.read_file),
            "ReadDir": self._of(PathRequest, self.read_dir),
            "StatFile": self._of(PathRequest, self.stat_file),
            "Warn": self._of(WarnRequest, self.warn),
            "NewContainer": self._of(Empty, self.container),
            "ExecProcess": self._of(Empty, self.container),
            "ReleaseContainer": self._of(Empty, self.container),
        }
        return table("moby.buildkit.v1.frontend.LLBBridge", rows)

    def _of(self, kind: type[Q], answer: Callable[[Build, Q], Awaitable[Struct]]) -> Method:
        """A method of the build that a header names."""

        async def serve(request: Q, stream: Stream) -> Struct:
            names = stream.metadata(BUILD_ID)
            if not names:
                raise Invalid(f"no {BUILD_ID} found in request")
            build = await self._service.build(names[0])
            try:
                return await answer(build, request)
            except RpcFault:
                raise
            except InsulaError as fault:
                raise faults.told(fault, build.told) from None

        return unary(kind, serve)

    # --- solves ---------------------------------------------------------------------------------------------------

    async def ping(self, _: Build, _request: Empty) -> Pong:
        """What can be asked for."""
        return Pong(
            tuple(Capability(name) for name in _FRONTEND_CAPS),
            tuple(Capability(name) for name in _LLB_CAPS),
            (await self._service.worker(),),
        )

    async def solve(self, build: Build, request: BridgeSolveRequest) -> BridgeSolveResponse:
        """Build a Dockerfile, or answer a question about it."""
        if request.definition is not None and request.definition.ops:
            raise Unsupported("LLB definitions are not solved here: only Dockerfiles are built", field="definition")
        if not request.frontend:
            return BridgeSolveResponse(Result(ref=Ref()))
        wanted = await self._service.wanted(
            request.frontend, request.frontend_opt, request.cache_imports, request.frontend_inputs
        )
        if request.frontend_opt.get("requestid"):
            return BridgeSolveResponse(Result(metadata=await self._subrequest(build, wanted), ref=Ref()))
        return BridgeSolveResponse(result_of(await build.solve(self._service.builder, self._service.contexts, wanted)))

    async def _subrequest(self, build: Build, wanted: Wanted) -> Mapping[str, bytes]:
        asked = build.read(wanted)
        async with AsyncExitStack() as held:
            made = await build.prepare(asked, wanted, self._service.contexts, held)
            return await answer_to(asked.subrequest, self._service.builder, made)

    async def back(self, build: Build, request: ReturnRequest) -> Empty:
        """The client is done; what it returns is exported."""
        if not build.returned.done():
            build.returned.set_result(request)
        return Empty()

    async def evaluate(self, build: Build, request: PathRequest) -> Empty:
        """Solves are carried out at once: what has a name is there."""
        build.built(request.ref)
        return Empty()

    async def inputs(self, build: Build, _: Empty) -> InputsResponse:
        """What the client itself gave to its solve."""
        return InputsResponse(build.request.frontend_inputs)

    async def warn(self, build: Build, request: WarnRequest) -> Empty:
        """A warning of the client's own."""
        lines = [(each.start, each.end) for each in request.ranges if each.start and each.end]
        build.told.warning(
            Warning(
                vertex=request.digest,
                message=request.short.decode(errors="replace"),
                detail=b"\n".join(request.detail).decode(errors="replace"),
                url=request.url,
                level=request.level,
                location=Location(start=lines[0][0].line, end=lines[0][1].line) if lines else None,
            )
        )
        return Empty()

    async def container(self, _: Build, _request: Empty) -> Empty:
        """Refused."""
        raise Unsupported("containers of a client's own in a build are not run here: docker run the result")

    async def image(self, build: Build, request: ResolveImageRequest) -> ResolveImageResponse:
        """An image's configuration: of this node, else of its registry."""
        images = self._service.engine.images
        asked = request.platform or Platform()
        platform = "/".join(filter(None, (asked.os, asked.architecture, asked.variant)))
        try:
            if request.mode in ("pull", "force-pull"):
                raise NotFound("asked for anew")
            found = await images.get(request.ref, platform=platform)
        except NotFound:
            auth = await attached.credentials(await build.session(), parse_name(request.ref).domain)
            found = await images.pull(request.ref, auth=auth, platform=platform)
        return ResolveImageResponse(found.id, msgspec.json.encode(found.config.raw), request.ref)

    # --- looking into results ---------------------------------------------------------------------------------------

    async def read_file(self, build: Build, request: ReadFileRequest) -> FileResponse:
        """A part of a file."""
        offset, length = (request.range.offset, request.range.length) if request.range else (0, 0)
        async with self._service.builder.rootfs(build.built(request.ref)) as root:
            return FileResponse(await in_thread(looking.read, root, request.path, offset, length))

    async def read_dir(self, build: Build, request: PathRequest) -> DirResponse:
        """A folder's entries."""
        async with self._service.builder.rootfs(build.built(request.ref)) as root:
            return DirResponse(tuple(await in_thread(looking.entries, root, request.path, request.pattern)))

    async def stat_file(self, build: Build, request: PathRequest) -> StatResponse:
        """One entry."""
        async with self._service.builder.rootfs(build.built(request.ref)) as root:
            return StatResponse(await in_thread(looking.entry, root, request.path))


def result_of(solved: Solved) -> Result:
    """The names of a result."""
    metadata = metadata_of(solved)
    if not solved.keyed:
        return Result(ref=_named(solved.id), metadata=metadata)
    refs = {built.platform: _named(f"{solved.id}#{number}") for number, built in enumerate(solved.built)}
    return Result(refs=Refs(refs), metadata=metadata)


def _named(ref: str) -> Ref:
    return Ref(ref, definitions.of_result(ref))
