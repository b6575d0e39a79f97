"""What a registry asks for before it answers: `WWW-Authenticate`, bearer tokens, basic authentication.

The challenge is RFC 9110 section 11.6.1; the token exchange is the Docker token and OAuth2 specification of the
distribution project.
"""

from __future__ import annotations

import base64
import re
from typing import Any

import aiohttp
import msgspec
from msgspec import Struct, field
from yarl import URL

from insula.errors import Unauthorized, Unavailable
from insula.images.contract import Auth

_CLIENT = "insula"
_PARAMETER = re.compile(r'\s*,?\s*([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


class Challenge(Struct, frozen=True, kw_only=True):
    """One challenge: its scheme in lower case and its parameters."""

    scheme: str
    parameters: dict[str, str] = field(default_factory=dict)


def parse_challenges(header: str) -> list[Challenge]:
    """Read a `WWW-Authenticate` header; several challenges may share it."""
    found: list[Challenge] = []
    rest = header
    while match := re.match(r"\s*,?\s*([A-Za-z][A-Za-z0-9-]*)(?:\s+|$)", rest):
        scheme, rest = match[1].lower(), rest[match.end() :]
        parameters = {}
        while parameter := _PARAMETER.match(rest):
            value = parameter[2] if parameter[2] is not None else parameter[3]
            parameters[parameter[1].lower()] = re.sub(r"\\(.)", r"\1", value)
            rest = rest[parameter.end() :]
        found.append(Challenge(scheme=scheme, parameters=parameters))
    return found


def basic(auth: Auth) -> str:
    """The header of basic authentication."""
    return "Basic " + base64.b64encode(f"{auth.username}:{auth.password}".encode()).decode()


class _Token(Struct, frozen=True):
    token: str = ""
    access_token: str = ""
    refresh_token: str = ""


class Granted(Struct, frozen=True, kw_only=True):
    """The `Authorization` header that answers a challenge, and the identity token that may stand for the password later."""

    header: str
    identity_token: str = ""


async def authorize(
    session: aiohttp.ClientSession,
    challenges: list[Challenge],
    auth: Auth,
    scope: str,
    *,
    insecure: bool,
    offline: bool = False,
) -> Granted:
    """Answer a challenge. `offline` asks for an identity token too. Raises Unauthorized, Unavailable."""
    by_scheme = {challenge.scheme: challenge for challenge in challenges}
    if bearer := by_scheme.get("bearer"):
        if auth.registry_token:
            return Granted(header=f"Bearer {auth.registry_token}")
        token = await _fetch_token(session, bearer, auth, scope, insecure, offline)
        return Granted(header=f"Bearer {token.token or token.access_token}", identity_token=token.refresh_token)
    if "basic" in by_scheme and auth.username:
        return Granted(header=basic(auth))
    raise Unauthorized(
        "no basic auth credentials" if "basic" in by_scheme else "the registry asks for an unknown login"
    )


async def _fetch_token(
    session: aiohttp.ClientSession, challenge: Challenge, auth: Auth, scope: str, insecure: bool, offline: bool
) -> _Token:
    realm = challenge.parameters.get("realm", "")
    try:
        url = URL(realm)
    except ValueError:
        url = URL()
    if url.scheme not in ("https", "http") or not url.host:
        raise Unavailable(f"the registry's login service {realm!r} is not a URL")
    has_secret = bool(auth.username or auth.identity_token)
    if url.scheme == "http" and has_secret and not insecure:
        raise Unavailable(f"the registry's login service {realm} is not encrypted: no password is sent there")
    service = challenge.parameters.get("service", "")
    wanted = challenge.parameters.get("scope") or scope
    try:
        return await _exchange(session, url, auth, service, wanted, offline)
    except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError) as error:
        raise Unavailable(f"the registry's login service {url.host} does not answer: {error}") from None


async def _exchange(
    session: aiohttp.ClientSession, url: URL, auth: Auth, service: str, scope: str, offline: bool
) -> _Token:
    if auth.identity_token:
        form = {"grant_type": "refresh_token", "refresh_token": auth.identity_token, "service": service}
        form |= {"scope": scope, "client_id": _CLIENT}
        request: Any = session.post(url, data=form, allow_redirects=False)
    else:
        query = [("service", service), ("client_id", _CLIENT), *(("scope", each) for each in scope.split())]
        headers = {}
        if auth.username:
            query.append(("account", auth.username))
            query.append(("offline_token", "true" if offline else ""))
            headers["Authorization"] = basic(auth)
        given = [(key, value) for key, value in query if value]
        request = session.get(url.extend_query(given), headers=headers, allow_redirects=False)
    async with request as answer:
        data = await answer.content.read(1 << 20)
        if answer.status in (401, 403):
            raise Unauthorized("unauthorized: incorrect username or password")
        if answer.status != 200:
            raise Unavailable(f"the registry's login service answered {answer.status}")
    token = msgspec.json.decode(data, type=_Token)
    if not (token.token or token.access_token):
        raise Unavailable("the registry's login service gave no token")
    return token
