"""The node: ping, version, info, disk usage."""

from __future__ import annotations

import os
import platform
from collections import Counter
from typing import Any

from aiohttp import web

from insula.api.docker.build import cache_words
from insula.api.docker.containers_list import rows
from insula.api.docker.door import Door
from insula.api.docker.images_words import summary_words
from insula.api.docker.route import Call, Route
from insula.api.docker.versions import NEWEST, OLDEST, Version, dotted
from insula.api.docker.volumes import size_of, users, volume_words
from insula.api.web import json_response
from insula.errors import Invalid
from insula.tasks import in_thread

_NO_CACHE = {"Cache-Control": "no-cache, no-store, must-revalidate", "Pragma": "no-cache"}
_KINDS = ("build-cache", "container", "image", "volume")
_GO_ARCH = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "riscv64": "riscv64", "ppc64le": "ppc64le"}


async def ping(call: Call) -> web.StreamResponse:
    """`GET /_ping`, `HEAD /_ping`. Builder-Version 2: clients build by BuildKit's protocol."""
    headers = {**_NO_CACHE, "Builder-Version": "2", "Swarm": "inactive"}
    body = b"" if call.request.method == "HEAD" else b"OK"
    return web.Response(body=body, headers=headers, content_type="text/plain", charset="utf-8")


async def version(call: Call) -> web.StreamResponse:
    """`GET /version`."""
    info, machine = call.door.info, os.uname()
    common = {
        "Version": info.version,
        "ApiVersion": dotted(NEWEST),
        "MinAPIVersion": dotted(OLDEST),
        "GitCommit": "",
        "GoVersion": f"none (Python {platform.python_version()})",
        "Os": "linux",
        "Arch": _GO_ARCH.get(machine.machine, machine.machine),
        "KernelVersion": machine.release,
        "BuildTime": "",
    }
    details = {name: value for name, value in common.items() if name != "Version"} | {"Experimental": "false"}
    # What no version knew yet is left out of its answer: Docker Engine API version history.
    if call.version < (1, 25):
        common.pop("MinAPIVersion")
    if call.version < (1, 35):
        return json_response(common)
    components = [{"Name": "Engine", "Version": info.version, "Details": details}]
    for name, found in (await call.door.engine.probe()).items():
        components.append({"Name": name, "Version": _version_of(found), "Details": {"GitCommit": ""}})
    return json_response({"Platform": {"Name": "Insula"}, "Components": components, **common})


def _version_of(found: Any) -> str:
    """Of a driver's probe."""
    text = getattr(found, "version", "") or "unknown"
    return str(text) if getattr(found, "available", True) else f"not available ({text})"


# --- df -----------------------------------------------------------------------------------------------------------


async def disk_usage(call: Call) -> web.StreamResponse:
    """`GET /system/df`, of some kinds only with `type`."""
    asked = call.request.query.getall("type", []) if call.version >= (1, 42) else []
    for kind in asked:
        if kind not in _KINDS:
            raise Invalid(f"unknown object type: {kind}", field="type")
    wanted, door = asked or _KINDS, call.door
    instances = await door.engine.list()
    words: dict[str, Any] = {"BuilderSize": 0} if call.version < (1, 42) else {}
    if "image" in wanted:
        words |= await _images(door, call.version)
    if "container" in wanted:
        words["Containers"] = await rows(door, instances, sizes=True)
    if "volume" in wanted:
        words["Volumes"] = await _volumes(door)
    if "build-cache" in wanted:
        words["BuildCache"] = [cache_words(each) for each in await door.engine.builder.cache()]
        if call.version < (1, 42):
            words["BuilderSize"] = sum(each["Size"] for each in words["BuildCache"])
    return json_response(words)


async def _images(door: Door, version: Version) -> dict[str, Any]:
    images, usage = await door.engine.images.list(), await door.engine.images.usage()
    used = Counter(use.image for use in await door.engine.image_uses())
    rows = [
        summary_words(image, version, containers=used[image.id], shared=usage.shared_bytes.get(image.id, 0))
        for image in images
    ]
    return {"LayersSize": usage.layers_bytes, "Images": rows}


async def _volumes(door: Door) -> list[dict[str, Any]]:
    used = await users(door)
    found = []
    for volume in await door.engine.volumes.list():
        size = (
            -1 if volume.options else await in_thread(size_of, volume.path)
        )  # a server's folder is not walked through
        usage = {"Size": size, "RefCount": len(used.get(volume.name, ()))}
        found.append(volume_words(volume) | {"UsageData": usage})
    return found


ROUTES = (
    Route("GET", "/_ping", ping),
    Route("HEAD", "/_ping", ping),
    Route("GET", "/version", version),
    Route("GET", "/system/df", disk_usage),
)
