"""Building images, as the doors see it: a `BuildRequest` goes in, `Progress` is told what happens, a `BuildResult` comes out.

Two dialects speak over it: the classic `POST /build`, which tells steps (`Step 2/5 : RUN …`), and BuildKit's, which tells
vertices (`[build 2/3] RUN …`). Each step is one `Vertex`; steps that only change the configuration are marked `metadata`,
and BuildKit's clients never see those. Cancelling the task that awaits `build` ends the build and cleans up after it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Protocol

from msgspec import Struct, field

from insula.errors import Invalid
from insula.images.contract import Auth
from insula.model.instance import Resources, Ulimit

CACHE_FILTERS = ("until", "unused-for", "id", "parent", "type", "description", "inuse", "shared", "private")
Dialect = Literal["classic", "buildkit"]


# --- what is asked ------------------------------------------------------------------------------------------------


class ContextWish(Struct, frozen=True, kw_only=True):
    """What a build needs of a context. `paths` are the sources of COPY, ADD and bind mounts, slash-separated, relative and
    maybe with wildcards; None means everything. `excludes` are `.dockerignore` patterns in their order."""

    paths: tuple[str, ...] | None = None
    excludes: tuple[str, ...] = ()


class Folder(Struct, frozen=True, kw_only=True):
    """A folder of this host with a context's files, unchanged until the build has ended. Links in it are never followed out
    of it. Owners are not looked at: what comes out of a context belongs to root, as Docker has it."""

    path: str


class ImageContext(Struct, frozen=True, kw_only=True):
    """A named context that is an image (`docker-image://`): replaces `FROM NAME` and `--from=NAME`."""

    reference: str


class RemoteContext(Struct, frozen=True, kw_only=True):
    """A context to be fetched: `https://…` (a tar archive), `git://…`, `https://….git#ref:folder`."""

    url: str


FolderSource = Callable[[ContextWish], Awaitable[Folder]]
"""Asked at most once in a build, when the first step needs the context; may bring more than was wished."""

Context = Folder | ImageContext | RemoteContext | FolderSource


class BuildRequest(Struct, frozen=True, kw_only=True):
    """One build. Everything but the Dockerfile has a default that means: nothing special.

    `dockerfile` is the text; None reads `dockerfile_path` from the context. `ignore` is the text of a `.dockerignore`; None
    looks for `<dockerfile_path>.dockerignore`, then `.dockerignore` in the context (only when that is a `Folder`).
    `no_cache`: True for all stages, or the names of the stages that are built anew (`--no-cache-filter`).
    `platforms`: none means this host's; several make one image each. `network`: default, none, host, container:X or a
    network's name. `entitlements` are what the client allows beyond the ordinary (`network.host`, `security.insecure`).
    `store`: keep the result as an image, with `tags`; without it only `Builder.rootfs` and `Built.layers` give access.
    """

    context: Context | None = None
    named_contexts: Mapping[str, Context] = field(default_factory=dict)
    dockerfile: str | None = None
    dockerfile_path: str = "Dockerfile"
    ignore: str | None = None
    target: str = ""
    build_args: Mapping[str, str | None] = field(default_factory=dict)  # BUILDKIT_… ones too
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ()
    no_cache: bool | tuple[str, ...] = False
    pull: bool = False
    cache_from: tuple[str, ...] = ()  # images whose steps may be reused
    network: str = "default"
    extra_hosts: tuple[str, ...] = ()  # name:address
    shm_size_bytes: int = 64 * 1024 * 1024
    resources: Resources = Resources()
    ulimits: tuple[Ulimit, ...] = ()
    cgroup_parent: str = ""
    hostname: str = ""
    entitlements: tuple[str, ...] = ()
    squash: bool = False
    store: bool = True
    inline_cache: bool = (
        False  # BUILDKIT_INLINE_CACHE: what `cache_from` needs is always in the history; asked, nothing changes
    )
    source_date_epoch: int | None = None  # seconds; SOURCE_DATE_EPOCH among the build args does the same
    dialect: Dialect = "buildkit"  # how history and the owner of WORKDIR folders are said
    keep_containers: bool = False  # classic `rm=0`: containers of RUN steps stay, stopped
    auth: Callable[[str], Awaitable[Auth | None]] | None = None  # a registry's host to credentials
    secret: Callable[[str], Awaitable[bytes | None]] | None = None  # a secret's id to its bytes, None: not there
    ssh: Callable[[str], AbstractAsyncContextManager[str]] | None = None  # an agent's id to the path of its socket


# --- what is told -------------------------------------------------------------------------------------------------


class Location(Struct, frozen=True, kw_only=True):
    """Lines of a Dockerfile, counted from 1, both ends included."""

    start: int
    end: int
    file: str = ""


class Vertex(Struct, frozen=True, kw_only=True):
    """One step as it is now; told again whenever it changes, `digest` saying which it is. Times are RFC 3339 with nanoseconds,
    empty when it has not happened.

    `name` is BuildKit's (`[build 2/3] RUN make`, `[internal] load build context`). `number` of `total` count the instructions
    of the whole build for the classic dialect, 0 for internal steps, and `text` is the instruction as written, with
    variables in their places. `container` is the id of the container that runs it, `image` the id of the image that the
    build has come to with it (of every instruction, kept or not)."""

    digest: str
    name: str
    inputs: tuple[str, ...] = ()
    started: str = ""
    completed: str = ""
    cached: bool = False
    error: str = ""
    metadata: bool = False
    number: int = 0
    total: int = 0
    text: str = ""
    stage: str = ""
    platform: str = ""
    container: str = ""
    container_removed: bool = False
    image: str = ""
    location: Location | None = None


class VertexLog(Struct, frozen=True, kw_only=True):
    """Output of a step. `stream` 1 is standard output, 2 standard error."""

    vertex: str
    stream: Literal[1, 2]
    data: bytes
    time: str


class VertexStatus(Struct, frozen=True, kw_only=True):
    """How far a part of a step is: a layer being pulled, a file being fetched. Bytes; `total` 0 when unknown."""

    vertex: str
    id: str
    name: str = ""
    current: int = 0
    total: int = 0
    time: str = ""
    started: str = ""
    completed: str = ""


class Warning(Struct, frozen=True, kw_only=True):
    """A Dockerfile check that found something (`JSONArgsRecommended`), or another thing worth saying."""

    vertex: str
    message: str
    rule: str = ""
    detail: str = ""
    url: str = ""
    level: int = 1
    location: Location | None = None


class Progress(Protocol):
    """Whoever watches a build. Called in the event loop; must not block, may drop."""

    def vertex(self, vertex: Vertex, /) -> None:
        """A step began, ended, or is known from now on."""
        ...

    def log(self, log: VertexLog, /) -> None:
        """A step wrote something."""
        ...

    def status(self, status: VertexStatus, /) -> None:
        """A part of a step has got further."""
        ...

    def warning(self, warning: Warning, /) -> None:
        """Something in the Dockerfile is questionable."""
        ...


# --- what comes out -----------------------------------------------------------------------------------------------


class Built(Struct, frozen=True, kw_only=True):
    """The result for one platform. `image` is its id (the digest of `config`), in the image store only when it was asked to
    be. `config` is the whole OCI configuration document, `layers` are diff ids and blob digests, lowest first; both blobs and
    unpacked layers stay at least until the `Builder` is told that the result is `done` with."""

    platform: str
    image: str
    config: bytes
    layers: tuple[tuple[str, str], ...]  # (diff id, blob digest)


class BuildResult(Struct, frozen=True, kw_only=True):
    """What a build made. `lease` holds its content until `Builder.done`; a result that is in the image store needs none."""

    built: tuple[Built, ...]
    lease: str = ""


class StageInfo(Struct, frozen=True, kw_only=True):
    """A stage that can be a target, for `docker buildx build --call targets`."""

    name: str
    base: str
    default: bool
    location: Location
    description: str = ""


class ArgInfo(Struct, frozen=True, kw_only=True):
    """A build argument that a target knows, for `--call outline`."""

    name: str
    default: str | None
    location: Location
    description: str = ""


class Outline(Struct, frozen=True, kw_only=True):
    """What a Dockerfile offers, without building it."""

    stages: tuple[StageInfo, ...]
    args: tuple[ArgInfo, ...]
    secrets: tuple[tuple[str, bool], ...]  # id, required
    ssh: tuple[tuple[str, bool], ...]
    caches: tuple[str, ...]
    warnings: tuple[Warning, ...]


class CacheRecord(Struct, frozen=True, kw_only=True):
    """One row of `docker system df -v` and `docker buildx du`. Times are RFC 3339."""

    id: str
    parent: str
    kind: Literal["regular", "exec.cachemount"]
    description: str
    size_bytes: int
    created: str
    last_used: str
    uses: int
    in_use: bool
    shared: bool


class BuildFault(Invalid):
    """A build failed by what it was asked to do. `code` is the exit code of a RUN that failed (else 0), `location` the lines
    of the Dockerfile, `vertex` the step."""

    def __init__(
        self,
        message: str,
        *,
        location: Location | None = None,
        vertex: str = "",
        code: int = 0,
        field: str | None = None,
    ) -> None:
        super().__init__(message, field=field)
        self.location = location
        self.vertex = vertex
        self.code = code


class Builder(Protocol):
    """The builder of one node."""

    async def build(self, request: BuildRequest, progress: Progress) -> BuildResult:
        """Carry a build out. Raises BuildFault (Dockerfile, a failed RUN, a missing file), NotFound (base image), Unauthorized,
        Unsupported, Unavailable, HostFault. Faults of a step have been told to `progress` before."""
        ...

    def receive(self, archive: AsyncIterator[bytes]) -> AbstractAsyncContextManager[Folder]:
        """A context that comes as a tar archive (plain, gzip, bzip2, xz, zstd), unpacked while in use. Raises Invalid, TooLarge,
        HostFault."""
        ...

    def workspace(self) -> AbstractAsyncContextManager[Folder]:
        """An empty folder on the image store's file system, for a context that is brought in some other way; gone afterwards."""
        ...

    async def outline(self, request: BuildRequest) -> Outline:
        """Read the Dockerfile only. Raises BuildFault."""
        ...

    def rootfs(self, built: Built) -> AbstractAsyncContextManager[str]:
        """The root file system of a result as a folder, while in use; for `--output type=local`. Not to be written to."""
        ...

    def export_tar(self, built: Built) -> AsyncIterator[bytes]:
        """A tar of that root file system, for `--output type=tar`."""
        ...

    async def done(self, result: BuildResult) -> None:
        """Let go of a result that was not stored. Repeatable."""
        ...

    async def cache(self) -> Sequence[CacheRecord]:
        """What the build cache holds."""
        ...

    async def prune(
        self, *, all: bool = False, keep_bytes: int = 0, filters: Mapping[str, Any] | None = None
    ) -> tuple[Sequence[str], int]:
        """Drop what the cache holds and no image needs; the least recently used first until `keep_bytes` are left. `all` takes
        what images share too. Filters: `until` (a time), `id`, `type`, `inuse`. Returns ids and bytes."""
        ...
