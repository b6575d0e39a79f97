"""What the rest of the node tower needs of images. Blobs are kept by digest; an image is its configuration's digest."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

from msgspec import Struct

from insula.images.registries import Registries


class Auth(Struct, frozen=True, kw_only=True):
    """Credentials for one registry, as `X-Registry-Auth` carries them."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""


class Progress(Struct, frozen=True, kw_only=True):
    """One step of a long work. `id` is a short layer id or empty; `current`/`total` are bytes, 0 when unknown."""

    status: str
    id: str = ""
    current: int = 0
    total: int = 0


class Pushed(Struct, frozen=True, kw_only=True):
    """The manifest as a registry has it now."""

    digest: str
    size_bytes: int


class Distribution(Struct, frozen=True, kw_only=True):
    """What a registry says of an image: its manifest or index, and the platforms, each `{"os", "architecture", "variant"}`."""

    media_type: str
    digest: str
    size_bytes: int
    platforms: tuple[dict[str, str], ...] = ()


Report = Callable[[Progress], None]


class ImageConfig(Struct, frozen=True, kw_only=True):
    """The `config` part of an OCI image configuration, in Python words. `raw` is the whole configuration document as
    stored (`architecture`, `author`, `config`, `history`, `rootfs`, ...): the part itself is `raw["config"]`."""

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    labels: dict[str, str] = {}
    volumes: tuple[str, ...] = ()
    exposed_ports: tuple[str, ...] = ()
    stop_signal: str = ""
    healthcheck: dict[str, Any] | None = None
    raw: dict[str, Any] = {}


class Image(Struct, frozen=True, kw_only=True):
    """One image. `id` is `sha256:<64 hex>` of its configuration. `layers` are diff ids, lowest first."""

    id: str
    names: tuple[str, ...]  # references with a tag, normalized to Docker's familiar form (`busybox:latest`)
    digests: tuple[str, ...]  # `name@sha256:...`
    created: str
    architecture: str
    os: str
    size_bytes: int
    layers: tuple[str, ...]
    config: ImageConfig
    parent: str = ""  # the image it was committed from, if that is here
    tagged_at: str = ""  # when a name was given to it last, RFC 3339


class Usage(Struct, frozen=True, kw_only=True):
    """What images take on the disk: all their unpacked layers, each counted once; of each image, how much it shares."""

    layers_bytes: int
    shared_bytes: dict[str, int]


class Rootfs(Struct, frozen=True, kw_only=True):
    """A mounted root file system of one instance: the merged view, the writable layer, and the lower folders."""

    path: str
    upper: str
    lowers: tuple[str, ...]


class Use(Struct, frozen=True, kw_only=True):
    """An instance that was made from an image: what a removal must know. `files`: it is a machine with a disk or kernel in
    the image, whose files must stay whether it runs or not."""

    image: str
    instance: str
    running: bool = False
    files: bool = False


