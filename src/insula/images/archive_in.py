"""Read image archives: `docker save` (manifest.json, format 1.2) and OCI layouts (index.json), compressed or not.

The members are taken off the stream into temporary files, hashed on the way, because the documents that name them may
come last. What is loaded is decided afterwards by pure functions over those names.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from insula.errors import Invalid, NotFound, TooLarge, Unsupported
from insula.host.rootfd import split
from insula.host.tarmembers import Members
from insula.host.tarstream import Source, compression_of
from insula.images import manifests, reference
from insula.images.blobs import Blobs, BlobWriter
from insula.images.bounded import Bounded
from insula.images.metadata import LayerBlob

MAX_MEMBERS = 100_000
_NAME_ANNOTATIONS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


class Member(Struct, frozen=True, kw_only=True):
    """One file of the archive, waiting under its digest."""

    digest: str
    size: int


class Found(Struct, frozen=True, kw_only=True):
    """One image in an archive: where its configuration and its layers are, and what it is called there."""

    config: Member
    layers: tuple[Member, ...]
    names: tuple[str, ...]


class _SavedImage(Struct, frozen=True, kw_only=True, rename="pascal"):
    """An element of manifest.json."""

    config: str
    layers: list[str] | None = None
    repo_tags: list[str] | None = None


class Archive:
    """The files of an archive, by path, links followed. Names are cleaned; what they would do on a disk does not matter."""

    def __init__(self, files: dict[str, Member], links: dict[str, str], blobs: Blobs) -> None:
        self._files = files
        self._links = links
        self._blobs = blobs

    def find(self, path: str) -> Member | None:
        """A file by its path in the archive."""
        clean = "/".join(split(path))
        for _ in range(8):
            if clean in self._files:
                return self._files[clean]
            if clean not in self._links:
                return None
            clean = self._links[clean]
        return None

    def need(self, path: str) -> Member:
        """Likewise. Raises Invalid when it is missing."""
        member = self.find(path)
        if member is None:
            raise Invalid(f"invalid archive: it names {path!r} but does not hold it")
        return member

    def document(self, member: Member) -> bytes:
        """The content of a small file. Raises TooLarge."""
        return self._blobs.read(member.digest, limit=manifests.MAX_DOCUMENT_BYTES)

    def digests(self) -> set[str]:
        """All that was taken in."""
        return {member.digest for member in self._files.values()}


def receive(source: Source, blobs: Blobs, folder: Path) -> Archive:
    """Take an archive in. Its files become blobs below `folder`; those that no image needs are for the caller to sweep. Blocks.

    Raises Invalid (damaged), TooLarge, HostFault (disk).
    """
    files: dict[str, Member] = {}
    links: dict[str, str] = {}
    members = Members(Bounded(source, folder))
    for count, member in enumerate(members):
        if count >= MAX_MEMBERS:
            raise TooLarge(f"the archive holds more than {MAX_MEMBERS} entries")
        name = "/".join(split(member.name))
        if member.isdir():
            continue
        if member.issym():
            links[name] = "/".join(split(posixpath.join(posixpath.dirname(name), member.linkname)))
        elif member.islnk():
            links[name] = "/".join(split(member.linkname))
        elif member.isreg() and member.sparse is None:
            files[name] = _keep(blobs.writer(), members, member)
        else:
            raise Invalid(f"invalid archive: {member.name!r} is neither a file nor a link")
    members.drain()
    return Archive(files, links, blobs)


def _keep(writer: BlobWriter, members: Members, member: Any) -> Member:
    try:
        for _, data in members.content(member):
            writer.write(data)
        return Member(digest=writer.commit(), size=writer.size)
    finally:
        writer.abort()


def images_in(archive: Archive, wanted: manifests.Platform, *, strict: bool = False) -> list[Found]:
    """Which images an archive holds. `manifest.json` is believed first, as Docker does. With `strict` only those of the platform,
    of which there must be one. Raises Invalid, Unsupported, NotFound."""
    found = _all(archive, wanted, strict)
    if not strict:
        return found
    fitting = [each for each in found if _fits(archive, each, wanted)]
    if found and not fitting:
        raise NotFound(f"the archive holds no image for the platform {wanted}", kind="image")
    return fitting


def _fits(archive: Archive, found: Found, wanted: manifests.Platform) -> bool:
    config = manifests.parse_config(archive.document(found.config))
    have = manifests.Platform(os=config.os, architecture=config.architecture, variant=config.variant)
    return manifests.platform_fits(have, wanted)


def _all(archive: Archive, wanted: manifests.Platform, strict: bool) -> list[Found]:
    index = archive.find("index.json")
    # What a store of several platforms saved names one of them in manifest.json, and all of them in index.json.
    if (listing := archive.find("manifest.json")) is not None and not (strict and index is not None):
        return _saved(archive, archive.document(listing))
    if index is not None:
        return _layout(archive, archive.document(index), wanted)
    if archive.find("repositories") is not None:
        raise Unsupported("this archive was saved by a Docker older than 1.10; load and save it with a newer one")
    raise Invalid("invalid archive: it holds neither manifest.json nor index.json")


def _saved(archive: Archive, data: bytes) -> list[Found]:
    try:
        listed = msgspec.json.decode(data, type=list[_SavedImage])
    except msgspec.DecodeError as error:
        raise Invalid(f"invalid archive: manifest.json is malformed: {error}") from None
    return [
        Found(
            config=archive.need(image.config),
            layers=tuple(archive.need(path) for path in image.layers or ()),
            names=tuple(reference.parse_name(name).tagged for name in image.repo_tags or ()),
        )
        for image in listed
    ]


def _layout(archive: Archive, data: bytes, wanted: manifests.Platform) -> list[Found]:
    top = manifests.parse_manifest(data, manifests.OCI_INDEX)
    if isinstance(top, manifests.Manifest):
        raise Invalid("invalid archive: index.json is not an index")
    found = []
    for descriptor in _one_of_each(top.manifests, wanted):
        manifest = _resolve(archive, descriptor, wanted)
        names = _names_of(descriptor)
        layers = tuple(_blob(archive, layer) for layer in manifest.layers)
        found.append(Found(config=_blob(archive, manifest.config), layers=layers, names=names))
    return found


def _one_of_each(descriptors: Sequence[manifests.Descriptor], wanted: manifests.Platform) -> list[manifests.Descriptor]:
    """Rows of one name and several platforms are one image, of which the platform's is taken."""
    by_name: dict[tuple[str, ...], list[manifests.Descriptor]] = {}
    for descriptor in descriptors:
        by_name.setdefault(_names_of(descriptor), []).append(descriptor)
    found = []
    for rows in by_name.values():
        is_one = len(rows) > 1 and all(row.platform is not None for row in rows)
        chosen = manifests.choose(rows, wanted) if is_one else None
        found += [chosen] if chosen is not None else rows
    return found


