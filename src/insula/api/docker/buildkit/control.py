"""`moby.buildkit.v1.Control`: builds, their progress, workers, the cache, sessions through a tunnel; and the health service.

Source: BuildKit's `control/control.go`, `control.proto`; grpc's `health.proto`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import timedelta

import msgspec

from insula import clock
from insula.api.docker.buildkit import faults
from insula.api.docker.buildkit.building import Build, Solved
from insula.api.docker.buildkit.exporting import Answer, Exporting, check
from insula.api.docker.buildkit.frontend import check_exports
from insula.api.docker.buildkit.messages import (
    BytesMessage,
    CacheOptions,
    Empty,
    Exporter,
    HistoryRequest,
    InfoResponse,
    PruneRequest,
    SolveRequest,
    SolveResponse,
    StatusRequest,
    Timestamp,
    UsageRecord,
    UsageRequest,
    UsageResponse,
    WorkersResponse,
)
from insula.api.docker.buildkit.progress import now, timestamp
from insula.api.docker.buildkit.service import Service, request_of, streaming, table, unary
from insula.api.grpc.connection import Method
from insula.api.grpc.status import RpcFault
from insula.api.grpc.stream import Stream
from insula.engine.building.contract import CACHE_FILTERS, CacheRecord
from insula.errors import InsulaError, Invalid, Unsupported
from insula.model.protobuf import decode, encode

_SERVING = 1


class Control:
    """The service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def methods(self) -> Mapping[str, Method]:
        """Its table."""
        control = {
            "Solve": unary(SolveRequest, self.solve),
            "Status": self.status,
            "Session": self.session,
            "ListWorkers": unary(Empty, self.workers),
            "Info": unary(Empty, self.info),
            "DiskUsage": unary(UsageRequest, self.usage),
            "Prune": streaming(PruneRequest, self.prune),
            "ListenBuildHistory": unary(HistoryRequest, self.history),
            "UpdateBuildHistory": unary(Empty, self.history),
        }
        return table("moby.buildkit.v1.Control", control) | table("grpc.health.v1.Health", {"Check": healthy})

    # --- builds ---------------------------------------------------------------------------------------------------

    async def solve(self, request: SolveRequest, _: Stream) -> SolveResponse:
        """A whole build; the call lasts as long as it does, and whoever leaves it cancels it."""
        exporters = request.exporters or _deprecated(request)
        request = msgspec.structs.replace(request, exporters=exporters)
        async with self._service.building(request) as build:
            try:
                check(exporters)
                check_exports((request.cache or CacheOptions()).exports)
                solved = await self._result(build)
                answer: Answer = {}
                if solved is not None:
                    answer = await Exporting(self._service.door, build).all(solved, exporters)
            except RpcFault:
                raise
            except InsulaError as fault:
                raise faults.told(fault, build.told) from None
        return SolveResponse(answer)

    async def _result(self, build: Build) -> Solved | None:
        """What is exported: of a frontend that runs here, or what the client that drives the build returns."""
        request = build.request
        if request.definition is not None and request.definition.ops:
            raise Unsupported("LLB definitions are not solved here: only Dockerfiles are built", field="definition")
        if request.frontend:
            imports = (request.cache or CacheOptions()).imports
            wanted = await self._service.wanted(
                request.frontend, request.frontend_attrs, imports, request.frontend_inputs
            )
            return await build.solve(self._service.builder, self._service.contexts, wanted)
        returned = await build.returned
        if returned.error is not None and returned.error.code:
            raise RpcFault(returned.error.code, returned.error.message, details=encode(returned.error))
        result = returned.result
        if result is None:
            return None
        refs = [ref.id for ref in (result.refs.refs.values() if result.refs else [result.ref] if result.ref else [])]
        found = [build.solved.get(ref.partition("#")[0]) for ref in [*refs, result.ref_plain] if ref]
        if None in found:
            raise Invalid("the returned result is not of this build")
        return found[0] if found else None

    async def status(self, stream: Stream) -> None:
        """The progress of a build from its beginning."""
        request = await request_of(stream, StatusRequest)
        stream.answer([("buildkit-current-timestamp", now())])
        build = await self._service.build(request.ref, over=True)
        async for piece in build.told.read():
            await stream.send(piece)

    # --- sessions -------------------------------------------------------------------------------------------------

    async def session(self, stream: Stream) -> None:
        """A session whose bytes go through this call."""
        await self._service.sessions.serve(stream.metadata, _Tunnel(stream))

    # --- the cache ------------------------------------------------------------------------------------------------

    async def usage(self, request: UsageRequest, _: Stream) -> UsageResponse:
        """`docker buildx du`."""
        wanted = _filters(request.filters)
        rows = [record_words(record) for record in await self._service.builder.cache()]
        rows += [
            UsageRecord(
                id=kept.id,
                in_use=kept.in_use,
                mutable=True,
                size=kept.size_bytes,
                description="local source",
                kind="source.local",
                last_used=Timestamp(int(kept.last_used)),
                created=Timestamp(int(kept.last_used)),
            )
            for kept in await self._service.contexts.all()
        ]
        return UsageResponse(tuple(row for row in rows if _matches(row, wanted)))

    async def prune(self, request: PruneRequest, _: Stream) -> AsyncIterator[UsageRecord]:
        """`docker buildx prune`: what was dropped."""
        wanted = _filters(request.filters)
        if request.keep_duration:
            wanted["until"] = [clock.rfc3339(clock.now() - timedelta(microseconds=request.keep_duration // 1000))]
        before = {record.id: record_words(record) for record in await self._service.builder.cache()}
        dropped, _bytes = await self._service.builder.prune(
            all=request.all, keep_bytes=request.keep_bytes, filters=wanted
        )
        for id in dropped:
            yield before.get(id, UsageRecord(id=id))
        if not wanted and not request.keep_bytes:
            for kept in await self._service.contexts.all():
                if not kept.in_use:
                    await self._service.contexts.remove(kept.id)
                    yield UsageRecord(id=kept.id, size=kept.size_bytes, kind="source.local", description="local source")

    # --- words ----------------------------------------------------------------------------------------------------

    async def workers(self, _: Empty, _stream: Stream) -> WorkersResponse:
        """`docker buildx inspect`."""
        return WorkersResponse((await self._service.worker(),))

    async def info(self, _: Empty, _stream: Stream) -> InfoResponse:
        """Who answers."""
        return InfoResponse(self._service.version())

    async def history(self, _: object, _stream: Stream) -> Empty:
        """Refused: builds that are over leave their image and nothing else."""
        raise Unsupported("no history of builds is kept here")


async def healthy(stream: Stream) -> None:
    """Health.Check."""
    await request_of(stream, Empty)
    await stream.send(bytes((0x08, _SERVING)))


class _Tunnel:
    """The bytes inside a call's messages."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def read(self) -> bytes:
        """b"" at the end; empty messages carry nothing."""
        while (message := await self._stream.recv()) is not None:
            if data := decode(message, BytesMessage).data:
                return data
        return b""

    async def write(self, data: bytes) -> None:
        """Raises ConnectionResetError when the call is over."""
        try:
            await self._stream.send(encode(BytesMessage(data)))
        except RpcFault as fault:
            raise ConnectionResetError(str(fault)) from None


def _deprecated(request: SolveRequest) -> tuple[Exporter, ...]:
    return (Exporter(request.exporter, request.exporter_attrs),) if request.exporter else ()


def record_words(record: CacheRecord) -> UsageRecord:
    """A row of the cache."""
    return UsageRecord(
        id=record.id,
        mutable=record.kind == "exec.cachemount",
        in_use=record.in_use,
        size=record.size_bytes,
        created=timestamp(record.created),
        last_used=timestamp(record.last_used),
        uses=record.uses,
        description=record.description,
        kind=record.kind,
        shared=record.shared,
        parents=(record.parent,) if record.parent else (),
    )


def _filters(texts: Sequence[str]) -> dict[str, list[str]]:
    """`id~=x`, `type==regular`, `inuse`, `shared`, as buildx writes containerd's filters. Raises Unsupported."""
    found: dict[str, list[str]] = {}
    for text in texts:
        for each in filter(None, text.split(",")):
            name, mark, value = each.replace("~=", "==").partition("==")
            if name not in CACHE_FILTERS:
                raise Unsupported(f"the filter {each!r} is not known: {', '.join(CACHE_FILTERS)} are", field="filter")
            found[name] = [value if mark else "true"]
    return found


def _matches(row: UsageRecord, wanted: Mapping[str, Sequence[str]]) -> bool:
    words = {
        "id": row.id,
        "type": row.kind,
        "description": row.description,
        "parent": ",".join(row.parents),
        "inuse": str(row.in_use).lower(),
        "shared": str(row.shared).lower(),
        "private": str(not row.shared).lower(),
    }
    return all(words.get(name) in values for name, values in wanted.items())
