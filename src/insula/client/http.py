"""The client of any Kubernetes API server: HTTPS with a certificate or a bearer token.

controller, scheduler, agent -> client.http -> api/kube of Insula, or an upstream kube-apiserver
"""

from __future__ import annotations

import random
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote

import aiohttp
import msgspec

from insula.client.contract import Event, Listing, PatchType
from insula.client.status import fault_of
from insula.errors import DeadlineExceeded, InsulaError, Unavailable
from insula.model.resource import Ref, Resource

_PATCH_TYPES: dict[PatchType, str] = {
    "json": "application/json-patch+json",
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",  # JSON is YAML
}
_WATCH_S = (300, 600)  # a watch is asked to end in this time, at random, so that not all are opened anew at once
_WATCH_SLACK_S = 30
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class HttpClient:
    """A `Client` over HTTP. `token` may be a function that gives the present one, for tokens that are renewed. Use `async with`
    or `close`. Every call raises Unavailable when the server cannot be reached and DeadlineExceeded after `timeout_s`."""

    def __init__(
        self,
        base_url: str,
        *,
        ssl_context: ssl.SSLContext | None = None,
        token: str | Callable[[], str] = "",
        manager: str = "insula",
        timeout_s: float = 60.0,
    ) -> None:
        self._base = base_url.rstrip("/")
        self._ssl = ssl_context
        self._token = token
        self._manager = manager
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, connect=min(10.0, timeout_s))
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Let go of the connections."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _t: type[BaseException] | None, _e: BaseException | None, _b: TracebackType | None
    ) -> None:
        await self.close()

    # --- the wire -----------------------------------------------------------------------------------------------

    def _url(self, ref: Ref, namespace: str, name: str = "", sub: str = "") -> str:
        root = f"/apis/{ref.group}/{ref.version}" if ref.group else f"/api/{ref.version}"
        steps = ["namespaces", namespace] if namespace else []
        steps += [step for step in (ref.plural, name, sub) if step]
        return f"{self._base}{root}/{'/'.join(quote(step, safe='') for step in steps)}"

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._ssl if self._ssl is not None else True, limit=0),
                auto_decompress=True,
            )
        return self._session

    def _headers(self, content_type: str = "application/json") -> dict[str, str]:
        headers = {"Accept": "application/json", "Content-Type": content_type, "User-Agent": self._manager}
        token = self._token if isinstance(self._token, str) else self._token()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        return headers

    async def _call(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> Resource:
        data = None if body is None else _encode(body)
        try:
            async with self._open().request(
                method, url, params=params, data=data, headers=self._headers(content_type), timeout=self._timeout
            ) as response:
                text = await response.read()
        except TimeoutError:
            raise DeadlineExceeded(f"the API server did not answer {method} {url} in time") from None
        except (aiohttp.ClientError, OSError) as fault:
            raise Unavailable(f"the API server at {self._base} cannot be reached: {fault}") from fault
        return _answer(text, response.status)

    # --- the verbs ----------------------------------------------------------------------------------------------

    async def get(self, ref: Ref, name: str, namespace: str = "", *, sub: str = "") -> Resource:
        """One object."""
        return await self._call("GET", self._url(ref, namespace, name, sub))

    async def list(
        self,
        ref: Ref,
        namespace: str = "",
        *,
        labels: str = "",
        fields: str = "",
        limit: int = 0,
        continue_token: str = "",
    ) -> Listing:
        """All objects, of one namespace or ("") of all."""
        asked = {
            "labelSelector": labels,
            "fieldSelector": fields,
            "limit": str(limit or ""),
            "continue": continue_token,
        }
        answer = await self._call("GET", self._url(ref, namespace), params={k: v for k, v in asked.items() if v})
        items, meta = answer.get("items") or [], answer.get("metadata") or {}
        kind = str(answer.get("kind", "")).removesuffix("List")
        for item in items:  # a kube-apiserver leaves these out of built-in kinds' items
            item.setdefault("apiVersion", ref.api_version)
            item.setdefault("kind", kind)
        return Listing(items, meta.get("resourceVersion", ""), meta.get("continue") or "")

    async def create(
        self, ref: Ref, obj: Mapping[str, Any], namespace: str = "", *, name: str = "", sub: str = ""
    ) -> Resource:
        """Make it."""
        url = self._url(ref, namespace, name if sub else "", sub)
        return await self._call("POST", url, params={"fieldManager": self._manager}, body=_typed(ref, obj, sub))

    async def update(self, ref: Ref, obj: Mapping[str, Any], namespace: str = "", *, sub: str = "") -> Resource:
        """Replace it."""
        url = self._url(ref, namespace, (obj.get("metadata") or {}).get("name", ""), sub)
        return await self._call("PUT", url, params={"fieldManager": self._manager}, body=_typed(ref, obj, sub))

    async def patch(
        self,
        ref: Ref,
        name: str,
        patch: Any,
        namespace: str = "",
        *,
        type: PatchType = "merge",
        sub: str = "",
        manager: str = "",
        force: bool = False,
    ) -> Resource:
        """Change part of it."""
        params = {"fieldManager": manager or self._manager}
        if type == "apply":
            params["force"] = "true" if force else "false"
        url = self._url(ref, namespace, name, sub)
        return await self._call("PATCH", url, params=params, body=patch, content_type=_PATCH_TYPES[type])

    async def delete(
        self,
        ref: Ref,
        name: str,
        namespace: str = "",
        *,
        grace_s: int | None = None,
        propagation: Literal["Background", "Foreground", "Orphan"] | None = None,
        uid: str = "",
    ) -> Resource:
        """Delete it, or mark it for deletion."""
        options: Resource = {"kind": "DeleteOptions", "apiVersion": "v1"}
        if grace_s is not None:
            options["gracePeriodSeconds"] = grace_s
        if propagation:
            options["propagationPolicy"] = propagation
        if uid:
            options["preconditions"] = {"uid": uid}
        return await self._call("DELETE", self._url(ref, namespace, name), body=options)

    async def watch(
        self, ref: Ref, namespace: str = "", *, labels: str = "", fields: str = "", revision: str = ""
    ) -> AsyncIterator[Event]:
        """Changes after `revision`. It ends by itself after some minutes: watch again from the last revision seen."""
        seconds = random.randint(*_WATCH_S)  # noqa: S311 - spreading load
        asked = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
            "labelSelector": labels,
            "fieldSelector": fields,
            "resourceVersion": revision,
        }
        params = {name: value for name, value in asked.items() if value}
        timeout = aiohttp.ClientTimeout(total=seconds + _WATCH_SLACK_S, connect=10)
        url = self._url(ref, namespace)
        try:
            async with self._open().get(url, params=params, headers=self._headers(), timeout=timeout) as response:
                if response.status != 200:
                    _answer(await response.read(), response.status)
                async for line in _lines(response.content):
                    yield _event(line)
        except TimeoutError:
            raise DeadlineExceeded(f"the watch of {ref.plural} was not ended by the server in time") from None
        except (aiohttp.ClientError, OSError) as fault:
            raise Unavailable(f"the watch of {ref.plural} was cut off: {fault}") from fault


def _typed(ref: Ref, obj: Mapping[str, Any], sub: str) -> Mapping[str, Any]:
    """The object with its apiVersion, which upstream servers insist on; a subresource may be of another type."""
    return obj if sub or obj.get("apiVersion") else {"apiVersion": ref.api_version, **obj}


def _answer(text: bytes, code: int) -> Resource:
    try:
        body = _decode(text) if text else {}
    except msgspec.DecodeError:
        body = None
    if code >= 400:
        raise fault_of(body, code)
    if not isinstance(body, dict):
        raise Unavailable(f"the API server answered with HTTP status {code} and something that is no object")
    return body


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length."""
    left: list[bytes] = []
    async for piece in content.iter_any():
        *whole, rest = piece.split(b"\n")
        for line in whole:
            left.append(line)
            text = b"".join(left)
            left.clear()
            if text:
                yield text
        if rest:
            left.append(rest)


def _event(line: bytes) -> Event:
    told = _decode(line)
    if told.get("type") == "ERROR":
        fault: InsulaError = fault_of(told.get("object"))
        raise fault
    return msgspec.convert(told, Event)
