"""Byte streams as Docker clients speak them: frames, detach keys, and the session between a client and a process.

With a terminal the bytes are raw. Without one each chunk goes out behind an 8-byte header: the stream (1 stdout, 2 stderr),
three zeros, the length in big-endian (the "multiplexed stream" of the Docker Engine API reference). Input is always raw.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from insula.api.web import RawConnection, take_over
from insula.drivers.driver import Channel, Streams
from insula.errors import InsulaError, Invalid
from insula.tasks import finish

RAW = "application/vnd.docker.raw-stream"
MULTIPLEXED = "application/vnd.docker.multiplexed-stream"
DEFAULT_DETACH_KEYS = b"\x10\x11"  # ctrl-p, ctrl-q
_HEADER = struct.Struct(">BxxxL")
_NUMBER = {Channel.STDOUT: 1, Channel.STDERR: 2}


def frame(channel: Channel, data: bytes) -> bytes:
    """One chunk behind its header."""
    return _HEADER.pack(_NUMBER[channel], len(data)) + data


def content_type(*, tty: bool, version: tuple[int, int]) -> str:
    """Clients before 1.42 know only one name for both forms."""
    return MULTIPLEXED if not tty and version >= (1, 42) else RAW


# --- detach keys ------------------------------------------------------------------------------------------------


def parse_detach_keys(text: str) -> bytes:
    """`ctrl-p,ctrl-q` or single characters; empty means the default. Raises Invalid."""
    if not text:
        return DEFAULT_DETACH_KEYS
    return bytes(_key(word, text) for word in text.split(","))


def _key(word: str, whole: str) -> int:
    lower = word.lower()
    if len(word) == 1 and word.isascii():
        return ord(word)
    if lower.startswith("ctrl-") and len(lower) == 6 and ("a" <= lower[5] <= "z" or lower[5] in "@[\\]^_"):
        return ord(lower[5].upper()) - 64
    raise Invalid(f"Invalid detach keys ({whole}) provided: {word!r} is not a key", field="detachKeys")


class DetachKeys:
    """Watches input for the detach keys; what may be their beginning is held back until it is clear."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What to pass on, and whether the keys were complete (the rest is dropped then)."""
        if not self._held and self._keys[0] not in data:
            return data, False
        out = bytearray()
        for byte in data:
            self._held += bytes((byte,))
            while not self._keys.startswith(self._held):
                out += self._held[:1]
                self._held = self._held[1:]
            if self._held == self._keys:
                return bytes(out), True
        return bytes(out), False


# --- sessions ---------------------------------------------------------------------------------------------------


class Client(Protocol):
    """The client's end of a session."""

    lost: bool

    async def read(self) -> bytes:
        """b"" at its end of file."""
        ...

    async def write(self, data: bytes) -> None:
        """Raises ConnectionResetError when it is gone."""
        ...


@dataclass(frozen=True, kw_only=True)
class Session:
    """How a client wants to be connected. `close_stdin`: its end of file is passed on; else it ends the session."""

    tty: bool
    stdin: bool
    stdout: bool
    stderr: bool
    close_stdin: bool
    framed: bool
    detach_keys: bytes = DEFAULT_DETACH_KEYS

    def wants(self, channel: Channel) -> bool:
        """Whether output of a channel goes to the client."""
        return self.stdout if channel is Channel.STDOUT else self.stderr


async def join(client: Client, streams: Streams, session: Session) -> bool:
    """Carry bytes both ways until the process has no more output, the client detaches or is gone. The process is never
    harmed; the streams are let go of at the end. Returns whether the process's output came to its end."""
    output = asyncio.create_task(_carry_output(client, streams, session), name="docker/output")
    source = asyncio.create_task(_carry_input(client, streams, session), name="docker/input")
    try:
        await asyncio.wait((output, source), return_when=asyncio.FIRST_COMPLETED)
        if output.done() or not source.result():
            return await output
        return False
    finally:
        await finish(output)
        await finish(source)
        await streams.close()


async def _carry_output(client: Client, streams: Streams, session: Session) -> bool:
    try:
        async for channel, data in streams.read():
            if session.wants(channel):
                await client.write(frame(channel, data) if session.framed else data)
    except ConnectionError:
        return False
    return True


async def _carry_input(client: Client, streams: Streams, session: Session) -> bool:
    """Returns whether the session is over with it."""
    keys = DetachKeys(session.detach_keys) if session.tty else None
    heard = session.stdin
    while data := await client.read():
        detached = False
        if keys is not None:
            data, detached = keys.feed(data)
        if heard and data:
            heard = await _given(streams.write(data))
        if detached:
            return True
    if client.lost and not session.stdin:
        return True
    if session.stdin and session.close_stdin and not session.tty:
        await _given(streams.close_stdin())
        return client.lost
    return session.stdin or client.lost


async def _given(giving: Awaitable[None]) -> bool:
    """A process that no longer reads its input is no fault of the session; the rest of the input is dropped."""
    try:
        await giving
    except (OSError, InsulaError):
        return False
    return True


def hijack(request: web.BaseRequest, kind: str) -> RawConnection:
    """Take the connection over, with 101 for a client that asked for an upgrade and 200 for the older form."""
    if "upgrade" in request.headers.get("Connection", "").lower() and request.headers.get("Upgrade"):
        head = f"HTTP/1.1 101 UPGRADED\r\nContent-Type: {kind}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    else:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n\r\n"
    return take_over(request, head.encode())


async def over_websocket(request: web.Request, serve: Callable[[Client], Awaitable[object]]) -> web.StreamResponse:
    """The same session in binary messages of a WebSocket."""
    socket = web.WebSocketResponse(autoping=True, max_msg_size=1024 * 1024)
    if not socket.can_prepare(request):
        raise Invalid("this endpoint speaks WebSocket only: the request must ask for an upgrade to it")
    await socket.prepare(request)
    with contextlib.suppress(ConnectionError):
        await serve(_WebSocketClient(socket))
    await socket.close()
    return socket


class _WebSocketClient:
    """A WebSocket as a session's client."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self._socket = socket
        self.lost = False

    async def read(self) -> bytes:
        """Text and binary alike; a close is both end of file and loss."""
        async for message in self._socket:
            if message.data:
                return message.data if isinstance(message.data, bytes) else str(message.data).encode()
        self.lost = True
        return b""

    async def write(self, data: bytes) -> None:
        """One message."""
        await self._socket.send_bytes(data)
