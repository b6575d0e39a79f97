"""The gRPC health check against a server that really speaks HTTP/2."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded

from insula.agent import grpcprobe

Headers = list[tuple[str, str]]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK: Headers = [(":status", "200"), ("content-type", "application/grpc")]


def health(states: dict[str, int], seen: list[tuple[str, bytes]]) -> Serve:
    """A server of grpc.health.v1.Health that knows these services."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        wire.initiate_connection()
        path, body = "", b""
        try:
            while data := await reader.read(65536):
                for event in wire.receive_data(data):
                    match event:
                        case RequestReceived():
                            path = str(dict(event.headers or ())[":path"])
                        case DataReceived():
                            body += event.data or b""
                        case StreamEnded():
                            seen.append((path, body))
                            _reply(wire, event.stream_id or 1, states.get(body[7:].decode()))
                writer.write(wire.data_to_send())
                await writer.drain()
        finally:
            writer.close()

    return serve


def _reply(wire: H2Connection, stream: int, state: int | None) -> None:
    if state is None:
        wire.send_headers(stream, [*OK, ("grpc-status", "5"), ("grpc-message", "unknown service")], end_stream=True)
        return
    message = b"\x08" + bytes([state]) if state else b""
    wire.send_headers(stream, OK)
    wire.send_data(stream, b"\x00" + len(message).to_bytes(4, "big") + message)
    wire.send_headers(stream, [("grpc-status", "0"), ("grpc-message", "")], end_stream=True)


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[int]:
    idle = asyncio.Event()
    idle.set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        idle.clear()
        try:
            await serve(reader, writer)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            idle.set()

    server = await asyncio.start_server(one, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        await idle.wait()


@pytest.mark.parametrize(
    ("service", "why"),
    [
        ("", None),
        ("shop.Cart", None),
        ("down", "service unhealthy (responded with NOT_SERVING)"),
        ("new", "service unhealthy (responded with UNKNOWN)"),
        ("other", 'the grpc server does not know the service "other"'),
    ],
)
async def test_a_service_is_healthy_when_it_is_serving(service: str, why: str | None) -> None:
    seen: list[tuple[str, bytes]] = []
    async with serving(health({"": 1, "shop.Cart": 1, "down": 2, "new": 0}, seen)) as port:
        assert await grpcprobe.check("127.0.0.1", port, service) == why
    name = service.encode()
    message = b"\x0a" + bytes([len(name)]) + name if name else b""
    assert seen == [("/grpc.health.v1.Health/Check", b"\x00" + len(message).to_bytes(4, "big") + message)]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "grpc probe failed"),
        (b"\x00\x00\x00\x00\x00\x00\x00\x00\x00", "does not speak HTTP/2"),
        (b"", "closed the connection"),
        (b"\x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "broke the call off"),
    ],
)
async def test_other_servers_fail(answer: bytes, why: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with serving(serve) as port:
        assert why in (await grpcprobe.check("127.0.0.1", port, "") or "")


async def test_nothing_there_is_an_error() -> None:
    async with serving(health({}, [])) as port:
        pass
    with pytest.raises(OSError):
        await grpcprobe.check("127.0.0.1", port, "")


@pytest.mark.parametrize(
    ("headers", "body", "why"),
    [
        ({":status": "404"}, b"", "HTTP status 404"),
        ({":status": "200", "grpc-status": "12"}, b"", "does not implement the grpc health protocol"),
        ({":status": "200", "grpc-status": "14", "grpc-message": "busy"}, b"", "status 14 busy"),
        ({":status": "200"}, b"", "status none"),
        ({":status": "200", "grpc-status": "0"}, b"\x00\x00\x00\x00\x02\x08\x01", None),
        ({":status": "200", "grpc-status": "0"}, b"\xff", "UNKNOWN"),
    ],
)
def test_verdicts(headers: dict[str, str], body: bytes, why: str | None) -> None:
    found = grpcprobe.verdict(grpcprobe.Answer(headers, bytearray(body)), "s")
    assert found is None if why is None else why in (found or "")
