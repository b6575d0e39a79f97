"""The command line as a client of Insula's own doors: the same requests that docker, kubectl and virtctl would send."""

from __future__ import annotations

import asyncio
import base64
import ssl
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import yaml

from insula.cli import daemon
from insula.cli.paths import Paths
from insula.errors import AlreadyExists, Conflict, Forbidden, InsulaError, Invalid, NotFound, Unavailable

_FAULTS: dict[int, type[InsulaError]] = {400: Invalid, 403: Forbidden, 404: NotFound, 409: Conflict, 422: Invalid}
LIMIT = 1 << 26


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
    try:
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=1 << 20) as session:
            yield Door(session, "http://docker")
    except aiohttp.ClientConnectorError as fault:
        raise Unavailable(f"the Docker door at {paths.docker_socket} does not answer: {fault.strerror}") from fault


@asynccontextmanager
async def kubernetes(paths: Paths) -> AsyncIterator[Door]:
    """The Kubernetes door, as the administrator."""
    daemon.need_running(paths)
    config = yaml.safe_load(await asyncio.to_thread(paths.kubeconfig.read_text))
    server: str = config["clusters"][0]["cluster"]["server"]
    context = await asyncio.to_thread(_tls, config)
    timeout = aiohttp.ClientTimeout(total=None, connect=5)
    try:
        connector = aiohttp.TCPConnector(ssl=context)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            yield Door(session, server)
    except aiohttp.ClientConnectorError as fault:
        raise Unavailable(f"the Kubernetes API at {server} does not answer: {fault.strerror}") from fault


def _tls(config: dict[str, Any]) -> ssl.SSLContext:
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    with tempfile.TemporaryDirectory() as folder:
        pair = Path(folder) / "admin.pem"
        pair.touch(mode=0o600)
        pair.write_bytes(
            base64.b64decode(user["client-certificate-data"]) + b"\n" + base64.b64decode(user["client-key-data"])
        )
        context.load_cert_chain(pair)
    return context
