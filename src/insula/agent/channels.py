"""Remote commands over WebSocket: channel bytes in front of each message, as Kubernetes' `v5.channel.k8s.io` defines them.

Channel 0 stdin, 1 stdout, 2 stderr, 3 the result as a Status, 4 terminal sizes, 255 (v5) says that a channel is closed. v4 is
the same without 255. The base64 forms and the older v1 are refused: their clients fall back or are long gone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import WSMsgType, web

from insula.drivers.driver import Channel, Streams
from insula.errors import InsulaError

PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
MESSAGE_LIMIT = 1024 * 1024
SIZES = msgspec.json.Decoder(dict[str, int])


def success() -> dict[str, object]:
    """The Status of a command that ended with 0."""
    return {"metadata": {}, "status": "Success"}


def exit_status(code: int) -> dict[str, object]:
    """The Status that carries an exit code."""
    if code == 0:
        return success()
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: exit status {code}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }


def failure(message: str) -> dict[str, object]:
    """The Status of a command that could not be run."""
    return {"metadata": {}, "status": "Failure", "message": message, "reason": "InternalError", "code": 500}


async def open_socket(request: web.Request) -> web.WebSocketResponse:
    """Upgrade with the best protocol that both speak. Raises HTTPBadRequest when there is none."""
    offered = [part.strip() for part in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
    if not any(name in offered for name in PROTOCOLS):
        raise web.HTTPBadRequest(
            text=f"unable to upgrade: none of {offered} is spoken here; {', '.join(PROTOCOLS)} are"
        )
    socket = web.WebSocketResponse(protocols=PROTOCOLS, max_msg_size=MESSAGE_LIMIT, compress=False, timeout=5.0)
    await socket.prepare(request)
    return socket


async def serve(
    socket: web.WebSocketResponse,
    streams: Streams,
    *,
    stdin: bool,
    resize: Callable[[int, int], Awaitable[None]],
    result: Callable[[], Awaitable[dict[str, object]]],
    closes_stdin: bool = False,
) -> None:
    """Carry a process's streams until its output ends, send its result, close. A client that leaves lets go of the streams;
    with `closes_stdin` the process, which was started for this client alone, gets an end of file then."""
    incoming = asyncio.create_task(_incoming(socket, streams, stdin=stdin, resize=resize), name="channels-in")
    outgoing = asyncio.create_task(_outgoing(socket, streams), name="channels-out")
    try:
        await asyncio.wait((incoming, outgoing), return_when=asyncio.FIRST_COMPLETED)
        if incoming.done() and not outgoing.done():
            return
        try:
            await outgoing
            status = await result()
        except InsulaError as fault:
            status = failure(fault.message)
        await socket.send_bytes(bytes([ERROR]) + msgspec.json.encode(status))
        await socket.close()
    except (ConnectionError, RuntimeError):
        return
    finally:
        for task in (incoming, outgoing):
            task.cancel()
        try:
            await asyncio.wait((incoming, outgoing))
        finally:  # a client that leaves cancels this task too, in the middle of the line above
            try:
                if closes_stdin:
                    with contextlib.suppress(ConnectionError, InsulaError):
                        await streams.close_stdin()
            finally:
                await streams.close()


async def _outgoing(socket: web.WebSocketResponse, streams: Streams) -> None:
    numbers = {Channel.STDOUT: bytes([STDOUT]), Channel.STDERR: bytes([STDERR])}
    async for channel, data in streams.read():
        await socket.send_bytes(numbers[channel] + data)


async def _incoming(
    socket: web.WebSocketResponse, streams: Streams, *, stdin: bool, resize: Callable[[int, int], Awaitable[None]]
) -> None:
    """Ends when the client leaves. Text frames carry the same as binary ones (the Python client sends them)."""
    async for message in socket:
        if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT) or not message.data:
            continue
        frame: bytes = message.data if message.type is WSMsgType.BINARY else message.data.encode()
        channel, data = frame[0], frame[1:]
        if channel == STDIN and stdin:
            with contextlib.suppress(ConnectionError, InsulaError):
                await streams.write(data)
        elif channel == CLOSE and data[:1] == bytes([STDIN]) and stdin:
            with contextlib.suppress(ConnectionError, InsulaError):
                await streams.close_stdin()
        elif channel == RESIZE:
            with contextlib.suppress(msgspec.DecodeError, KeyError):
                size = SIZES.decode(data)
                await resize(size["Width"], size["Height"])
