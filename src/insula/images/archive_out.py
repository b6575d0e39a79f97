"""Write images as an archive: an OCI layout whose manifest.json makes it a `docker save` archive too.

Every Docker since 1.10 loads it by manifest.json, containerd, skopeo and podman also by index.json. Layers go out as they
are kept, but those of zstd are unpacked: Docker 20.10 cannot read them.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from msgspec import Struct

from insula.errors import NotFound
from insula.host.tarstream import CHUNK, Plain, forward_tar
from insula.images import manifests, reference, resolve
from insula.images.blobs import Blobs, digest_of
from insula.images.build import EPOCH
from insula.images.metadata import Catalog, Entry, LayerBlob


class Saved(Struct, frozen=True, kw_only=True):
    """An image to write, and the names it keeps in the archive."""

    entry: Entry
    names: tuple[str, ...]


def select(catalog: Catalog, references: Sequence[str]) -> list[Saved]:
    """What `docker save` means: a repository stands for all of its tags, an id goes without names. Raises NotFound."""
    names: dict[str, list[str]] = {}
    for text in references:
        identity, found = _one(catalog, text)
        names.setdefault(identity, []).extend(found)
        for other in found:
            names.setdefault(catalog.names[other], [])
    return [
        Saved(
            entry=catalog.images[identity],
            names=tuple(
                sorted({name for found in names.values() for name in found if catalog.names[name] == identity})
            ),
        )
        for identity in names
    ]


def _one(catalog: Catalog, text: str) -> tuple[str, list[str]]:
    parsed = resolve.reference_or_none(text)
    if parsed.path and not parsed.tag and not parsed.digest:
        tags = sorted(name for name in catalog.names if name.rpartition(":")[0] == parsed.name)
        if tags:
            return catalog.names[tags[0]], tags
    identity = resolve.find(catalog, text)
    return identity, [parsed.tagged] if catalog.names.get(parsed.tagged) == identity and not parsed.digest else []


def write(out: Any, images: Sequence[Saved], blobs: Blobs) -> None:
    """Write the archive to a file-like object. Blocks. Raises NotFound when a blob has gone."""
    with ExitStack() as undo, forward_tar(out) as tar:
        _Writer(tar, blobs, undo).all(images)


def write_index(out: Any, images: Sequence[tuple[str, Entry]], names: Sequence[str], blobs: Blobs) -> str:
    """Write images by platform (`linux/arm64/v8`) as an OCI layout with one index of all of them, under names. Blocks. Returns
    the index's digest. Raises NotFound when a blob has gone."""
    with ExitStack() as undo, forward_tar(out) as tar:
        return _Writer(tar, blobs, undo).index(images, names)


def write_one(out: Any, image: Saved, blobs: Blobs) -> str:
    """`write` of one image. Returns the digest of its manifest."""
    with ExitStack() as undo, forward_tar(out) as tar:
        return _Writer(tar, blobs, undo).all([image])[0]


