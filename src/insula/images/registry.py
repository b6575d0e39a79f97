"""A client of the OCI distribution specification (Docker Registry HTTP API v2) for one repository of one registry."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar

import aiohttp
import msgspec
from msgspec import Struct
from yarl import URL

from insula.clock import Backoff
from insula.errors import Forbidden, Invalid, NotFound, TooManyRequests, Unauthorized, Unavailable
from insula.host.threads import change
from insula.images import manifests, registries, registry_auth
from insula.images.blobs import Blobs, BlobWriter
from insula.images.contract import Auth
from insula.images.reference import Reference
from insula.images.registries import Endpoint, Registries
from insula.tasks import in_thread

T = TypeVar("T")
log = logging.getLogger(__name__)

_REDIRECTS = 5
_MAX_TAGS = 100_000
_BATCH = 1 << 20
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=20, sock_read=60)
_BROKEN = (aiohttp.ClientError, asyncio.TimeoutError, ConnectionError)


class Fetched(Struct, frozen=True, kw_only=True):
    """A manifest as it came."""

    data: bytes
    media_type: str
    digest: str


class _Tags(Struct, frozen=True):
    """What `tags/list` answers."""

    tags: list[str] | None = None


class Registry:
    """One repository at one endpoint. Use as `async with Registry(reference, auth, endpoint, settings) as registry`."""

    def __init__(
        self,
        reference: Reference,
        auth: Auth | None,
        endpoint: Endpoint,
        settings: Registries,
        *,
        pushing: bool = False,
    ) -> None:
        self._reference = reference
        self._auth = auth or Auth()
        self._endpoint = endpoint
        self._settings = settings
        self._insecure = endpoint.insecure
        self._base = URL(endpoint.url)
        self._pushing = pushing
        self._authorization = ""
        self._asks_identity = False
        self._identity = ""
        self._login_lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        context = await in_thread(registries.tls_context, self._settings, self._endpoint)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context),
            timeout=_TIMEOUT,
            auto_decompress=False,
            headers={"User-Agent": "insula"},
        )
        try:
            await self._greet()
        except BaseException:
            await self._session.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def _greet(self) -> None:
        """Find out whether it speaks TLS; only an insecure one may do without."""
        fault: Exception | None = None
        schemes = ("https", "http") if self._insecure and self._base.scheme == "https" else (self._base.scheme,)
        for scheme in schemes:
            self._base = self._base.with_scheme(scheme) if scheme != self._base.scheme else self._base
            try:
                async with self._open("GET", self._base / "v2/", {}, None) as answer:
                    await answer.read()
                    return
            except _BROKEN as error:
                fault = error
        raise Unavailable(f'Get "{self._base}v2/": {_why(fault)}') from None

    def _open(self, method: str, url: URL, headers: dict[str, str], data: Any) -> Any:
        """One request, through the proxy that the settings name for it."""
        proxy = registries.proxy_for(self._settings, url)
        login: dict[str, str] = {}
        if proxy is not None and proxy.user:
            login = {
                "Proxy-Authorization": registry_auth.basic(Auth(username=proxy.user, password=proxy.password or ""))
            }
        # Through a tunnel the proxy is told when it is opened, else with each request.
        return self._session.request(
            method,
            url,
            headers=headers if url.scheme == "https" else headers | login,
            data=data,
            allow_redirects=False,
            proxy=proxy.with_user(None) if proxy is not None else None,
            proxy_headers=login if url.scheme == "https" else None,
        )

    async def check_login(self) -> str:
        """Find out whether the registry takes the credentials. Returns the identity token that its login service gave in
        exchange, empty for none. Raises Unauthorized, Unavailable."""
        self._asks_identity = True
        await self._steadily(self._knock)
        return self._identity

    async def _knock(self) -> None:
        async with self._request("GET", self._base / "v2/") as answer:
            if answer.status in (401, 403):
                raise Unauthorized(f"the registry {self._reference.domain} refused: incorrect username or password")
            await self._check(answer)

    # --- reading --------------------------------------------------------------------------------------------------

    async def _steadily(self, work: Callable[[], Awaitable[T]]) -> T:
        """Ask again where a connection broke. Raises Unavailable when it does so time and again."""
        backoff = Backoff(base_s=0.2, cap_s=5)
        for attempt in range(1, self._settings.attempts + 1):
            try:
                return await work()
            except _BROKEN as error:
                if attempt == self._settings.attempts:
                    raise Unavailable(f"the registry {self._reference.domain} broke off: {_why(error)}") from None
                await asyncio.sleep(backoff.next_s())
        raise AssertionError("unreachable")

    async def manifest(self, tag_or_digest: str) -> Fetched:
        """A manifest or index, verified. Raises NotFound, Unauthorized, Forbidden, Invalid, Unavailable."""
        return await self._steadily(lambda: self._manifest(tag_or_digest))

    async def _manifest(self, tag_or_digest: str) -> Fetched:
        headers = {"Accept": ", ".join(manifests.ACCEPTED)}
        async with self._request("GET", self._url("manifests", tag_or_digest), headers=headers) as answer:
            await self._check(answer)
            data = await _read_limited(answer, manifests.MAX_DOCUMENT_BYTES)
            found = "sha256:" + hashlib.sha256(data).hexdigest()
            promised = tag_or_digest if ":" in tag_or_digest else answer.headers.get("Docker-Content-Digest", "")
            if promised.startswith("sha256:") and promised != found:
                raise Invalid(f"the registry's manifest does not have the promised digest: {promised}, but {found}")
            return Fetched(data=data, media_type=answer.headers.get("Content-Type", ""), digest=found)

    async def tags(self) -> list[str]:
        """The repository's tags. Raises as `manifest`."""
        return await self._steadily(self._tags)

    async def _tags(self) -> list[str]:
        found: list[str] = []
        url: URL | None = self._base / "v2" / self._reference.path / "tags" / "list"
        while url is not None and len(found) < _MAX_TAGS:
            async with self._request("GET", url) as answer:
                await self._check(answer)
                data = await _read_limited(answer, manifests.MAX_DOCUMENT_BYTES)
                further = answer.links.getone("next", None)
                url = URL(str(further["url"])) if further else None
            try:
                found += msgspec.json.decode(data, type=_Tags).tags or []
            except msgspec.DecodeError as fault:
                raise Invalid(f"the registry's list of tags is malformed: {fault}") from None
        return found

    async def document(self, digest: str, size: int) -> bytes:
        """A small blob, verified. Raises Invalid, NotFound, Unavailable."""
        return await self._steadily(lambda: self._document(digest, size))

    async def _document(self, digest: str, size: int) -> bytes:
        async with self._request("GET", self._url("blobs", digest)) as answer:
            await self._check(answer)
            data = await _read_limited(answer, min(size, manifests.MAX_DOCUMENT_BYTES))
        if "sha256:" + hashlib.sha256(data).hexdigest() != digest:
            raise Invalid(f"the registry's blob {digest} has another digest")
        return data

    async def fetch(self, writer: BlobWriter, digest: str, size: int, progress: Callable[[int], None]) -> None:
        """Bring a blob in, resuming what `writer` holds already and where a connection broke. Whoever made the writer commits
        it. Raises Invalid (lies about its size), Unavailable."""
        writer.expected_bytes = size
        backoff = Backoff(base_s=0.2, cap_s=5)
        for attempt in range(1, self._settings.attempts + 1):
            try:
                if writer.size < size or not size:
                    await self._fetch_rest(writer, digest, progress)
                break
            except (*_BROKEN, Unavailable) as error:
                if attempt == self._settings.attempts:
                    raise Unavailable(f"the registry broke off while sending {digest}: {_why(error)}") from None
                log.info("a download broke off; resuming", extra={"digest": digest, "fault": str(error)})
                await asyncio.sleep(backoff.next_s())
        if writer.size != size:
            raise Invalid(f"the registry's blob {digest} has {writer.size} bytes, not the promised {size}")

    async def _fetch_rest(self, writer: BlobWriter, digest: str, progress: Callable[[int], None]) -> None:
        headers = {"Range": f"bytes={writer.size}-"} if writer.size else {}
        async with self._request("GET", self._url("blobs", digest), headers=headers) as answer:
            await self._check(answer)
            if writer.size and not answer.headers.get("Content-Range", "").startswith(f"bytes {writer.size}-"):
                await change(writer.restart)
            batch = bytearray()
            try:
                async for chunk in answer.content.iter_any():
                    batch += chunk
                    if len(batch) >= _BATCH:
                        await change(writer.write, bytes(batch))
                        batch.clear()
                        progress(writer.size)
            except _BROKEN:
                await change(writer.write, bytes(batch))  # what has come need not come again
                raise
            await change(writer.write, bytes(batch))
            progress(writer.size)

    # --- writing --------------------------------------------------------------------------------------------------

    async def has(self, digest: str) -> bool:
        """Whether the repository has a blob."""
        return await self._steadily(lambda: self._has(digest))

    async def _has(self, digest: str) -> bool:
        async with self._request("HEAD", self._url("blobs", digest)) as answer:
            if answer.status == 404:
                return False
            await self._check(answer, pushing=True)
            return True

    async def upload(self, blobs: Blobs, digest: str, *, mount_from: str, progress: Callable[[int], None]) -> bool:
        """Send a blob; False when the registry took it over from its repository `mount_from` instead.

        Raises Forbidden, Unauthorized, Unavailable.
        """
        size = await in_thread(blobs.size, digest)
        for attempt in range(1, self._settings.attempts + 1):
            try:
                location = await self._begin_upload(digest, mount_from)
                if location is not None:
                    await self._send_blob(location, blobs, digest, size, progress)
                return location is not None
            except (*_BROKEN, Unavailable) as error:
                if attempt == self._settings.attempts:
                    raise Unavailable(f"the registry broke off while taking {digest}: {error}") from None
                await asyncio.sleep(0.2 * attempt)
        raise AssertionError("unreachable")

    async def _begin_upload(self, digest: str, mount_from: str) -> str | None:
        """Where to send the blob, None when it is already mounted."""
        url = self._url("blobs", "uploads") / ""
        if mount_from:
            url = url.with_query({"mount": digest, "from": mount_from})
        async with self._request("POST", url) as answer:
            await self._check(answer, pushing=True)
            if answer.status == 201:
                return None
            location = answer.headers.get("Location", "")
            if not location:
                raise Unavailable("the registry did not say where to upload to")
            return str(answer.url.join(URL(location, encoded=True)))

    async def _send_blob(
        self, location: str, blobs: Blobs, digest: str, size: int, progress: Callable[[int], None]
    ) -> None:
        """One whole PUT: every registry knows it, and a blob is on disk, so beginning again is cheap."""

        async def body() -> AsyncIterator[bytes]:
            sent = 0
            async for chunk in blobs.stream(digest):
                yield chunk
                sent += len(chunk)
                progress(sent)

        url = URL(f"{location}{'&' if '?' in location else '?'}digest={digest}", encoded=True)
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        async with self._request("PUT", url, headers=headers, body=body) as answer:
            await self._check(answer, pushing=True)

    async def put_manifest(self, tag_or_digest: str, data: bytes, media_type: str) -> None:
        """Write a manifest whose blobs are there. Raises Forbidden, Unauthorized, Unavailable."""
        await self._steadily(lambda: self._put_manifest(tag_or_digest, data, media_type))

    async def _put_manifest(self, tag_or_digest: str, data: bytes, media_type: str) -> None:
        url = self._url("manifests", tag_or_digest)
        async with self._request("PUT", url, headers={"Content-Type": media_type}, body=lambda: data) as answer:
            await self._check(answer, pushing=True)

    # --- HTTP -----------------------------------------------------------------------------------------------------

    def _url(self, kind: str, name: str) -> URL:
        return self._base / "v2" / self._reference.path / kind / name

    @asynccontextmanager
    async def _request(
        self, method: str, url: URL, *, headers: dict[str, str] | None = None, body: Callable[[], Any] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send, log in when asked to, follow redirects of reads."""
        answer = await self._send(method, url, headers or {}, body)
        if answer.status == 401:
            challenges = [
                each
                for line in answer.headers.getall("WWW-Authenticate", [])
                for each in registry_auth.parse_challenges(line)
            ]
            answer.release()
            await self._login(challenges, "pull" if method in ("GET", "HEAD") and not self._pushing else "pull,push")
            answer = await self._send(method, url, headers or {}, body)
        try:
            yield answer
        finally:
            answer.release()

    async def _login(self, challenges: list[registry_auth.Challenge], actions: str) -> None:
        before = self._authorization
        async with self._login_lock:
            if self._authorization == before:
                scope = f"repository:{self._reference.path}:{actions}"
                granted = await registry_auth.authorize(
                    self._session,
                    challenges,
                    self._auth,
                    "" if self._asks_identity else scope,
                    insecure=self._insecure,
                    offline=self._asks_identity,
                )
                self._authorization, self._identity = granted.header, granted.identity_token

    async def _send(
        self, method: str, url: URL, headers: dict[str, str], body: Callable[[], Any] | None
    ) -> aiohttp.ClientResponse:
        for _ in range(_REDIRECTS):
            if url.scheme != "https" and not self._insecure:
                raise Unavailable(f"the registry sends us to {url.host} without encryption")
            sent = dict(headers)
            # A storage service that a registry redirects to signs its own URLs; our token is none of its business.
            if self._authorization and url.origin() == self._base.origin():
                sent["Authorization"] = self._authorization
            answer: aiohttp.ClientResponse = await self._open(method, url, sent, body() if body else None)
            if answer.status not in (301, 302, 303, 307, 308) or method not in ("GET", "HEAD"):
                return answer
            location = answer.headers.get("Location", "")
            answer.release()
            url = answer.url.join(URL(location, encoded=True))
        raise Unavailable(f"the registry redirects more than {_REDIRECTS} times")

    async def _check(self, answer: aiohttp.ClientResponse, *, pushing: bool = False) -> None:
        """Raise what an answer means, in Docker's sentences."""
        if answer.status < 300:
            return
        detail = _error_text(await _read_limited(answer, 64 * 1024)) or f"{answer.status} {answer.reason}"
        name = self._reference.name
        if answer.status == 429:
            raise TooManyRequests(
                f"toomanyrequests: {detail}", retry_after_s=_seconds(answer.headers.get("Retry-After"))
            )
        if answer.status in (401, 403):
            if pushing:
                raise Forbidden(detail if "denied" in detail else f"denied: {detail}")
            raise NotFound(
                f"pull access denied for {name}, repository does not exist or may require 'docker login': {detail}",
                kind="image",
                name=name,
            )
        if answer.status == 404:
            raise NotFound(f"manifest for {self._reference.familiar} not found: {detail}", kind="image", name=name)
        if answer.status >= 500:
            raise Unavailable(f"the registry {self._reference.domain} answered: {detail}")
        raise Invalid(f"the registry {self._reference.domain} refused: {detail}")


def _why(fault: BaseException | None) -> str:
    """A broken connection in words; a server without TLS where TLS was spoken as Go's client tells it."""
    if isinstance(fault, aiohttp.ClientSSLError) and "WRONG_VERSION_NUMBER" in str(fault).upper().replace(" ", "_"):
        return "http: server gave HTTP response to HTTPS client"
    if isinstance(fault, aiohttp.ClientConnectorDNSError):
        return f"dial tcp: lookup {fault.host}: no such host"
    if isinstance(fault, aiohttp.ClientConnectorError) and (fault.os_error.errno or 0) > 0:
        return f"dial tcp {fault.host}:{fault.port}: connect: {os.strerror(fault.os_error.errno or 0).lower()}"
    return str(fault) or type(fault).__name__


async def _read_limited(answer: aiohttp.ClientResponse, limit: int) -> bytes:
    parts, left = [], limit
    async for chunk in answer.content.iter_any():
        left -= len(chunk)
        if left < 0:
            raise Invalid(f"the registry's answer is larger than {limit} bytes")
        parts.append(chunk)
    return b"".join(parts)


def _error_text(data: bytes) -> str:
    """The first error of the specification's error body, as Docker prints it: `manifest unknown: manifest unknown`."""
    try:
        first = msgspec.json.decode(data)["errors"][0]
        return f"{str(first['code']).lower().replace('_', ' ')}: {first.get('message') or ''}".rstrip(": ")
    except (msgspec.DecodeError, KeyError, IndexError, TypeError, AttributeError):
        return ""


def _seconds(text: str | None) -> float | None:
    return float(text) if text and text.isdigit() else None
