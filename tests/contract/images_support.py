"""Archives and layers made by hand, for tests of the image store."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def layer_tar(files: Mapping[str, bytes | None]) -> bytes:
    """A layer: None is a folder."""
    return tar_of(files)


def tar_of(files: Mapping[str, bytes | None]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            header = tarfile.TarInfo(name)
            if data is None:
                header.type, header.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(header)
            else:
                header.size = len(data)
                archive.addfile(header, io.BytesIO(data))
    return out.getvalue()


def config_of(layers: list[bytes], **changed: Any) -> bytes:
    document = {
        "architecture": "amd64",
        "os": "linux",
        "created": "2024-01-02T03:04:05Z",
        "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
        "history": [{"created_by": f"layer {number}"} for number, _ in enumerate(layers)],
    }
    return json.dumps(document | changed).encode()


def docker_archive(layers: list[bytes], names: list[str], *, config: bytes | None = None) -> bytes:
    """As `docker save` of 20.10 lays it out."""
    config = config or config_of(layers)
    paths = [f"{number:064x}/layer.tar" for number, _ in enumerate(layers)]
    config_path = sha256(config).removeprefix("sha256:") + ".json"
    manifest = [{"Config": config_path, "RepoTags": names, "Layers": paths}]
    files = dict(zip(paths, layers, strict=True))
    return tar_of({**files, config_path: config, "manifest.json": json.dumps(manifest).encode()})


def oci_parts(layers: list[bytes], name: str, *, media: str = "") -> dict[str, bytes | None]:
    """The files of an OCI layout. `layers` are as they are stored; plain ones."""
    config = config_of(layers)
    kind = "application/vnd.oci.image.layer.v1.tar" + media
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": sha256(config),
                "size": len(config),
            },
            "layers": [{"mediaType": kind, "digest": sha256(layer), "size": len(layer)} for layer in layers],
        }
    ).encode()
    index = {
        "schemaVersion": 2,
        "manifests": [
            {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": sha256(manifest),
                "size": len(manifest),
                "annotations": {"io.containerd.image.name": f"docker.io/library/{name}"},
            }
        ],
    }
    blobs = {"blobs/" + sha256(data).replace(":", "/"): data for data in (config, manifest, *layers)}
    return {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": json.dumps(index).encode(), **blobs}


async def chunks(data: bytes, size: int = 50_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def collect(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in stream])


def left_over(folder: Path) -> list[str]:
    """What an image store holds on disk beyond its empty self."""
    return sorted(
        str(path.relative_to(folder))
        for part in ("blobs/sha256", "layers", "tmp")
        for path in (folder / part).iterdir()
    )