class _Writer:
    def __init__(self, tar: tarfile.TarFile, blobs: Blobs, undo: ExitStack) -> None:
        self._tar = tar
        self._blobs = blobs
        self._undo = undo
        self._written: set[str] = set()

    def _begin(self) -> None:
        self._document("oci-layout", {"imageLayoutVersion": "1.0.0"})
        for folder in ("blobs", "blobs/sha256"):
            self._folder(folder)

    def index(self, images: Sequence[tuple[str, Entry]], names: Sequence[str]) -> str:
        self._begin()
        rows = []
        for platform, entry in images:
            layers = [self._layer(layer) for layer in entry.layers]
            config = self._blobs.read(entry.id)
            self._bytes(_path(entry.id), config)
            (row,) = self._manifest(Saved(entry=entry, names=()), config, layers)
            words = zip(("os", "architecture", "variant"), platform.split("/"), strict=False)
            rows.append(row | {"platform": dict(words)})
        top = {"schemaVersion": 2, "mediaType": manifests.OCI_INDEX, "manifests": rows}
        document = manifests.encode(top)
        digest = digest_of(document)
        self._bytes(_path(digest), document)
        row = {"mediaType": manifests.OCI_INDEX, "digest": digest, "size": len(document)}
        self._document("index.json", top | {"manifests": _named(row, names)})
        return digest

    def all(self, images: Sequence[Saved]) -> list[str]:
        """The digests of the manifests."""
        self._begin()
        digests = []
        listing: list[dict[str, Any]] = []
        index: list[dict[str, Any]] = []
        repositories: dict[str, dict[str, str]] = {}
        for image in images:
            layers = [self._layer(layer) for layer in image.entry.layers]
            config = self._blobs.read(image.entry.id)
            self._bytes(_path(image.entry.id), config)
            rows = self._manifest(image, config, layers)
            digests.append(str(rows[0]["digest"]))
            index += rows
            listing.append(
                {
                    "Config": _path(image.entry.id),
                    "RepoTags": list(image.names) or None,
                    "Layers": [_path(layer.digest) for layer in layers],
                }
            )
            for name in image.names:
                repository, _, tag = name.rpartition(":")
                top = layers[-1].digest if layers else image.entry.id
                repositories.setdefault(repository, {})[tag] = top.removeprefix("sha256:")
        self._document("index.json", {"schemaVersion": 2, "mediaType": manifests.OCI_INDEX, "manifests": index})
        self._document("manifest.json", listing)
        self._document("repositories", repositories)
        return digests

    def _manifest(self, image: Saved, config: bytes, layers: Sequence[LayerBlob]) -> list[dict[str, Any]]:
        """Write the OCI manifest; the rows of index.json that point to it, one for each name."""
        document = manifests.encode(oci_manifest(image.entry.id, len(config), layers))
        digest = digest_of(document)
        self._bytes(_path(digest), document)
        row = {"mediaType": manifests.OCI_MANIFEST, "digest": digest, "size": len(document)}
        return _named(row, image.names)

    def _layer(self, layer: LayerBlob) -> LayerBlob:
        if layer.media_type.endswith("zstd"):
            path = self._unpacked(layer)
            layer = LayerBlob(
                diff_id=layer.diff_id,
                digest=layer.diff_id,
                media_type=manifests.OCI_LAYER,
                size_bytes=path.stat().st_size,
            )
        else:
            path = self._blobs.path(layer.digest)
        self._file(_path(layer.digest), path)
        return layer

    def _unpacked(self, layer: LayerBlob) -> Path:
        path = self._blobs.temporary_path("save")
        self._undo.callback(path.unlink, missing_ok=True)
        with self._blobs.path(layer.digest).open("rb") as packed, path.open("wb") as out:
            plain = Plain(packed)
            while data := plain.read(CHUNK):
                out.write(data)
        return path

    def _file(self, name: str, path: Path) -> None:
        if name in self._written:
            return
        self._written.add(name)
        try:
            file = self._undo.enter_context(path.open("rb"))
        except FileNotFoundError:
            raise NotFound(f"the content {name} of the image is gone") from None
        header = _header(name)
        header.size = path.stat().st_size
        self._tar.addfile(header, file)
        file.close()

    def _bytes(self, name: str, data: bytes) -> None:
        if name not in self._written:
            self._written.add(name)
            header = _header(name)
            header.size = len(data)
            self._tar.addfile(header, io.BytesIO(data))

    def _document(self, name: str, document: object) -> None:
        self._bytes(name, manifests.encode(document))

    def _folder(self, name: str) -> None:
        header = _header(name)
        header.type, header.mode = tarfile.DIRTYPE, 0o755
        self._tar.addfile(header)


def _named(row: dict[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of index.json that point to a manifest or index, one for each name."""
    named = []
    for name in names:
        parsed = reference.parse(name)
        full = f"{parsed.full_name}:{parsed.tag}"
        notes = {"io.containerd.image.name": full, "org.opencontainers.image.ref.name": parsed.tag}
        named.append(row | {"annotations": notes})
    return named or [row]


def oci_manifest(
    config: str, config_bytes: int, layers: Sequence[LayerBlob], *, docker: bool = False
) -> dict[str, Any]:
    """A manifest: OCI's, or with `docker` the same in the media types of Docker's schema 2 (gzip layers only)."""
    return {
        "schemaVersion": 2,
        "mediaType": manifests.DOCKER_MANIFEST if docker else manifests.OCI_MANIFEST,
        "config": {
            "mediaType": manifests.DOCKER_CONFIG if docker else manifests.OCI_CONFIG,
            "digest": config,
            "size": config_bytes,
        },
        "layers": [
            {
                "mediaType": manifests.DOCKER_LAYER if docker else _oci_layer_type(layer.media_type),
                "digest": layer.digest,
                "size": layer.size_bytes,
            }
            for layer in layers
        ],
    }


def _oci_layer_type(media_type: str) -> str:
    """Docker's name for a layer type as OCI's."""
    for compression in ("gzip", "zstd"):
        if media_type.endswith(compression):
            return f"{manifests.OCI_LAYER}+{compression}"
    return manifests.OCI_LAYER


def _path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _header(name: str) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.mtime = EPOCH
    return header
