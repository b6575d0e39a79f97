"""Manifests, indexes and configurations as typed, checked records.

Both dialects are read: OCI image specification (manifest.md, image-index.md, config.md) and Docker's image manifest
version 2, schema 2. They differ in media types only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import Struct, field

from insula.errors import Invalid, Unsupported
from insula.images.contract import Image, ImageConfig
from insula.images.metadata import Entry
from insula.images.reference import is_digest

T = TypeVar("T")

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
ACCEPTED = (OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST)

MAX_DOCUMENT_BYTES = 4 * 1024 * 1024
MAX_LAYERS = 500  # what overlayfs stacks
_DOCKER_CONFIG_OLD = "application/octet-stream"  # what Docker 1.10 wrote
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1"


class Platform(Struct, frozen=True, kw_only=True):
    """What an image is made for, in Go's words: `linux`, `arm64`, `v8`."""

    os: str = ""
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(Struct, frozen=True, kw_only=True, rename="camel"):
    """A pointer to content, see the OCI image specification's descriptor.md."""

    digest: str
    size: int
    media_type: str = ""
    urls: list[str] | None = None
    annotations: dict[str, str] | None = None
    platform: Platform | None = None

    @property
    def is_foreign(self) -> bool:
        """Whether it is a layer that its registry need not have."""
        return bool(self.urls) or "foreign" in self.media_type or "nondistributable" in self.media_type


class Manifest(Struct, frozen=True, kw_only=True, rename="camel"):
    """One image: its configuration and its layers, lowest first."""

    config: Descriptor
    layers: list[Descriptor]
    media_type: str = ""
    schema_version: int = 2


class Index(Struct, frozen=True, kw_only=True, rename="camel"):
    """Several images, one for each platform."""

    manifests: list[Descriptor]
    media_type: str = ""
    schema_version: int = 2


class _Rootfs(Struct, frozen=True, kw_only=True):
    type: str = "layers"
    diff_ids: list[str] | None = None


class _Inner(Struct, frozen=True, kw_only=True, rename="pascal"):
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    env: list[str] | None = None
    working_dir: str | None = None
    user: str | None = None
    labels: dict[str, str] | None = None
    volumes: dict[str, Any] | None = None
    exposed_ports: dict[str, Any] | None = None
    stop_signal: str | None = None
    healthcheck: dict[str, Any] | None = None


class ConfigFile(Struct, frozen=True, kw_only=True):
    """An image's configuration document: what Insula reads of it."""

    architecture: str = ""
    os: str = ""
    variant: str = ""
    created: str | None = None
    config: _Inner | None = None
    rootfs: _Rootfs = _Rootfs()
    history: list[dict[str, Any]] | None = field(default=None)

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """The layers' identities, lowest first."""
        return tuple(self.rootfs.diff_ids or ())


def parse_manifest(data: bytes, media_type: str = "") -> Manifest | Index:
    """Read a manifest or an index. Raises Invalid, Unsupported (the obsolete schema 1)."""
    if len(data) > MAX_DOCUMENT_BYTES:
        raise Invalid(f"the manifest is larger than {MAX_DOCUMENT_BYTES} bytes")
    shape = _decode(data, dict[str, Any], "manifest")
    named = str(shape.get("mediaType") or media_type.partition(";")[0].strip())
    if named.startswith(_SCHEMA_1) or shape.get("schemaVersion") == 1:
        raise Unsupported("the image has a manifest of Docker's obsolete schema 1; push it again with a newer client")
    if "manifests" in shape and "layers" in shape:
        raise Invalid("the manifest is both an image and an index")
    if "manifests" in shape:
        index = _decode(data, Index, "index")
        _check(index.manifests)
        return index
    manifest = _decode(data, Manifest, "manifest")
    _check([manifest.config, *manifest.layers])
    if len(manifest.layers) > MAX_LAYERS:
        raise Invalid(f"the image has {len(manifest.layers)} layers; {MAX_LAYERS} can be stacked")
    return manifest


def check_config_type(config: Descriptor) -> None:
    """Charts, plugins and other artifacts use the same manifests. Raises Invalid, with the Docker Engine's beginning."""
    if config.media_type not in ("", OCI_CONFIG, DOCKER_CONFIG, _DOCKER_CONFIG_OLD):
        raise Invalid(f"unsupported media type {config.media_type}: this is an artifact, not an image of a container")


def parse_config(data: bytes) -> ConfigFile:
    """Read an image's configuration. Raises Invalid."""
    config = _decode(data, ConfigFile, "image configuration")
    for diff_id in config.diff_ids:
        if not is_digest(diff_id):
            raise Invalid(f"the image configuration lists {diff_id!r} as a layer, which is no sha256 digest")
    if len(config.diff_ids) > MAX_LAYERS:
        raise Invalid(f"the image has {len(config.diff_ids)} layers; {MAX_LAYERS} can be stacked")
    return config


