"""Carrying one HTTP request to another server and its answer back, upgraded or not, byte for byte.

The request line and headers go on as they came (less those of the hop and the credentials), the body follows, and the answer's
bytes go back unread: its status line decides whether a 101 begins a conversation. Only when the other server cannot be
reached does this side answer, with a fault. Endpoints: `http://HOST:PORT`, or `unix:/path/of/socket`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from aiohttp import web

from insula.api.web import RawConnection, TakenOver, take_over
from insula.errors import DeadlineExceeded, Unavailable

CONNECT_TIMEOUT_S = 5.0
HEAD_TIMEOUT_S = 30.0
HEAD_LIMIT = 64 * 1024
CHUNK = 64 * 1024
_BEARER = "base64url.bearer.authorization.k8s.io."  # how browsers carry a token, which is not for the other side
_DROPPED = frozenset(
    {"authorization", "host", "connection", "keep-alive", "te", "trailer", "accept-encoding", "cookie"}
)


async def relay(
    request: web.BaseRequest, endpoint: str, path: str, *, drop_query: Iterable[str] = ()
) -> web.StreamResponse:
    """Carry the request to `path` of an endpoint. Raises Unavailable, DeadlineExceeded before anything was answered."""
    reader, writer = await _connect(endpoint)
    try:
        writer.write(_head(request, path, frozenset(drop_query)))
        await _send_body(request, writer)
        try:
            async with asyncio.timeout(HEAD_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
        except TimeoutError:
            raise DeadlineExceeded(f"no answer from {endpoint} within {HEAD_TIMEOUT_S:.0f} s") from None
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError) as fault:
            raise Unavailable(f"broken answer from {endpoint}: {fault}") from None
        client = take_over(request, head)
        await _both_ways(client, reader, writer)
    except ConnectionError:
        pass
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError, TimeoutError):
            await writer.wait_closed()
    return TakenOver()


async def _connect(endpoint: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            if endpoint.startswith("unix:"):
                return await asyncio.open_unix_connection(endpoint.removeprefix("unix:"), limit=HEAD_LIMIT)
            host, _, port = endpoint.removeprefix("http://").rstrip("/").rpartition(":")
            return await asyncio.open_connection(host.strip("[]"), int(port), limit=HEAD_LIMIT)
    except (OSError, ValueError) as fault:
        raise Unavailable(f"cannot reach {endpoint}: {fault}") from None


def _head(request: web.BaseRequest, path: str, drop_query: frozenset[str]) -> bytes:
    query = request.rel_url.raw_query_string
    if drop_query:
        query = "&".join(part for part in query.split("&") if part.partition("=")[0] not in drop_query)
    upgrade = request.headers.get("Upgrade")
    lines = [f"{request.method} {path}{'?' + query if query else ''} HTTP/1.1", "Host: localhost"]
    for name, value in request.headers.items():
        if name.lower() == "sec-websocket-protocol":
            words = (word.strip() for word in value.split(","))
            value = ", ".join(word for word in words if not word.startswith(_BEARER))
        if name.lower() not in _DROPPED:
            lines.append(f"{name}: {value}")
    lines.append("Connection: Upgrade" if upgrade else "Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


async def _send_body(request: web.BaseRequest, writer: asyncio.StreamWriter) -> None:
    chunked = request.headers.get("Transfer-Encoding", "").lower() == "chunked"
    if request.body_exists:
        async for data in request.content.iter_chunked(CHUNK):
            writer.write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
            await writer.drain()
    if chunked:
        writer.write(b"0\r\n\r\n")
    await writer.drain()


async def _both_ways(client: RawConnection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until the server has said all; the client's end alone closes only its own direction."""
    upward = asyncio.create_task(_upward(client, writer))
    try:
        while data := await reader.read(CHUNK):
            await client.write(data)
    finally:
        client.close()
        upward.cancel()
        await asyncio.wait([upward])


async def _upward(client: RawConnection, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await client.read():
            writer.write(data)
            await writer.drain()
        if client.lost:
            writer.close()
        elif writer.can_write_eof():
            writer.write_eof()
