"""Volumes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from aiohttp import web
from msgspec import field

from insula.api.docker.containers_mounts import check_driver, volume_name
from insula.api.docker.door import Door
from insula.api.docker.events import tell
from insula.api.docker.filters import Filters, parse
from insula.api.docker.route import Call, Route
from insula.api.docker.words import Words
from insula.api.web import json_response
from insula.errors import Conflict, NotFound, Unsupported
from insula.model.pattern import compile_pattern
from insula.tasks import in_thread
from insula.volumes.contract import Volume


class VolumeWords(Words, frozen=True, kw_only=True):
    """The body of `POST /volumes/create`."""

    name: str = ""
    driver: str = ""
    driver_opts: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    cluster_volume_spec: dict[str, Any] | None = None


def volume_words(volume: Volume) -> dict[str, Any]:
    """As dockerd shows a volume."""
    return {
        "CreatedAt": volume.created,
        "Driver": volume.driver,
        "Labels": volume.labels or None,
        "Mountpoint": volume.path,
        "Name": volume.name,
        "Options": volume.options or None,
        "Scope": "local",
    }


async def users(door: Door) -> dict[str, list[str]]:
    """Volume name to the instances that have it."""
    found: dict[str, list[str]] = {}
    for each in await door.engine.list():
        for mount in each.mounts:
            if mount.volume:
                found.setdefault(mount.volume, []).append(each.id)
    return found


async def list_all(call: Call) -> web.StreamResponse:
    """`GET /volumes`."""
    filters = parse(call.text("filters"), ("dangling", "driver", "label", "label!", "name"))
    used = await users(call.door) if "dangling" in filters else {}
    chosen = choose(await call.door.engine.volumes.list(), filters, used)
    return json_response({"Volumes": [volume_words(each) for each in chosen], "Warnings": None})


def choose(volumes: Iterable[Volume], filters: Filters, used: dict[str, list[str]]) -> list[Volume]:
    """Those that pass."""
    names = [compile_pattern(text) for text in filters.get("name")]
    return [
        each
        for each in volumes
        if filters.labels(each.labels)
        and filters.any("driver", lambda value, each=each: value == each.driver)  # type: ignore[misc]
        and (not names or any(name.search(each.name) for name in names))
        and ("dangling" not in filters or filters.flag("dangling") == (each.name not in used))
    ]


async def inspect(call: Call) -> web.StreamResponse:
    """`GET /volumes/{name}`."""
    return json_response(volume_words(await _get(call)))


async def _get(call: Call) -> Volume:
    name = call.params["name"]
    try:
        return await call.door.engine.volumes.get(name)
    except NotFound as fault:
        raise NotFound(f"get {name}: no such volume", kind="volume", name=name) from fault


async def create(call: Call) -> web.StreamResponse:
    """`POST /volumes/create`; one of that name is returned as it is."""
    words = await call.read(VolumeWords)
    if words.cluster_volume_spec:
        raise Unsupported(
            "cluster volumes need swarm, which is not there; the Kubernetes API has PersistentVolumeClaims",
            field="ClusterVolumeSpec",
        )
    check_driver(words.driver, words.name)
    if words.name:
        volume_name(words.name)
    volumes = call.door.engine.volumes
    volume = await volumes.create(words.name, labels=words.labels, options=words.driver_opts)
    tell(call.door, "volume", "create", volume.name, driver=volume.driver)
    return json_response(volume_words(volume), 201)


async def remove(call: Call) -> web.StreamResponse:
    """`DELETE /volumes/{name}`; with `force` a missing one is fine."""
    try:
        volume = await _get(call)
    except NotFound:
        if call.flag("force"):
            return web.Response(status=204)
        raise
    ids = (await users(call.door)).get(volume.name)
    if ids:
        raise Conflict(f"remove {volume.name}: volume is in use - [{', '.join(ids)}]", kind="volume", name=volume.name)
    await call.door.engine.volumes.remove(volume.name)
    tell(call.door, "volume", "destroy", volume.name, driver=volume.driver)
    return web.Response(status=204)


async def prune(call: Call) -> web.StreamResponse:
    """`POST /volumes/prune`: anonymous ones that nothing uses; with `all` named ones too."""
    filters = parse(
        call.text("filters"), ("all", "label", "label!") if call.version >= (1, 42) else ("label", "label!")
    )
    named = filters.flag("all") or call.version < (1, 42)
    used = await users(call.door)
    removed, freed = [], 0
    for volume in await call.door.engine.volumes.list():
        if volume.name in used or not (named or volume.anonymous) or not filters.labels(volume.labels):
            continue
        size = 0 if volume.options else await in_thread(size_of, volume.path)
        try:
            await call.door.engine.volumes.remove(volume.name)
        except (NotFound, Conflict):
            continue
        removed.append(volume.name)
        freed += size
    tell(call.door, "volume", "prune", "", reclaimed=str(freed))
    return json_response({"VolumesDeleted": removed, "SpaceReclaimed": freed})


def size_of(folder: str) -> int:
    """Bytes of all files below. Blocks; call it in a thread."""
    total = 0
    for path, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(path, name)).st_size  # noqa: PTH118 - a hot loop over many files
            except OSError:
                continue
    return total


ROUTES = (
    Route("GET", "/volumes", list_all),
    Route("POST", "/volumes/create", create),
    Route("POST", "/volumes/prune", prune),
    Route("GET", "/volumes/{name}", inspect),
    Route("DELETE", "/volumes/{name}", remove),
)