class ImageStore(Protocol):
    """The image store of one node. References are what a user types: `busybox`, `host:5000/a/b:tag`, `name@sha256:...`,
    an image id or a unique prefix of it."""

    registries: Registries

    async def get(self, reference: str, *, platform: str = "") -> Image:
        """Raises NotFound with Docker's sentence (`No such image: X`), also for an image of another platform than the one asked
        for. A platform is `linux/arm64/v8` or the OCI image specification's JSON, here and below."""
        ...

    async def held(self, id: str) -> Image:
        """The image that an instance was made from, by its full id: also one that was removed by force since. Raises
        NotFound."""
        ...

    async def list(self) -> Sequence[Image]:
        """All images, newest first, dangling ones too."""
        ...

    async def usage(self) -> Usage:
        """What they take on the disk."""
        ...

    async def drop_partial(self) -> int:
        """Give up downloads that were cut short and nobody has gone on with. Returns the bytes that this freed."""
        ...

    async def tag(self, reference: str, name: str) -> None:
        """Give one more name; a name that another image had moves."""
        ...

    async def remove(
        self,
        reference: str,
        *,
        force: bool = False,
        uses: Sequence[Use] = (),
        prune: bool = True,
        platforms: Sequence[str] = (),
    ) -> Sequence[tuple[str, str]]:
        """Untag, and delete when no name is left. Returns ("untagged"|"deleted", what) in order. `uses` are the instances
        that need images (`Engine.image_uses`). Raises Conflict. With `force` an image that stopped instances need is
        deleted as for Docker: they keep it (`held`), nobody else finds it. With `prune` nameless images that only this one was
        made from go as well. `platforms`: it must be of one of them."""
        ...

    async def pull(
        self, reference: str, *, auth: Auth | None = None, platform: str = "", report: Report | None = None
    ) -> Image:
        """Fetch from its registry, verifying every digest."""
        ...

    async def pull_all(
        self, repository: str, *, auth: Auth | None = None, platform: str = "", report: Report | None = None
    ) -> Sequence[Image]:
        """Fetch every tag of a repository."""
        ...

    async def push(
        self, reference: str, *, auth: Auth | None = None, platform: str = "", report: Report | None = None
    ) -> Pushed:
        """Send to its registry."""
        ...

    async def login(self, server: str, auth: Auth) -> str:
        """Find out whether a registry (`host:5000`, empty for Docker Hub) takes credentials. Returns the identity token that
        it gave in exchange, empty for none. Raises Unauthorized, Unavailable."""
        ...

    async def distribution(self, reference: str, *, auth: Auth | None = None) -> Distribution:
        """What a registry says of an image, without fetching it."""
        ...

    async def load(
        self, archive: AsyncIterator[bytes], *, platform: str = "", report: Report | None = None
    ) -> Sequence[Image]:
        """Read a `docker save` or OCI layout tar (plain, gzip, zstd...). Reports a step for each layer and, at the end of each
        image, `Loaded image: NAME` for each name that came with it, or `Loaded image ID: ID`."""
        ...

    def save(self, references: Sequence[str], *, platform: str = "") -> AsyncIterator[bytes]:
        """Write an archive that Docker loads and that is an OCI layout too."""
        ...

    def save_as(
        self, images: Sequence[tuple[str, str]], names: Sequence[str], told: Callable[[str], None]
    ) -> AsyncIterator[bytes]:
        """Such an archive of one image, or of several with one index over them, each as (platform, id), under names that they
        need not have here. `told` gets the digest of the manifest or index at the end, in any thread."""
        ...

    async def import_rootfs(
        self,
        archive: AsyncIterator[bytes],
        *,
        name: str = "",
        changes: Sequence[str] = (),
        message: str = "",
        platform: str = "",
    ) -> Image:
        """Make an image of one layer from a root file system tar, for this machine's platform or another."""
        ...

    async def commit(
        self, upper: str, *, base: Image, name: str, config: dict[str, Any], history: dict[str, Any]
    ) -> Image:
        """Make an image of `base` plus the writable layer in the folder `upper`."""
        ...

    async def history(self, reference: str, *, platform: str = "") -> Sequence[dict[str, Any]]:
        """Newest first, as the Docker API answers."""
        ...

    async def mount(self, image: Image, instance: str, *, volatile: bool = False) -> Rootfs:
        """Make (or take back after a crash) the root file system of an instance. `volatile`: its writable layer is never
        synced to disk, which makes unmounting fast; for instances that are removed when they end."""
        ...

    async def unmount(self, instance: str, *, remove: bool) -> None:
        """Unmount it and, with `remove`, delete the writable layer. Repeatable."""
        ...

    async def file(self, image: Image, path: str) -> str:
        """The path on this host of a regular file inside an image (a containerDisk's disk, a kernel), symlinks resolved
        inside the image only. Raises NotFound."""
        ...

    async def recover(self) -> None:
        """At start: drop half-written blobs and layers, remount nothing."""
        ...
