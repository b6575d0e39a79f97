"""Answers on the wire: JSON or YAML, compressed where it pays, with warnings."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable
from typing import Any

import msgspec
from aiohttp import web

from insula.api.kube.negotiate import Form
from insula.tasks import in_thread

JSON_FORM = Form()
GZIP_FROM_BYTES = 128 * 1024  # kube-apiserver compresses answers from this size on
_SLOW_BYTES = 256 * 1024
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")  # what no header may hold
_LOOPBACK = ("127.0.0.1", "::1")

encode = msgspec.json.Encoder().encode


def warn(response: web.StreamResponse, warnings: Iterable[str]) -> None:
    """Add warnings as RFC 7234 headers; kubectl prints each once."""
    for text in dict.fromkeys(warnings):
        clean = _CONTROL.sub(" ", text.replace("\\", "\\\\").replace('"', '\\"'))
        response.headers.add("Warning", f'299 - "{clean[:4096]}"')


def wants_gzip(request: web.BaseRequest) -> bool:
    """Whether to compress: asked for, and the client is far enough that bytes cost more than cycles."""
    return "gzip" in request.headers.get("Accept-Encoding", "") and request.remote not in _LOOPBACK


async def respond(
    request: web.BaseRequest,
    body: bytes,
    *,
    status: int = 200,
    form: Form = JSON_FORM,
    warnings: Iterable[str] = (),
    content_type: str = "",
) -> web.Response:
    """A whole answer from JSON text."""
    headers = {}
    if form.yaml:
        body = await in_thread(_to_yaml, body) if len(body) > _SLOW_BYTES // 8 else _to_yaml(body)
    elif "pretty" in request.query and request.query["pretty"] not in ("false", "0") and len(body) < _SLOW_BYTES:
        body = msgspec.json.format(body, indent=2) + b"\n"
    if len(body) >= GZIP_FROM_BYTES and wants_gzip(request):
        body = await in_thread(gzip.compress, body, 1)
        headers = {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
    response = web.Response(body=body, status=status, headers=headers)
    response.headers["Content-Type"] = content_type or form.media_type
    warn(response, warnings)
    return response


def _to_yaml(body: bytes) -> bytes:
    import yaml

    dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text: str = yaml.dump(msgspec.json.decode(body), Dumper=dumper, allow_unicode=True, default_flow_style=False)
    return text.encode()


async def respond_value(request: web.BaseRequest, value: Any, **rest: Any) -> web.Response:
    """A whole answer from plain values."""
    return await respond(request, encode(value) + b"\n", **rest)
