"""The command line as a client of Insula's own doors: the same requests that docker, kubectl and virtctl would send."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from insula.cli import daemon
from insula.cli.paths import Paths
from insula.errors import (
    AlreadyExists,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    InsulaError,
    Invalid,
    NotFound,
    Unavailable,
    Unsupported,
)

_FAULTS: dict[int, type[InsulaError]] = {
    400: Invalid,
    403: Forbidden,
    404: NotFound,
    405: Unsupported,
    409: Conflict,
    422: Invalid,
    501: Unsupported,
    503: Unavailable,
    504: DeadlineExceeded,
}


class Door:
    """One door: JSON requests and byte streams."""

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self.session = session
        self.base = base

    async def call(self, method: str, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None) -> Any:
        """Send a request; the decoded answer, or None for an empty one. Raises the door's fault."""
        data = None if body is None else msgspec.json.encode(body)
        sent = {"Content-Type": "application/json", **(headers or {})}
        async with self.session.request(method, self.base + path, data=data, headers=sent) as answer:
            raw = await answer.read()
            if answer.status >= 400:
                raise _fault(answer.status, raw)
            return msgspec.json.decode(raw) if raw.strip() else None

    async def lines(
        self, method: str, path: str, data: Any = None, content_type: str = ""
    ) -> AsyncIterator[dict[str, Any]]:
        """Send a request whose answer is a stream of JSON lines. Raises an `error` line as a fault."""
        headers = {"Content-Type": content_type} if content_type else {}
        async with self.session.request(method, self.base + path, data=data, headers=headers) as answer:
            if answer.status >= 400:
                raise _fault(answer.status, await answer.read())
            async for line in answer.content:
                if line.strip():
                    found = msgspec.json.decode(line)
                    if "error" in found:
                        raise InsulaError(found["error"])
                    yield found

    @asynccontextmanager
    async def socket(self, path: str, protocol: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """A WebSocket. Raises the door's fault where it refuses to open one."""
        try:
            opened = await self.session.ws_connect(
                self.base + path, protocols=(protocol,), max_msg_size=0, timeout=aiohttp.ClientWSTimeout(ws_close=2.0)
            )
        except aiohttp.WSServerHandshakeError as fault:
            await self.call("GET", path)  # the same refusal, with its sentence
            raise Unavailable(f"the server did not open a stream: {fault.status} {fault.message}") from fault
        async with opened:
            yield opened

    async def until(
        self, collection: str, name: str, happened: Callable[[dict[str, Any] | None], bool], deadline_s: float
    ) -> None:
        """Watch one object of a Kubernetes collection until `happened` says yes to it (None: it is not there). Raises
        DeadlineExceeded."""
        try:
            async with asyncio.timeout(deadline_s):
                while not await self._watched(collection, name, happened):
                    pass  # the server ended the watch, as it may at any time
        except TimeoutError:
            raise DeadlineExceeded(f"{name} did not get there within {deadline_s:.0f} s") from None

    async def _watched(self, collection: str, name: str, happened: Callable[[dict[str, Any] | None], bool]) -> bool:
        query = f"fieldSelector=metadata.name%3D{name}"
        found = await self.call("GET", f"{collection}?{query}")
        if happened(found["items"][0] if found["items"] else None):
            return True
        revision = found["metadata"]["resourceVersion"]
        async for event in self.lines("GET", f"{collection}?{query}&watch=true&resourceVersion={revision}"):
            if event["type"] == "ERROR":
                return False
            if event["type"] != "BOOKMARK" and happened(None if event["type"] == "DELETED" else event["object"]):
                return True
        return False


def _fault(status: int, raw: bytes) -> InsulaError:
    try:
        found = msgspec.json.decode(raw)
        message = found.get("message") or raw.decode(errors="replace")
    except (msgspec.DecodeError, AttributeError):
        found, message = {}, raw.decode(errors="replace")[:500] or f"the server answered {status}"
    if status == 409 and found.get("reason") == "AlreadyExists":
        return AlreadyExists(message)
    return _FAULTS.get(status, InsulaError)(message)


@asynccontextmanager
async def docker(paths: Paths) -> AsyncIterator[Door]:
    """The Docker door, over its socket."""
    daemon.need_running(paths)
    timeout = aiohttp.ClientTimeout(total=None, connect=5)
    connector = aiohttp.UnixConnector(str(paths.docker_socket))
    with _reachable(f"the Docker door at {paths.docker_socket}"):
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=1 << 20) as session:
            yield Door(session, "http://docker")


@asynccontextmanager
async def kubernetes(paths: Paths) -> AsyncIterator[Door]:
    """The Kubernetes door, as the administrator. Raises Forbidden for somebody who may not read those credentials."""
    serving = daemon.need_running(paths)
    try:
        context = await asyncio.to_thread(_tls, paths)
    except PermissionError as fault:
        raise Forbidden(
            f"the administrator's credentials in {paths.pki} are readable by root only", hint="try again with sudo"
        ) from fault
    timeout = aiohttp.ClientTimeout(total=None, connect=5)
    with _reachable(f"the Kubernetes API at {serving.api}"):
        connector = aiohttp.TCPConnector(ssl=context)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=1 << 20) as session:
            yield Door(session, serving.api)


@contextlib.contextmanager
def _reachable(door: str) -> Iterator[None]:
    """Turn what the HTTP client says of a broken connection into a sentence."""
    try:
        yield
    except aiohttp.ClientConnectorError as fault:
        if isinstance(fault.os_error, PermissionError):
            raise Forbidden(
                f"{door} is for root and its group only", hint="try again with sudo, or join the group insula"
            ) from fault
        raise Unavailable(f"{door} does not answer: {fault.os_error.strerror or fault.os_error}") from fault
    except aiohttp.ClientError as fault:
        raise Unavailable(f"{door} broke the connection off: {fault or type(fault).__name__}") from fault


def _tls(paths: Paths) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(paths.pki / "ca.crt"))
    context.load_cert_chain(paths.pki / "admin.crt", paths.pki / "admin.key")
    return context
