"""Make images out of files in memory: the demo images, machine disks and kernels wrapped as containerDisks.

The result depends only on what goes in: fixed times and order, no compression, so the same files give the same image id.
"""

from __future__ import annotations

import io
import stat
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from insula.images import manifests
from insula.images.blobs import Blobs
from insula.images.metadata import LayerBlob

EPOCH = 946684800  # 2000-01-01T00:00:00Z: old, and in range for every file system
EPOCH_TEXT = "2000-01-01T00:00:00Z"


class FileEntry(Struct, frozen=True, kw_only=True):
    """One entry of an image's root file system. Exactly one of `data`, `source` (a file on this host), `link` (symlink),
    `hard_link` or `folder` says what it is."""

    path: str
    data: bytes | None = None
    source: str = ""
    link: str = ""
    hard_link: str = ""
    folder: bool = False
    mode: int = 0o644
    uid: int = 0
    gid: int = 0


def write_layer(out: Any, files: Sequence[FileEntry]) -> None:
    """Write a layer tar of entries in their order; missing parent folders come by themselves, 0755. Blocks."""
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        made: set[str] = set()
        for entry in files:
            path = entry.path.strip("/")
            for parent in reversed([str(each) for each in Path(path).parents if str(each) != "."]):
                if parent not in made:
                    made.add(parent)
                    tar.addfile(_header(FileEntry(path=parent, folder=True, mode=0o755)))
            made.add(path)
            _add(tar, entry)


def _add(tar: tarfile.TarFile, entry: FileEntry) -> None:
    header = _header(entry)
    if entry.source:
        with open(entry.source, "rb") as file:
            header.size = Path(entry.source).stat().st_size
            tar.addfile(header, file)
    elif entry.data is not None:
        header.size = len(entry.data)
        tar.addfile(header, io.BytesIO(entry.data))
    else:
        tar.addfile(header)


def _header(entry: FileEntry) -> tarfile.TarInfo:
    header = tarfile.TarInfo(entry.path.strip("/"))
    header.mode, header.uid, header.gid, header.mtime = stat.S_IMODE(entry.mode), entry.uid, entry.gid, EPOCH
    if entry.folder:
        header.type = tarfile.DIRTYPE
    elif entry.link:
        header.type, header.linkname, header.mode = tarfile.SYMTYPE, entry.link, 0o777
    elif entry.hard_link:
        header.type, header.linkname = tarfile.LNKTYPE, entry.hard_link.strip("/")
    return header


def store_layer(blobs: Blobs, files: Sequence[FileEntry]) -> LayerBlob:
    """Write the layer of `files` as a blob. Blocks. Raises HostFault."""
    return store_written(blobs, lambda out: write_layer(out, files))


def store_written(blobs: Blobs, write: Callable[[Any], object]) -> LayerBlob:
    """Keep the plain layer tar that `write` writes to the file it is given. Blocks. Raises HostFault."""
    writer = blobs.writer()
    try:
        write(_Sink(writer.write))
        digest = writer.commit()
    finally:
        writer.abort()
    return LayerBlob(diff_id=digest, digest=digest, media_type=manifests.OCI_LAYER, size_bytes=writer.size)


def configuration(
    layers: Sequence[LayerBlob],
    config: dict[str, Any],
    *,
    architecture: str,
    created: str,
    history: Sequence[dict[str, Any]],
    author: str = "",
    variant: str = "",
) -> bytes:
    """An OCI image configuration document; `config` is its `config` part in the specification's own words (`Cmd`, ...)."""
    document: dict[str, Any] = {
        "architecture": architecture,
        "os": "linux",
        "created": created,
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": list(history),
    }
    if author:
        document["author"] = author
    if variant:
        document["variant"] = variant
    return manifests.encode(document)


class _Sink:
    """The little of a file that `tarfile` writes to."""

    def __init__(self, write: Any) -> None:
        self._write = write
        self._position = 0

    def write(self, data: bytes) -> int:
        self._write(data)
        self._position += len(data)
        return len(data)

    def tell(self) -> int:
        return self._position
