"""What a client sent: the body, bounded, decoded from JSON, YAML or protobuf into plain values."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from insula.api.kube.errors import UnsupportedMediaType
from insula.errors import Invalid, TooLarge
from insula.tasks import in_thread

LIMIT = 3 * 1024 * 1024  # kube-apiserver's MaxRequestBodyBytes
PROTOBUF = "application/vnd.kubernetes.protobuf"
_JSON = ("application/json", "application/merge-patch+json", "application/json-patch+json")
_YAML = ("application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml")
_SLOW_BYTES = 64 * 1024  # above this YAML is read in a thread


async def read(request: web.Request) -> bytes:
    """The whole body. Raises TooLarge (413) as soon as it is known to be over the limit."""
    if (request.content_length or 0) > LIMIT:
        raise TooLarge(f"Request entity too large: limit is {LIMIT}")
    if not request.body_exists:
        return b""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.content.iter_any():
        size += len(chunk)
        if size > LIMIT:
            raise TooLarge(f"Request entity too large: limit is {LIMIT}")
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def content_type(request: web.Request) -> str:
    """The media type of the body without parameters; an absent one is JSON (kubectl scale sends none)."""
    return request.headers.get("Content-Type", "").partition(";")[0].strip().lower()


async def decode(kind: str, data: bytes) -> Any:
    """Plain values from a body of the media type `kind`. Raises Invalid (400), UnsupportedMediaType (415)."""
    if kind in ("", "application/octet-stream", *_JSON) or kind.endswith("+json"):
        return from_json(data)
    if kind in _YAML or kind.endswith("+yaml"):
        return await from_yaml(data)
    if kind == PROTOBUF:
        from insula.api.kube import protobuf

        return protobuf.decode_object(data)
    raise UnsupportedMediaType(
        f"the body of the request was in an unknown format - accepted media types include: "
        f"application/json, application/yaml, {PROTOBUF} (got {kind})"
    )


def from_json(data: bytes) -> Any:
    """Raises Invalid for what is not JSON, or nested too deeply."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as fault:
        raise Invalid(f"error decoding JSON: {fault}") from None
    except RecursionError:
        raise Invalid("error decoding JSON: exceeded max depth") from None


async def from_yaml(data: bytes) -> Any:
    """One YAML document; JSON is YAML too and takes the fast way. Raises Invalid."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    from insula.api.kube import yamlbody  # most clients never send any, and the library is slow to load

    return await in_thread(yamlbody.decode, data) if len(data) > _SLOW_BYTES else yamlbody.decode(data)