def describe(entry: Entry, data: bytes, names: tuple[str, ...]) -> Image:
    """An image as the rest of the node sees it."""
    config = parse_config(data)
    return Image(
        id=entry.id,
        names=names,
        digests=entry.digests,
        created=config.created or "",
        architecture=config.architecture,
        os=config.os,
        size_bytes=entry.size_bytes,
        layers=config.diff_ids,
        config=_image_config(config.config or _Inner(), msgspec.json.decode(data)),
    )


def _image_config(inner: _Inner, raw: dict[str, Any]) -> ImageConfig:
    return ImageConfig(
        entrypoint=tuple(inner.entrypoint or ()),
        command=tuple(inner.cmd or ()),
        env=tuple(inner.env or ()),
        working_dir=inner.working_dir or "",
        user=inner.user or "",
        labels=inner.labels or {},
        volumes=tuple(inner.volumes or ()),
        exposed_ports=tuple(inner.exposed_ports or ()),
        stop_signal=inner.stop_signal or "",
        healthcheck=inner.healthcheck,
        raw=raw,
    )


def encode(document: object) -> bytes:
    """JSON with sorted keys: the same content gets the same digest."""
    return msgspec.json.encode(document, order="sorted")


def _check(descriptors: Iterable[Descriptor]) -> None:
    for descriptor in descriptors:
        if not is_digest(descriptor.digest):
            raise Invalid(f"the manifest points to {descriptor.digest!r}, which is no sha256 digest")
        if descriptor.size < 0:
            raise Invalid(f"the manifest gives {descriptor.digest} the size {descriptor.size}")


def _decode(data: bytes, kind: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Invalid(f"the {what} is malformed: {error}") from None


# --- platforms ----------------------------------------------------------------------------------------------------

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386", "ppc64le": "ppc64le"}
_ALIASES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "armhf": "arm", "i386": "386"}
_VARIANTS = {"arm64": "v8", "arm": "v7"}


def host_platform(machine: str) -> Platform:
    """The platform of a machine as uname(2) names it."""
    architecture = _MACHINES.get(machine, machine)
    return Platform(os="linux", architecture=architecture, variant=_VARIANTS.get(architecture, ""))


def parse_platform(text: str) -> Platform:
    """Read `linux/arm64/v8`, `linux/amd64`, `arm64`, or a platform as the OCI image specification writes it in JSON. Raises
    Invalid."""
    if text.startswith("{"):
        text = str(_decode(text.encode(), Platform, "platform"))
    parts = text.lower().split("/")
    if not all(part.replace("_", "").replace("-", "").replace(".", "").isalnum() for part in parts) or len(parts) > 3:
        raise Invalid(f"{text!r} is not a platform such as linux/amd64", field="platform")
    if len(parts) == 1:
        parts = ["linux", *parts] if parts[0] != "linux" else parts
    architecture = _ALIASES.get(parts[1], parts[1]) if len(parts) > 1 else ""
    return Platform(os=parts[0], architecture=architecture, variant=parts[2] if len(parts) > 2 else "")


def platform_of(image: Image) -> Platform:
    """What an image says that it is made for."""
    return Platform(os=image.os, architecture=image.architecture, variant=str(image.config.raw.get("variant") or ""))


def platform_fits(have: Platform, wanted: Platform) -> bool:
    """Whether what is made for one platform is what was asked for; without a variant any will do."""
    usual = _VARIANTS.get(wanted.architecture, "")
    return (
        (have.os or "linux") == wanted.os
        and wanted.architecture in ("", have.architecture)
        and (not wanted.variant or (have.variant or usual) == wanted.variant)
    )


def fits(image: Image, wanted: Platform) -> bool:
    """Likewise, of an image."""
    return platform_fits(platform_of(image), wanted)


def mismatch(name: str, image: Image, wanted: Platform) -> str:
    """The Docker Engine's sentence; clients look for it."""
    return (
        f"image with reference {name} was found but does not match the specified platform: "
        f"wanted {wanted}, actual: {platform_of(image)}"
    )


def choose(manifests: Sequence[Descriptor], wanted: Platform) -> Descriptor | None:
    """The manifest for a platform: same variant first, then one without, then any of its architecture."""
    fitting = [
        each
        for each in manifests
        if each.platform
        and each.platform.os == wanted.os
        and each.platform.architecture == wanted.architecture
        and (each.annotations or {}).get("vnd.docker.reference.type") != "attestation-manifest"
    ]
    ranks = (wanted.variant or _VARIANTS.get(wanted.architecture, ""), "")
    for variant in ranks:
        if found := next((each for each in fitting if each.platform and each.platform.variant == variant), None):
            return found
    if fitting:
        return fitting[0]
    unnamed = [each for each in manifests if each.platform is None]
    return unnamed[0] if len(manifests) == len(unnamed) == 1 else None
