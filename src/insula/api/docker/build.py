"""`POST /build`, the classic builder, and the build cache. What is built and how is the engine's (`engine/building`)."""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from insula.api.docker.build_lines import ClassicLines
from insula.api.docker.containers_limits import resources_of, ulimits_of
from insula.api.docker.events import tell
from insula.api.docker.filters import parse
from insula.api.docker.images_transfer import AuthWords, auth_from, told
from insula.api.docker.route import Call, Route
from insula.api.docker.words import ResourceWords
from insula.api.web import body_chunks, json_response
from insula.engine.building.contract import CACHE_FILTERS, BuildRequest, CacheRecord, RemoteContext
from insula.errors import Invalid, Unsupported
from insula.images.contract import Auth
from insula.images.reference import DEFAULT_DOMAIN, parse_name

T = TypeVar("T")
_HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io")


async def build(call: Call) -> web.StreamResponse:
    """`POST /build`."""
    if call.text("version") == "2":
        raise Unsupported("BuildKit builds come through /session and /grpc: use `docker buildx build`", field="version")
    request = request_of(call)
    lines = ClassicLines(quiet=call.flag("q"))
    async with contextlib.AsyncExitStack() as undo:
        if request.context is None:
            folder = await undo.enter_async_context(call.door.engine.builder.receive(body_chunks(call.request)))
            request = msgspec.structs.replace(request, context=folder)
        return await told(call, _work(call, request, lines), lines)
    raise AssertionError("unreachable")


async def _work(call: Call, request: BuildRequest, lines: ClassicLines) -> list[dict[str, Any]]:
    result = await call.door.engine.builder.build(request, lines)
    image = result.built[0].image
    tell(call.door, "image", "build", image, name=image)
    for tag in request.tags:
        tell(call.door, "image", "tag", image, name=parse_name(tag).tagged)
    if call.flag("q"):
        return [{"stream": f"{image}\n"}]
    return [
        {"aux": {"ID": image}},
        {"stream": f"Successfully built {image.removeprefix('sha256:')[:12]}\n"},
        *({"stream": f"Successfully tagged {parse_name(tag).tagged}\n"} for tag in request.tags),
    ]


# --- what is asked ------------------------------------------------------------------------------------------------


def request_of(call: Call) -> BuildRequest:
    """The query and the headers as a request; its context is None when it is the body. Raises Invalid."""
    remote = call.text("remote")
    words = _limits(call)
    return BuildRequest(
        context=RemoteContext(url=remote) if remote else None,
        dockerfile_path=call.text("dockerfile") or "Dockerfile",
        target=call.text("target"),
        build_args=_json(call, "buildargs", dict[str, str | None]) or {},
        labels=_json(call, "labels", dict[str, str]) or {},
        tags=tuple(each for each in call.request.query.getall("t", []) if each),
        platforms=(call.text("platform"),) if call.text("platform") else (),
        no_cache=call.flag("nocache"),
        pull=call.flag("pull"),
        cache_from=tuple(_json(call, "cachefrom", list[str]) or ()),
        network=_network(call.text("networkmode")),
        extra_hosts=_hosts(call),
        shm_size_bytes=call.number("shmsize") or 64 * 1024 * 1024,
        resources=resources_of(words),
        ulimits=ulimits_of(words),
        cgroup_parent=call.text("cgroupparent"),
        squash=call.flag("squash"),
        dialect="classic",
        keep_containers=not call.flag("rm", default=True) and not call.flag("forcerm"),
        auth=_auth(call.request.headers.get("X-Registry-Config", "")),
    )


def _network(mode: str) -> str:
    return "default" if mode in ("", "bridge") else mode


def _hosts(call: Call) -> tuple[str, ...]:
    """`name:address`, repeated or with commas between them."""
    words = [word for value in call.request.query.getall("extrahosts", []) for word in value.split(",")]
    for word in words:
        if word and ":" not in word:
            raise Invalid(f'bad format for add-host: "{word}"', field="extrahosts")
    return tuple(word for word in words if word)


def _limits(call: Call) -> ResourceWords:
    limits = {
        "Memory": call.number("memory"),
        "MemorySwap": call.number("memswap"),
        "CpuShares": call.number("cpushares"),
        "CpuPeriod": call.number("cpuperiod"),
        "CpuQuota": call.number("cpuquota"),
        "CpusetCpus": call.text("cpusetcpus"),
        "CpusetMems": call.text("cpusetmems"),
        "Ulimits": _json(call, "ulimits", list[Any]),
    }
    try:
        return msgspec.convert({name: value for name, value in limits.items() if value}, ResourceWords)
    except msgspec.ValidationError as fault:
        raise Invalid(f"a limit is malformed: {fault}", field="ulimits") from None


def _json(call: Call, name: str, kind: type[T]) -> T | None:
    text = call.text(name)
    if not text:
        return None
    try:
        return msgspec.json.decode(text, type=kind | None)
    except (msgspec.DecodeError, RecursionError) as fault:
        raise Invalid(f"error reading {name}: {fault}", field=name) from None


def _auth(header: str) -> Callable[[str], Awaitable[Auth | None]] | None:
    """Credentials of several registries, by host. Raises Invalid."""
    if not header:
        return None
    try:
        data = base64.urlsafe_b64decode(header + "=" * (-len(header) % 4))
        found = msgspec.json.decode(data, type=dict[str, AuthWords] | None) or {}
    except (msgspec.DecodeError, ValueError, binascii.Error, RecursionError) as fault:
        raise Invalid("invalid X-Registry-Config header: it must be JSON in base64url") from fault

    async def look(domain: str) -> Auth | None:
        keys = _HUB_KEYS if domain == DEFAULT_DOMAIN else (domain, f"https://{domain}", f"http://{domain}")
        return next((auth_from(found[key]) for key in keys if key in found), None)

    return look


# --- the cache ----------------------------------------------------------------------------------------------------


async def prune(call: Call) -> web.StreamResponse:
    """`POST /build/prune`."""
    asked = parse(call.text("filters"), CACHE_FILTERS)
    filters = {name: asked.get(name) for name in CACHE_FILTERS if name in asked}
    keep = call.number("reserved-space") or call.number("keep-storage") or 0
    gone, freed = await call.door.engine.builder.prune(all=call.flag("all"), keep_bytes=keep, filters=filters)
    tell(call.door, "builder", "prune", "", reclaimed=str(freed))
    return json_response({"CachesDeleted": list(gone) or None, "SpaceReclaimed": freed})


def cache_words(record: CacheRecord) -> dict[str, Any]:
    """One row of `BuildCache` in `GET /system/df`."""
    return {
        "ID": record.id,
        "Parent": record.parent,
        "Parents": [record.parent] if record.parent else None,
        "Type": record.kind,
        "Description": record.description,
        "InUse": record.in_use,
        "Shared": record.shared,
        "Size": record.size_bytes,
        "CreatedAt": record.created,
        "LastUsedAt": record.last_used,
        "UsageCount": record.uses,
    }


ROUTES = (
    Route("POST", "/build", build, stream=True),
    Route("POST", "/build/prune", prune),
)
