"""The messages of BuildKit's control and gateway services that are spoken here, with their field numbers. Fields that nothing
here looks at are left out.

Source: BuildKit's `control.proto`, `worker.proto`, `gateway.proto`, `caps.proto`, `ops.proto` (Definition, Range), and Google's
`status.proto`, as of BuildKit 0.13.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from msgspec import Struct


class Empty(Struct, frozen=True):
    """A message without fields that matter here."""


class Timestamp(Struct, frozen=True):
    """google.protobuf.Timestamp."""

    seconds: Annotated[int, 1] = 0
    nanos: Annotated[int, 2] = 0


class Any(Struct, frozen=True):
    """google.protobuf.Any."""

    type_url: Annotated[str, 1] = ""
    value: Annotated[bytes, 2] = b""


class RpcStatus(Struct, frozen=True):
    """google.rpc.Status."""

    code: Annotated[int, 1] = 0
    message: Annotated[str, 2] = ""
    details: Annotated[tuple[Any, ...], 3] = ()


class BytesMessage(Struct, frozen=True):
    """A chunk of a tunnel or file; of several services."""

    data: Annotated[bytes, 1] = b""


# --- pb: definitions and places in sources ------------------------------------------------------------------------------


class Position(Struct, frozen=True):
    """A line, counted from 1."""

    line: Annotated[int, 1] = 0
    character: Annotated[int, 2] = 0


class Range(Struct, frozen=True):
    """Lines, both ends included."""

    start: Annotated[Position | None, 1] = None
    end: Annotated[Position | None, 2] = None


class SourceInfo(Struct, frozen=True):
    """A file whose lines are meant."""

    filename: Annotated[str, 1] = ""
    data: Annotated[bytes, 2] = b""
    language: Annotated[str, 4] = ""


class SourceError(Struct, frozen=True):
    """errdefs.Source: where in a Dockerfile something went wrong."""

    info: Annotated[SourceInfo | None, 1] = None
    ranges: Annotated[tuple[Range, ...], 2] = ()


class OpMetadata(Struct, frozen=True):
    """What is said about an operation."""

    description: Annotated[Mapping[str, str], 2] = {}


class Input(Struct, frozen=True):
    """Which output of which operation."""

    digest: Annotated[str, 1] = ""
    index: Annotated[int, 2] = 0


class SourceOp(Struct, frozen=True):
    """Where content comes from."""

    identifier: Annotated[str, 1] = ""
    attrs: Annotated[Mapping[str, str], 2] = {}


class Op(Struct, frozen=True):
    """One operation; of all kinds only sources are looked into."""

    inputs: Annotated[tuple[Input, ...], 1] = ()
    source: Annotated[SourceOp | None, 3] = None


class Definition(Struct, frozen=True):
    """A graph of operations, each an encoded Op; the last one only points to the result."""

    ops: Annotated[tuple[bytes, ...], 1] = ()
    metadata: Annotated[Mapping[str, OpMetadata], 2] = {}


class Platform(Struct, frozen=True):
    """What a thing runs on."""

    architecture: Annotated[str, 1] = ""
    os: Annotated[str, 2] = ""
    variant: Annotated[str, 3] = ""


# --- Control --------------------------------------------------------------------------------------------------------


class CacheEntry(Struct, frozen=True):
    """A cache to be filled or used."""

    type: Annotated[str, 1] = ""
    attrs: Annotated[Mapping[str, str], 2] = {}


class CacheOptions(Struct, frozen=True):
    """All of them."""

    exports: Annotated[tuple[CacheEntry, ...], 4] = ()
    imports: Annotated[tuple[CacheEntry, ...], 5] = ()


class Exporter(Struct, frozen=True):
    """What becomes of the result."""

    type: Annotated[str, 1] = ""
    attrs: Annotated[Mapping[str, str], 2] = {}


class SolveRequest(Struct, frozen=True):
    """Control.Solve: a whole build. Without a frontend the client drives it through the gateway."""

    ref: Annotated[str, 1] = ""
    definition: Annotated[Definition | None, 2] = None
    exporter: Annotated[str, 3] = ""
    exporter_attrs: Annotated[Mapping[str, str], 4] = {}
    session: Annotated[str, 5] = ""
    frontend: Annotated[str, 6] = ""
    frontend_attrs: Annotated[Mapping[str, str], 7] = {}
    cache: Annotated[CacheOptions | None, 8] = None
    entitlements: Annotated[tuple[str, ...], 9] = ()
    frontend_inputs: Annotated[Mapping[str, Definition], 10] = {}
    internal: Annotated[bool, 11] = False
    source_policy: Annotated[bytes, 12] = b""
    exporters: Annotated[tuple[Exporter, ...], 13] = ()


class SolveResponse(Struct, frozen=True):
    """What exporters have to say."""

    exporter_response: Annotated[Mapping[str, str], 1] = {}


class StatusRequest(Struct, frozen=True):
    """Control.Status: the progress of one build."""

    ref: Annotated[str, 1] = ""


class VertexMessage(Struct, frozen=True):
    """A step."""

    digest: Annotated[str, 1] = ""
    inputs: Annotated[tuple[str, ...], 2] = ()
    name: Annotated[str, 3] = ""
    cached: Annotated[bool, 4] = False
    started: Annotated[Timestamp | None, 5] = None
    completed: Annotated[Timestamp | None, 6] = None
    error: Annotated[str, 7] = ""


class StatusMessage(Struct, frozen=True):
    """How far a part of a step is."""

    id: Annotated[str, 1] = ""
    vertex: Annotated[str, 2] = ""
    name: Annotated[str, 3] = ""
    current: Annotated[int, 4] = 0
    total: Annotated[int, 5] = 0
    timestamp: Annotated[Timestamp | None, 6] = None
    started: Annotated[Timestamp | None, 7] = None
    completed: Annotated[Timestamp | None, 8] = None


class LogMessage(Struct, frozen=True):
    """Output of a step."""

    vertex: Annotated[str, 1] = ""
    timestamp: Annotated[Timestamp | None, 2] = None
    stream: Annotated[int, 3] = 0
    data: Annotated[bytes, 4] = b""


class WarningMessage(Struct, frozen=True):
    """Something questionable."""

    vertex: Annotated[str, 1] = ""
    level: Annotated[int, 2] = 0
    short: Annotated[bytes, 3] = b""
    detail: Annotated[tuple[bytes, ...], 4] = ()
    url: Annotated[str, 5] = ""
    info: Annotated[SourceInfo | None, 6] = None
    ranges: Annotated[tuple[Range, ...], 7] = ()


class StatusResponse(Struct, frozen=True):
    """A piece of progress."""

    vertexes: Annotated[tuple[VertexMessage, ...], 1] = ()
    statuses: Annotated[tuple[StatusMessage, ...], 2] = ()
    logs: Annotated[tuple[LogMessage, ...], 3] = ()
    warnings: Annotated[tuple[WarningMessage, ...], 4] = ()


class Version(Struct, frozen=True):
    """Who answers."""

    package: Annotated[str, 1] = ""
    version: Annotated[str, 2] = ""
    revision: Annotated[str, 3] = ""


class Worker(Struct, frozen=True):
    """Who builds."""

    id: Annotated[str, 1] = ""
    labels: Annotated[Mapping[str, str], 2] = {}
    platforms: Annotated[tuple[Platform, ...], 3] = ()
    version: Annotated[Version | None, 5] = None


class WorkersResponse(Struct, frozen=True):
    """Control.ListWorkers."""

    records: Annotated[tuple[Worker, ...], 1] = ()


class InfoResponse(Struct, frozen=True):
    """Control.Info."""

    version: Annotated[Version | None, 1] = None


class UsageRequest(Struct, frozen=True):
    """Control.DiskUsage."""

    filters: Annotated[tuple[str, ...], 1] = ()


class PruneRequest(Struct, frozen=True):
    """Control.Prune. `keep_duration` is in nanoseconds."""

    filters: Annotated[tuple[str, ...], 1] = ()
    all: Annotated[bool, 2] = False
    keep_duration: Annotated[int, 3] = 0
    keep_bytes: Annotated[int, 4] = 0


class UsageRecord(Struct, frozen=True):
    """One row of the build cache."""

    id: Annotated[str, 1] = ""
    mutable: Annotated[bool, 2] = False
    in_use: Annotated[bool, 3] = False
    size: Annotated[int, 4] = 0
    created: Annotated[Timestamp | None, 6] = None
    last_used: Annotated[Timestamp | None, 7] = None
    uses: Annotated[int, 8] = 0
    description: Annotated[str, 9] = ""
    kind: Annotated[str, 10] = ""
    shared: Annotated[bool, 11] = False
    parents: Annotated[tuple[str, ...], 12] = ()


class UsageResponse(Struct, frozen=True):
    """All rows."""

    records: Annotated[tuple[UsageRecord, ...], 1] = ()


class HistoryRequest(Struct, frozen=True):
    """Control.ListenBuildHistory."""

    active_only: Annotated[bool, 1] = False
    ref: Annotated[str, 2] = ""
    early_exit: Annotated[bool, 3] = False


# --- LLBBridge: the gateway -------------------------------------------------------------------------------------------


class Capability(Struct, frozen=True):
    """Something that can be asked for."""

    id: Annotated[str, 1] = ""
    enabled: Annotated[bool, 2] = True


class Pong(Struct, frozen=True):
    """LLBBridge.Ping."""

    frontend_caps: Annotated[tuple[Capability, ...], 1] = ()
    llb_caps: Annotated[tuple[Capability, ...], 2] = ()
    workers: Annotated[tuple[Worker, ...], 3] = ()


class Ref(Struct, frozen=True):
    """A result by its id, and as a graph that other solves can begin with."""

    id: Annotated[str, 1] = ""
    definition: Annotated[Definition | None, 2] = None


class Refs(Struct, frozen=True):
    """Results by platform."""

    refs: Annotated[Mapping[str, Ref], 1] = {}


class Result(Struct, frozen=True):
    """One or several results."""

    ref_plain: Annotated[str, 1] = ""
    ref: Annotated[Ref | None, 3] = None
    refs: Annotated[Refs | None, 4] = None
    metadata: Annotated[Mapping[str, bytes], 10] = {}


class BridgeSolveRequest(Struct, frozen=True):
    """LLBBridge.Solve."""

    definition: Annotated[Definition | None, 1] = None
    frontend: Annotated[str, 2] = ""
    frontend_opt: Annotated[Mapping[str, str], 3] = {}
    cache_imports: Annotated[tuple[CacheEntry, ...], 12] = ()
    frontend_inputs: Annotated[Mapping[str, Definition], 13] = {}
    evaluate: Annotated[bool, 14] = False


class BridgeSolveResponse(Struct, frozen=True):
    """What came of it."""

    result: Annotated[Result | None, 3] = None


class ReturnRequest(Struct, frozen=True):
    """LLBBridge.Return: the client is done."""

    result: Annotated[Result | None, 1] = None
    error: Annotated[RpcStatus | None, 2] = None


class InputsResponse(Struct, frozen=True):
    """LLBBridge.Inputs."""

    definitions: Annotated[Mapping[str, Definition], 1] = {}


class ResolveImageRequest(Struct, frozen=True):
    """LLBBridge.ResolveImageConfig."""

    ref: Annotated[str, 1] = ""
    platform: Annotated[Platform | None, 2] = None
    mode: Annotated[str, 3] = ""


class ResolveImageResponse(Struct, frozen=True):
    """Its configuration."""

    digest: Annotated[str, 1] = ""
    config: Annotated[bytes, 2] = b""
    ref: Annotated[str, 3] = ""


class FileRange(Struct, frozen=True):
    """A part of a file."""

    offset: Annotated[int, 1] = 0
    length: Annotated[int, 2] = 0


class ReadFileRequest(Struct, frozen=True):
    """LLBBridge.ReadFile."""

    ref: Annotated[str, 1] = ""
    path: Annotated[str, 2] = ""
    range: Annotated[FileRange | None, 3] = None


class PathRequest(Struct, frozen=True):
    """LLBBridge.ReadDir, StatFile."""

    ref: Annotated[str, 1] = ""
    path: Annotated[str, 2] = ""
    pattern: Annotated[str, 3] = ""


class WarnRequest(Struct, frozen=True):
    """LLBBridge.Warn."""

    digest: Annotated[str, 1] = ""
    level: Annotated[int, 2] = 0
    short: Annotated[bytes, 3] = b""
    detail: Annotated[tuple[bytes, ...], 4] = ()
    url: Annotated[str, 5] = ""
    info: Annotated[SourceInfo | None, 6] = None
    ranges: Annotated[tuple[Range, ...], 7] = ()