def _resolve(archive: Archive, descriptor: manifests.Descriptor, wanted: manifests.Platform) -> manifests.Manifest:
    for _ in range(4):
        document = archive.document(_blob(archive, descriptor))
        parsed = manifests.parse_manifest(document, descriptor.media_type)
        if isinstance(parsed, manifests.Manifest):
            return parsed
        chosen = manifests.choose(parsed.manifests, wanted)
        if chosen is None:
            raise NotFound(f"the archive holds no image for the platform {wanted}", kind="image")
        descriptor = chosen
    raise Invalid("the archive's indexes are nested too deeply")


def _blob(archive: Archive, descriptor: manifests.Descriptor) -> Member:
    """A blob of an OCI layout: its path says its digest, and that must be true."""
    path = "blobs/" + descriptor.digest.replace(":", "/")
    member = archive.need(path)
    if member.digest != descriptor.digest:
        raise Invalid(f"invalid archive: the content of {path} has the digest {member.digest}")
    if member.size != descriptor.size:
        raise Invalid(f"invalid archive: {path} has {member.size} bytes, not the promised {descriptor.size}")
    return member


def _names_of(descriptor: manifests.Descriptor) -> tuple[str, ...]:
    """containerd writes the whole name; the specification's own annotation may hold a bare tag, which names nothing."""
    annotations = descriptor.annotations or {}
    for key in _NAME_ANNOTATIONS:
        text = annotations.get(key, "")
        if text and (key == _NAME_ANNOTATIONS[0] or ":" in text or "/" in text):
            return (reference.parse_name(text).tagged,)
    return ()


def layer_blobs(diff_ids: Sequence[str], layers: Sequence[Member], blobs: Blobs) -> list[LayerBlob]:
    """Join an image's diff ids with its layer files. Raises Invalid when they do not match in number."""
    if len(diff_ids) != len(layers):
        raise Invalid(f"invalid archive: {len(layers)} layers for {len(diff_ids)} diff ids")
    return [
        LayerBlob(
            diff_id=diff_id, digest=layer.digest, media_type=media_type(blobs.path(layer.digest)), size_bytes=layer.size
        )
        for diff_id, layer in zip(diff_ids, layers, strict=True)
    ]


def media_type(path: Path) -> str:
    """A layer's media type by its content; bzip2 and xz layers have none and are refused."""
    with path.open("rb") as file:
        head = file.read(6)
    compression = compression_of(head)
    if compression in ("bzip2", "xz"):
        raise Unsupported(f"a layer is compressed with {compression}; registries know gzip and zstd")
    return f"{manifests.OCI_LAYER}+{compression}" if compression else manifests.OCI_LAYER
