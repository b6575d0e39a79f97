"""What a client asks of the Dockerfile frontend, in the words of a `BuildRequest`. Pure.

Contexts are named, not yet fetched: where a word is missing the client's folder of that name is meant.

Source: BuildKit's `frontend/dockerui/config.go`, `context.go`, `namedcontext.go`, and buildx's `build/opt.go`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from insula.api.docker.buildkit.messages import CacheEntry
from insula.engine.building.contract import BuildRequest
from insula.errors import Invalid, Unsupported
from insula.model.instance import Ulimit

UPLOAD = "http://buildkit-session/"
_TRUE, _FALSE = frozenset({"1", "t", "true"}), frozenset({"", "0", "f", "false"})
_REMOTE = re.compile(r"^(https?://|git://|ssh://|git@|github\.com/)")
_SYNTAX = re.compile(r"^(docker\.io/)?(docker/dockerfile)(-upstream)?([:@].*)?$")
_ENTITLEMENTS = frozenset({"network.host", "security.insecure"})


class Named(Struct, frozen=True, kw_only=True):
    """A context: a client's folder (`local`), an upload of its, an image, an URL, or the result of another solve."""

    local: str = ""
    upload: str = ""
    image: str = ""
    url: str = ""
    input: str = ""


class Asked(Struct, frozen=True, kw_only=True):
    """A solve. `request` has no contexts and no Dockerfile yet. `dockerfile_local` is the client's folder that has it, empty
    where it is in the context. `subrequest` is empty for a build."""

    request: BuildRequest
    context: Named
    named: Mapping[str, Named]
    dockerfile_local: str
    filename: str
    platforms_in_names: bool  # the result is asked for as a list, be it of one
    subrequest: str = ""


def read(
    frontend: str,
    options: Mapping[str, str],
    *,
    entitlements: Sequence[str] = (),
    imports: Sequence[CacheEntry] = (),
    inputs: Sequence[str] = (),
) -> Asked:
    """Raises Invalid, Unsupported."""
    _check_frontend(frontend, options)
    _refuse(options)
    platforms = tuple(filter(None, options.get("platform", "").split(",")))
    context = _main_context(options, inputs)
    forced = options.get("dockerfilekey")
    return Asked(
        request=_request(options, platforms, entitlements, imports),
        context=context,
        named={name.partition("::")[0]: _named(name, value) for name, value in _prefixed(options, "context:").items()},
        dockerfile_local=forced or ("dockerfile" if context.local and "dockerfile" not in inputs else ""),
        filename=options.get("filename") or "Dockerfile",
        platforms_in_names=_flag(options, "multi-platform", len(platforms) > 1)
        or _flag(options, "build-arg:BUILDKIT_MULTI_PLATFORM", False),
        subrequest=options.get("requestid", ""),
    )


_DIRECTIVE = re.compile(r"^#\s*([a-zA-Z]+)\s*=\s*(\S.*?)\s*$")


def check_syntax(dockerfile: str, options: Mapping[str, str]) -> None:
    """A `# syntax=` line, or BUILDKIT_SYNTAX, that asks for another frontend than Docker's own. Raises Unsupported."""
    source = options.get("build-arg:BUILDKIT_SYNTAX") or _syntax_in(dockerfile)
    if source and not _SYNTAX.match(source):
        raise Unsupported(
            f"the syntax {source!r} is not run here: only docker/dockerfile is read, by the builder itself",
            field="syntax",
        )


def _syntax_in(dockerfile: str) -> str:
    """Directives are the comments before anything else."""
    for line in dockerfile.removeprefix("\ufeff").splitlines():
        match = _DIRECTIVE.match(line)
        if match is None:
            return ""
        if match[1].lower() == "syntax":
            return match[2]
    return ""


def _check_frontend(frontend: str, options: Mapping[str, str]) -> None:
    if frontend == "dockerfile.v0":
        return
    source = options.get("source", "")
    if frontend != "gateway.v0" or not _SYNTAX.match(source):
        what = f"{frontend} {source}".strip()
        raise Unsupported(f"the frontend {what!r} is not run here: only Dockerfiles are built", field="frontend")


def _refuse(options: Mapping[str, str]) -> None:
    for name, value in _prefixed(options, "attest:").items():
        if value not in ("disabled=true", "false") and not (name == "provenance" and "inline-only=true" in value):
            raise Unsupported(f"attestations are not made here: leave out --attest type={name}", field=f"attest:{name}")
    if options.get("contextsubdir"):
        raise Unsupported("contextsubdir is not taken: name the folder behind # in the URL", field="contextsubdir")


