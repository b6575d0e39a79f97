"""`docker load` of an archive of 120 MB, turn by turn; the image is removed before each turn."""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
from pathlib import Path

import msgspec

from bench.benchmark import AT_MOST, Benchmark, Budget, Row, summary
from bench.commands import run as run_command
from bench.commands import timed
from bench.context import Context

NAME = "bench/large:latest"
LAYERS, FILES, FILE_BYTES = 3, 400, 100_000


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    archive.addfile(member, io.BytesIO(data))


def _layer(number: int) -> bytes:
    """40 MB of files that do not compress, as a tar."""
    source = random.Random(number)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for file in range(FILES):
            _add(archive, f"opt/layer{number}/dir{file % 20}/file{file}", source.randbytes(FILE_BYTES))
    return buffer.getvalue()


def write_archive(path: Path) -> None:
    """An image archive as `docker save` writes it, the same bytes every time."""
    layers = [_layer(number) for number in range(LAYERS)]
    config = msgspec.json.encode(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/bin/sh"]},
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers],
            },
            "history": [{"created": "2020-01-01T00:00:00Z"} for _ in layers],
        }
    )
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    paths = [f"{number}/layer.tar" for number in range(LAYERS)]
    manifest = [{"Config": name, "RepoTags": [NAME], "Layers": paths}]
    with tarfile.open(path, "w") as archive:
        _add(archive, name, config)
        for layer_path, layer in zip(paths, layers, strict=True):
            _add(archive, layer_path, layer)
        _add(archive, "manifest.json", msgspec.json.encode(manifest))


def run(context: Context) -> list[Row]:
    """The whole command."""
    archive = context.scratch / "large.tar"
    write_archive(archive)
    daemons = [daemon for daemon in (context.insula, context.dockerd) if daemon is not None]
    taken: dict[str, list[float]] = {daemon.name: [] for daemon in daemons}
    for _ in range(context.times(6, 2)):
        for daemon in daemons:
            taken[daemon.name].append(timed(["docker", "load", "-q", "-i", str(archive)], env=daemon.env))
            run_command(["docker", "rmi", NAME], env=daemon.env)
    archive.unlink()
    peers = taken.get("dockerd")
    return [
        Row(
            what="docker load of a 120 MB archive",
            unit="s",
            insula=summary(taken["Insula"]),
            peer=summary(peers) if peers else None,
            peer_name="dockerd",
            absent=context.no_dockerd(),
            budgets=(Budget(AT_MOST, 1, times=True),),
        )
    ]


BENCHMARK = Benchmark("image-load", "docker load of 120 MB", run)
