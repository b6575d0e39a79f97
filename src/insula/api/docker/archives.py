"""Files of containers: `docker cp`, `diff`, `export` and `commit`."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from insula.api.docker.images_words import name_of
from insula.api.docker.route import Call, Route
from insula.api.docker.words_out import config_words
from insula.api.web import body_chunks, encode, json_response, send_chunks
from insula.engine.contract import PathStat
from insula.errors import Invalid
from insula.images.changes import apply_changes

TAR = "application/x-tar"
_HOST_FILES = frozenset({"/.dockerenv", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf"})
_ADDED = 1


def _path(call: Call) -> str:
    path = call.text("path")
    if not path:
        raise Invalid("bad parameter: 'path' cannot be empty", field="path")
    return path


def stat_header(stat: PathStat) -> str:
    """X-Docker-Container-Path-Stat: JSON in base64."""
    words = {
        "name": stat.name,
        "size": stat.size,
        "mode": stat.mode,
        "mtime": stat.mtime,
        "linkTarget": stat.link_target,
    }
    return base64.b64encode(encode(words)).decode()


async def stat(call: Call) -> web.StreamResponse:
    """`HEAD /containers/{id}/archive`."""
    found = await call.door.engine.stat_path(call.params["id"], _path(call))
    return web.Response(status=200, headers={"X-Docker-Container-Path-Stat": stat_header(found)})


async def get(call: Call) -> web.StreamResponse:
    """`GET /containers/{id}/archive`."""
    engine, id, path = call.door.engine, call.params["id"], _path(call)
    found = await engine.stat_path(id, path)
    headers = {"X-Docker-Container-Path-Stat": stat_header(found)}
    return await send_chunks(call.request, engine.get_archive(id, path), content_type=TAR, headers=headers)


async def put(call: Call) -> web.StreamResponse:
    """`PUT /containers/{id}/archive`."""
    await call.door.engine.put_archive(
        call.params["id"],
        _path(call),
        body_chunks(call.request),
        no_overwrite_dir=call.flag("noOverwriteDirNonDir"),
        as_user=call.flag("copyUIDGID"),
    )
    return web.Response(status=200)


async def changes(call: Call) -> web.StreamResponse:
    """`GET /containers/{id}/changes`."""
    found = without_host_files(await call.door.engine.changes(call.params["id"]))
    return json_response([{"Path": path, "Kind": kind} for path, kind in found] or None)


def without_host_files(found: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Without the places made for the files that every container is given, which are nobody's change."""
    kept = [(path, kind) for path, kind in found if path not in _HOST_FILES or kind != _ADDED]
    in_etc = [any(path.startswith("/etc/") for path, _ in each) for each in (found, kept)]
    return [(path, kind) for path, kind in kept if path != "/etc" or in_etc != [True, False]]


async def export(call: Call) -> web.StreamResponse:
    """`GET /containers/{id}/export`."""
    instance = await call.door.engine.get(call.params["id"])
    chunks = call.door.engine.export(instance.id)
    return await send_chunks(call.request, chunks, content_type="application/octet-stream")


async def commit(call: Call) -> web.StreamResponse:
    """`POST /commit`."""
    engine = call.door.engine
    instance = await engine.get(call.text("container"))
    asked = config_words(instance) | {name: value for name, value in (await call.body()).items() if value}
    config: dict[str, Any] = {name: value for name, value in asked.items() if name in _CONFIG and value}
    lines = [line for text in call.request.query.getall("changes", []) for line in text.split("\n") if line.strip()]
    image = await engine.commit(
        instance.id,
        name_of(call.text("repo"), call.text("tag")),
        message=call.text("comment"),
        author=call.text("author"),
        pause=call.flag("pause", default=True),
        config=apply_changes(config, lines),
    )
    return json_response({"Id": image.id}, 201)


# What an OCI image configuration can hold of a container's Config.
_CONFIG = frozenset(
    {
        "User",
        "ExposedPorts",
        "Env",
        "Entrypoint",
        "Cmd",
        "Volumes",
        "WorkingDir",
        "Labels",
        "StopSignal",
        "Healthcheck",
        "Shell",
    }
)

ROUTES = (
    Route("HEAD", "/containers/{id}/archive", stat),
    Route("GET", "/containers/{id}/archive", get, stream=True),
    Route("PUT", "/containers/{id}/archive", put),
    Route("GET", "/containers/{id}/changes", changes),
    Route("GET", "/containers/{id}/export", export, stream=True),
    Route("POST", "/commit", commit),
)
