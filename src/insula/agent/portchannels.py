"""Port-forwarding in the older form, which the Python client and web consoles speak: channels of a WebSocket.

The ports are asked for in the query; port i of them has channel 2i for data and 2i+1 for errors. Each channel begins with its
port, two bytes, the low one first. There is one connection for each port, and no way to say that one direction has ended: when
every connection is over, the WebSocket is closed.
"""

from __future__ import annotations

import asyncio
import contextlib

from aiohttp import WSMsgType, web

from insula.agent.portforward import CHUNK, Dial
from insula.errors import Invalid
from insula.tasks import Tasks

PROTOCOL = "v4.channel.k8s.io"
_PORTS = 64
_MESSAGE_LIMIT = 4 * 1024 * 1024


def ports_of(asked: list[str]) -> list[int]:
    """The ports of a query, `ports=80&ports=81` or `ports=80,81`. Raises Invalid."""
    words = [word for part in asked for word in part.split(",")]
    if not words or len(words) > _PORTS:
        raise Invalid(f"query parameter ports must name 1 to {_PORTS} ports", field="ports")
    for word in words:
        if not (word.isascii() and word.isdigit()) or not 0 < int(word) < 65536:
            raise Invalid(f'query parameter ports: "{word}" must be a number from 1 to 65535', field="ports")
    return [int(word) for word in words]


class _Port:
    """One forwarded connection. `writer` is there once the pod was reached."""

    def __init__(self, index: int, number: int) -> None:
        self.data, self.error = bytes([2 * index]), bytes([2 * index + 1])
        self.number = number
        self.open: asyncio.Future[asyncio.StreamWriter | None] = asyncio.get_running_loop().create_future()


async def serve(request: web.Request, dial: Dial) -> web.StreamResponse:
    """Carry all connections until they are over or the client leaves. Raises Invalid before the upgrade."""
    ports = [_Port(index, number) for index, number in enumerate(ports_of(request.query.getall("ports", [])))]
    line = web.WebSocketResponse(protocols=(PROTOCOL,), max_msg_size=_MESSAGE_LIMIT, compress=False, timeout=5.0)
    await line.prepare(request)
    tasks = Tasks("port-channels")
    try:
        for port in ports:
            for channel in (port.data, port.error):
                await line.send_bytes(channel + port.number.to_bytes(2, "little"))
        running = [tasks.spawn(_outward(line, port, dial), f"port-{port.number}") for port in ports]
        tasks.spawn(_close_after(line, running), "end")
        async for message in line:
            if message.type is WSMsgType.BINARY and message.data:
                await _inward(ports, message.data[0], message.data[1:])
    finally:
        await tasks.close()
    return line


async def _close_after(line: web.WebSocketResponse, running: list[asyncio.Task[None]]) -> None:
    await asyncio.wait(running)
    await line.close()


async def _inward(ports: list[_Port], channel: int, data: bytes) -> None:
    if channel % 2 or channel // 2 >= len(ports):
        return
    writer = await ports[channel // 2].open
    if writer is not None and data and not writer.is_closing():
        with contextlib.suppress(OSError):
            writer.write(data)
            await writer.drain()


async def _outward(line: web.WebSocketResponse, port: _Port, dial: Dial) -> None:
    try:
        connected = await dial(port.number)
    except OSError as fault:
        port.open.set_result(None)
        why = f"failed to connect to localhost:{port.number} inside the pod's network namespace: {fault.strerror or fault}"
        with contextlib.suppress(OSError):
            await line.send_bytes(port.error + why.encode())
        return
    reader, writer = await asyncio.open_connection(sock=connected)
    port.open.set_result(writer)
    try:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                await line.send_bytes(port.data + data)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