def _request(
    options: Mapping[str, str], platforms: tuple[str, ...], entitlements: Sequence[str], imports: Sequence[CacheEntry]
) -> BuildRequest:
    for each in entitlements:
        if each not in _ENTITLEMENTS:
            raise Unsupported(
                f"the entitlement {each!r} is not known; known are {sorted(_ENTITLEMENTS)}", field="allow"
            )
    no_cache: bool | tuple[str, ...] = False
    if (asked := options.get("no-cache")) is not None:
        no_cache = tuple(asked.split(",")) if asked else True
    epoch = options.get("build-arg:SOURCE_DATE_EPOCH", "")
    return BuildRequest(
        target=options.get("target", ""),
        build_args=_prefixed(options, "build-arg:"),
        labels=_prefixed(options, "label:"),
        platforms=platforms,
        no_cache=no_cache,
        pull=options.get("image-resolve-mode") in ("pull", "force-pull"),
        cache_from=cache_images(options, imports),
        network=_network(options.get("force-network-mode", "")),
        extra_hosts=_hosts(options.get("add-hosts", "")),
        shm_size_bytes=_number(options, "shm-size", 64 * 1024 * 1024),
        ulimits=_ulimits(options.get("ulimit", "")),
        cgroup_parent=options.get("cgroup-parent", ""),
        hostname=options.get("build-arg:BUILDKIT_SANDBOX_HOSTNAME") or options.get("hostname", ""),
        entitlements=tuple(entitlements),
        source_date_epoch=_number(options, "build-arg:SOURCE_DATE_EPOCH", 0) if epoch else None,
        dialect="buildkit",
    )


def _prefixed(options: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {name.removeprefix(prefix): value for name, value in options.items() if name.startswith(prefix)}


def _flag(options: Mapping[str, str], name: str, default: bool) -> bool:
    value = options.get(name)
    if value is None or value == "":
        return default
    if value.lower() not in _TRUE | _FALSE:
        raise Invalid(f"invalid boolean value for {name}: {value}", field=name)
    return value.lower() in _TRUE


def _number(options: Mapping[str, str], name: str, default: int) -> int:
    value = options.get(name, "")
    if not value:
        return default
    if not value.isascii() or not value.isdigit():
        raise Invalid(f"invalid {name}: {value!r} is not a whole number", field=name)
    return int(value)


def _network(mode: str) -> str:
    match mode:
        case "" | "default" | "sandbox":
            return "default"
        case "host" | "none":
            return mode
    raise Invalid(f"invalid netmode {mode}", field="force-network-mode")


def _hosts(text: str) -> tuple[str, ...]:
    found = []
    for each in filter(None, text.split(",")):
        name, mark, address = each.replace("=", ":", 1).partition(":")
        if not name or not mark or not address:
            raise Invalid(f"failed to parse additional hosts: invalid host {each}", field="add-hosts")
        found.append(f"{name}:{address}")
    return tuple(found)


def _ulimits(text: str) -> tuple[Ulimit, ...]:
    found = []
    for each in filter(None, text.split(",")):
        match = re.fullmatch(r"([a-z]+)=(-?\d+)(?::(-?\d+))?", each)
        if match is None:
            raise Invalid(f"failed to parse ulimit: {each!r} is not name=soft[:hard]", field="ulimit")
        soft = int(match[2])
        found.append(Ulimit(name=match[1], soft=soft, hard=int(match[3]) if match[3] else soft))
    return tuple(found)


# --- caches ---------------------------------------------------------------------------------------------------------


def cache_images(options: Mapping[str, str], imports: Sequence[CacheEntry]) -> tuple[str, ...]:
    """The images whose steps may be reused. Raises Unsupported for other kinds of caches."""
    entries = [
        *imports,
        *(CacheEntry("registry", {"ref": ref}) for ref in filter(None, options.get("cache-from", "").split(","))),
    ]
    if text := options.get("cache-imports", ""):
        entries += _entries(text)
    found: dict[str, None] = {}
    for entry in entries:
        ref = entry.attrs.get("ref", "")
        if entry.type != "registry" or not ref:
            raise Unsupported(
                f"a cache of type {entry.type!r} is not read here: only type=registry with ref=IMAGE is",
                field="cache-from",
            )
        found[ref] = None
    return tuple(found)


def _entries(text: str) -> list[CacheEntry]:
    try:
        rows = msgspec.json.decode(text, type=list[dict[str, Any]])
        return [
            CacheEntry(str(row.get("Type", "")), {str(k): str(v) for k, v in (row.get("Attrs") or {}).items()})
            for row in rows
        ]
    except (msgspec.DecodeError, AttributeError):
        raise Invalid(f"failed to unmarshal cache-imports ({json.dumps(text[:200])})", field="cache-imports") from None


def check_exports(exports: Sequence[CacheEntry]) -> None:
    """Raises Unsupported for caches that cannot be written."""
    for entry in exports:
        if entry.type != "inline":
            raise Unsupported(
                f"a cache of type {entry.type!r} is not written here: only type=inline is", field="cache-to"
            )


# --- contexts -------------------------------------------------------------------------------------------------------


def _main_context(options: Mapping[str, str], inputs: Sequence[str]) -> Named:
    key = options.get("contextkey", "context")
    value = options.get(key, "")
    if value.startswith(UPLOAD):
        return Named(upload=value.removeprefix(UPLOAD))
    if value and _REMOTE.match(value):
        return Named(url=value)
    return Named(input="context") if "context" in inputs else Named(local=key)


def _named(name: str, value: str) -> Named:
    kind, mark, rest = value.partition(":")
    match kind if mark else "":
        case "docker-image":
            return Named(image=rest.removeprefix("//"))
        case "local":
            return Named(local=rest)
        case "input":
            return Named(input=rest)
    if _REMOTE.match(value):
        return Named(url=value)
    raise Unsupported(
        f"the build context {name}={value} is not taken here: folders, docker-image://, https:// and git are",
        field=f"context:{name}",
    )
