"""The socket of the Docker door and connections that are taken over, without an engine."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from insula.api.docker.app import ARRIVALS, bind_unix, serve_unix
from insula.api.web import Arrivals, RawConnection, TakenOver, read_body, streaming, take_over
from insula.errors import TooLarge, Unavailable

HEAD = b"POST /take HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
ANSWER = b"HTTP/1.1 101 UPGRADED\r\n\r\n"


def test_the_socket_is_for_root_and_one_group(tmp_path: Path) -> None:
    path = tmp_path / "new" / "s"
    with bind_unix(path, "no-such-group"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert stat.S_ISSOCK(path.stat().st_mode)


def test_a_stale_socket_is_replaced_and_one_in_use_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    bind_unix(path, "").close()
    with bind_unix(path, ""):
        with pytest.raises(Unavailable, match="in use by another daemon"):
            bind_unix(path, "")
        assert path.exists()
    path.unlink()
    path.write_text("precious")
    with pytest.raises(Unavailable, match="is no socket"):
        bind_unix(path, "")
    assert path.read_text() == "precious"
    with pytest.raises(Unavailable, match="cannot listen on"):
        bind_unix(tmp_path / ("x" * 120), "")


class Echo:
    """Sends back what it gets, and counts handlers that are alive."""

    def __init__(self) -> None:
        self.alive = 0
        self.connections: list[RawConnection] = []

    async def take(self, request: web.Request) -> web.StreamResponse:
        self.alive += 1
        try:
            await request.read()
            connection = take_over(request, ANSWER)
            self.connections.append(connection)
            while data := await connection.read():
                await connection.write(data)
            await connection.write(b"end")
            connection.close()
            return TakenOver()
        finally:
            self.alive -= 1

    async def silent(self, request: web.Request) -> web.StreamResponse:
        """Takes the connection over and waits for something that never comes."""
        self.alive += 1
        try:
            take_over(request, ANSWER)
            await asyncio.Event().wait()
            raise AssertionError("unreachable")
        finally:
            self.alive -= 1

    async def size(self, request: web.Request) -> web.StreamResponse:
        try:
            return web.Response(text=str(len(await read_body(request, 1000))))
        except TooLarge:
            return web.Response(status=413)

    async def broken(self, request: web.Request) -> web.StreamResponse:
        with contextlib.suppress(ValueError):
            async with streaming(request, content_type="text/plain") as response:
                await response.write(b"half")
                raise ValueError
        return TakenOver()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[Echo, Path]]:
    echo, app = Echo(), web.Application()
    app[ARRIVALS] = Arrivals()
    for name in ("take", "silent", "size", "broken"):
        app.router.add_post(f"/{name}", getattr(echo, name))
    door = await serve_unix(app, tmp_path / "s")
    yield echo, tmp_path / "s"
    await door.close()
    app[ARRIVALS].close()
    assert not (tmp_path / "s").exists()
    assert echo.alive == 0


async def exchange(path: Path, *pieces: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(path))
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(0.01)
    writer.write_eof()
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_half_a_close_keeps_the_other_direction(served: tuple[Echo, Path]) -> None:
    _, path = served
    assert await exchange(path, HEAD, b"one", b"two") == ANSWER + b"onetwoend"


async def test_a_request_with_a_body(served: tuple[Echo, Path]) -> None:
    _, path = served
    head = HEAD.replace(b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\n")
    assert await exchange(path, head + b"{}", b"raw") == ANSWER + b"rawend"
    assert await exchange(path, head, b"{}", b"raw") == ANSWER + b"rawend"


async def test_the_older_form_without_an_upgrade(served: tuple[Echo, Path]) -> None:
    _, path = served
    assert (
        await exchange(path, b"POST /take HTTP/1.1\r\nHost: d\r\n\r\n", b"raw\x00bytes") == ANSWER + b"raw\x00bytesend"
    )


async def test_a_megabyte_comes_back(served: tuple[Echo, Path]) -> None:
    _, path = served
    data = bytes(range(256)) * 8192
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(HEAD)
    await reader.readexactly(len(ANSWER))

    async def send() -> None:
        writer.write(data)
        await writer.drain()
        writer.write_eof()

    sending = asyncio.create_task(send())
    async with asyncio.timeout(20):
        assert await reader.read() == data + b"end"
    await sending
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("half_first", [False, True])
async def test_a_client_that_leaves_ends_the_handler(served: tuple[Echo, Path], half_first: bool) -> None:
    echo, path = served
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    sock.sendall(HEAD.replace(b"take", b"silent"))
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    async with asyncio.timeout(10):
        assert await loop.sock_recv(sock, 100) == ANSWER
        if half_first:
            sock.shutdown(socket.SHUT_WR)
            await asyncio.sleep(0.1)
            assert echo.alive == 1
        sock.close()
        while echo.alive:
            await asyncio.sleep(0.01)


async def test_bodies_are_bounded(served: tuple[Echo, Path]) -> None:
    _, path = served
    head = b"POST /size HTTP/1.1\r\nHost: d\r\nConnection: close\r\n"
    assert (await exchange(path, head + b"Content-Length: 4\r\n\r\nabcd")).endswith(b"\r\n\r\n4")
    assert b" 413 " in await exchange(path, head + b"Content-Length: 5000\r\n\r\n" + b"x" * 5000)
    chunks = b"Transfer-Encoding: chunked\r\n\r\n" + (b"190\r\n" + b"x" * 400 + b"\r\n") * 5 + b"0\r\n\r\n"
    assert b" 413 " in await exchange(path, head + chunks)


async def test_a_stream_that_breaks_is_cut_not_ended(served: tuple[Echo, Path]) -> None:
    _, path = served
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"POST /broken HTTP/1.1\r\nHost: d\r\n\r\n")
    async with asyncio.timeout(10):
        answer = await reader.read()
    assert b"0\r\n\r\n" not in answer
    writer.close()
    await writer.wait_closed()
