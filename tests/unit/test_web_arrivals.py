"""What a connection is given before its first request, and bodies that do not end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from insula.api import web as parts
from insula.api.web import Arrivals, body_chunks, json_response, read_body
from insula.errors import DeadlineExceeded

HEAD_S = 0.3


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[str, Arrivals]]:
    """A server that tells how a body ended: `/whole` is read at once, anything else as it comes."""
    arrivals = Arrivals()

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        arrivals.arrived(request.protocol)
        try:
            if request.path == "/whole":
                return json_response(len(await read_body(request)))
            return json_response(sum([len(chunk) async for chunk in body_chunks(request)]))
        except DeadlineExceeded as fault:
            return json_response(str(fault), status=408)

    runner = web.ServerRunner(web.Server(handle, handler_cancellation=True))
    await runner.setup()
    arrivals.server = runner.server
    path = str(folder / "s")
    server = await asyncio.get_running_loop().create_unix_server(arrivals.accept, path)
    try:
        yield path, arrivals
    finally:
        server.close()
        arrivals.close()
        await runner.cleanup()


async def talk(path: str, data: bytes, *, end: bool = False) -> bytes:
    """Send, and read until the server ends the connection or says something."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(data)
        if end:
            writer.write_eof()
        return await asyncio.wait_for(reader.read(4096), 5)
    except ConnectionError:
        return b""
    finally:
        writer.close()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_S", "BODY_S", "SILENCE_S"):
        monkeypatch.setattr(parts, name, HEAD_S)


@pytest.mark.parametrize("sent", [b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\n"])
async def test_half_a_head_is_not_waited_for(tmp_path: Path, sent: bytes) -> None:
    async with serving(tmp_path) as (path, arrivals):
        began = asyncio.get_running_loop().time()
        assert await talk(path, sent) == b""
        assert HEAD_S * 0.9 < asyncio.get_running_loop().time() - began < 3
        assert not arrivals._waiting


async def test_a_head_in_drops_is_not_waited_for(tmp_path: Path) -> None:
    async with serving(tmp_path) as (path, _):
        _, writer = await asyncio.open_unix_connection(path)
        began = asyncio.get_running_loop().time()
        with pytest.raises(ConnectionError):
            while True:
                writer.write(b"X")
                await writer.drain()
                await asyncio.sleep(0.02)
        assert asyncio.get_running_loop().time() - began < 3
        writer.close()


async def test_connections_that_have_asked_stay(tmp_path: Path) -> None:
    async with serving(tmp_path) as (path, arrivals):
        reader, writer = await asyncio.open_unix_connection(path)
        for pause_s in (0, HEAD_S * 1.5):
            await asyncio.sleep(pause_s)
            writer.write(b"GET /whole HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readuntil(b"0\n")).startswith(b"HTTP/1.1 200")
            assert not arrivals._waiting
        writer.close()
        await writer.wait_closed()


async def test_of_very_many_silent_ones_the_oldest_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MOST_SILENT", 3)
    monkeypatch.setattr(parts, "HEAD_S", 60)
    async with serving(tmp_path) as (path, arrivals):
        crowd = [await asyncio.open_unix_connection(path) for _ in range(5)]
        await asyncio.sleep(0.05)
        assert len(arrivals._waiting) == 3
        assert [await reader.read() for reader, _ in crowd[:2]] == [b"", b""]
        assert b"200 OK" in await talk(path, b"GET /whole HTTP/1.1\r\nHost: x\r\n\r\n")
        for _, writer in crowd:
            writer.close()


@pytest.mark.parametrize("place", ["whole", "upload"])
@pytest.mark.parametrize("body", [b"Content-Length: 10\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"])
async def test_bodies_that_do_not_end(tmp_path: Path, place: str, body: bytes) -> None:
    async with serving(tmp_path) as (path, _):
        head = f"POST /{place} HTTP/1.1\r\nHost: x\r\n".encode()
        assert b" 408 " in await talk(path, head + body)
        whole = await talk(path, head + b"Content-Length: 3\r\n\r\nabc")
        assert whole.startswith(b"HTTP/1.1 200") and whole.endswith(b"3\n")


async def test_an_upload_may_take_long_as_long_as_it_goes_on(tmp_path: Path) -> None:
    async with serving(tmp_path) as (path, _):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
        for _ in range(10):
            await asyncio.sleep(HEAD_S / 4)
            writer.write(b"x")
        assert b" 200 " in await reader.read(4096)
        writer.close()


async def test_a_client_that_ends_before_it_asks(tmp_path: Path) -> None:
    async with serving(tmp_path) as (path, _):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
        assert await talk(path, b"", end=True) == b""
