"""What the server says of itself: version, health, keys of its tokens. Not resources."""

from __future__ import annotations

import base64
import platform
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from insula.api.kube.answers import respond_value
from insula.api.kube.context import Door
from insula.errors import InsulaError
from insula.kinds.schemas import VERSION

Document = Callable[[Door, web.Request], Awaitable[web.StreamResponse]]


def version_info(insula_version: str) -> dict[str, str]:
    """As `kubectl version` reads it: the Kubernetes whose API this is, and who serves it."""
    major, minor, *_ = VERSION.removeprefix("v").split(".")
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return {
        "major": major,
        "minor": minor,
        "emulationMajor": major,
        "emulationMinor": minor,
        "minCompatibilityMajor": major,
        "minCompatibilityMinor": minor,
        "gitVersion": f"{VERSION}+insula.{insula_version}",
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": f"cpython {platform.python_version()}",
        "platform": f"linux/{machine}",
    }


async def _version(door: Door, request: web.Request) -> web.StreamResponse:
    return await respond_value(request, version_info(door.version))


async def _live(door: Door, request: web.Request) -> web.StreamResponse:
    if "verbose" in request.query:
        return web.Response(text="[+]ping ok\n[+]store ok\nlivez check passed\n")
    return web.Response(text="ok")


async def _ready(door: Door, request: web.Request) -> web.StreamResponse:
    try:
        await door.verbs.revision()
        missing = door.ready()
    except InsulaError as fault:
        missing = f"store: {fault}"
    if missing:
        return web.Response(status=503, text=f"[-]{missing}\nreadyz check failed\n")
    if "verbose" in request.query:
        return web.Response(text="[+]ping ok\n[+]store ok\n[+]rbac ok\nreadyz check passed\n")
    return web.Response(text="ok")


async def _issuer(door: Door, request: web.Request) -> web.StreamResponse:
    issuer = door.authority.tokens.issuer
    found = {
        "issuer": issuer,
        "jwks_uri": f"{issuer}/openid/v1/jwks",
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    }
    return await respond_value(request, found)


def _part(number: int) -> str:
    return base64.urlsafe_b64encode(number.to_bytes(32, "big")).decode().rstrip("=")


async def _keys(door: Door, request: web.Request) -> web.StreamResponse:
    public = door.authority.pki.signing_key.public_key().public_numbers()
    key: dict[str, Any] = {"use": "sig", "kty": "EC", "crv": "P-256", "alg": "ES256"}
    return await respond_value(request, {"keys": [key | {"x": _part(public.x), "y": _part(public.y)}]})


DOCUMENTS: dict[str, Document] = {
    "/version": _version,
    "/livez": _live,
    "/healthz": _ready,
    "/readyz": _ready,
    "/.well-known/openid-configuration": _issuer,
    "/openid/v1/jwks": _keys,
}


async def paths(request: web.Request) -> web.StreamResponse:
    """The root: which paths there are."""
    return await respond_value(request, {"paths": sorted({*DOCUMENTS, "/api", "/apis", "/openapi/v2", "/openapi/v3"})})
