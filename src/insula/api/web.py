"""Small HTTP parts that every door needs: JSON through msgspec, bounded bodies, streams, and taking a connection over.

A taken-over connection (`take_over`) carries raw bytes both ways after the HTTP head, as Docker's attach and exec do. aiohttp's
own protocol closes a connection whose client has sent its end of file; a client that pipes a file into a container does
just that and still wants the output. So the transport gets a protocol of ours for the rest of its life.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import socket
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import LooseHeaders

from insula.errors import DeadlineExceeded, Invalid, TooLarge

BODY_LIMIT_BYTES = 10 * 1024 * 1024
HEAD_S = 30.0  # from the connection to the end of the first request's head
BODY_S = 60.0  # for a body that is kept as a whole
SILENCE_S = 600.0  # in the middle of an upload
MOST_SILENT = 2048  # connections without a request
PAUSE_AT_BYTES = 1024 * 1024
JSON = "application/json"

encode = msgspec.json.Encoder().encode


def json_response(value: Any, status: int = 200, headers: LooseHeaders | None = None) -> web.Response:
    """A whole answer, encoded once, with its length."""
    return web.Response(body=encode(value) + b"\n", status=status, headers=headers, content_type=JSON)


async def read_body(request: web.BaseRequest, limit: int = BODY_LIMIT_BYTES) -> bytes:
    """The whole body. Raises TooLarge before more than `limit` bytes were kept, DeadlineExceeded after `BODY_S` seconds."""
    if (request.content_length or 0) > limit:
        raise TooLarge(f"the request body of {request.content_length} bytes is over the limit of {limit} bytes")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > limit:
                    raise TooLarge(f"the request body is over the limit of {limit} bytes")
    except TimeoutError:
        raise DeadlineExceeded(f"the request body did not come to its end within {BODY_S:g} s") from None
    return bytes(body)


async def body_chunks(request: web.BaseRequest) -> AsyncGenerator[bytes, None]:
    """An upload as it arrives; its size is bounded by whoever consumes it. Raises DeadlineExceeded when nothing comes for
    `SILENCE_S` seconds."""
    content = request.content
    while True:
        try:
            async with asyncio.timeout(SILENCE_S):
                chunk = await content.readany()
        except TimeoutError:
            raise DeadlineExceeded(f"the upload stopped: nothing came for {SILENCE_S:g} s") from None
        if not chunk:
            return
        yield chunk


class Arrivals:
    """Connections from which no request has come yet. They have `HEAD_S` seconds for its head, for the HTTP server itself knows
    a limit only between requests; and of very many the oldest is closed for a new one. `server` makes the protocols."""

    def __init__(self) -> None:
        self.server: Callable[[], asyncio.Protocol] | None = None
        self._waiting: dict[object, asyncio.TimerHandle] = {}

    def accept(self) -> asyncio.Protocol:
        """The protocol of a new connection: the factory to listen with."""
        if len(self._waiting) >= MOST_SILENT:
            self._late(next(iter(self._waiting)))
        assert self.server is not None
        protocol = self.server()
        self._waiting[protocol] = asyncio.get_running_loop().call_later(HEAD_S, self._late, protocol)
        return protocol

    def arrived(self, protocol: object) -> None:
        """A request has come: the connection is one of the ordinary ones."""
        if timer := self._waiting.pop(protocol, None):
            timer.cancel()

    def _late(self, protocol: object) -> None:
        self.arrived(protocol)
        transport = getattr(protocol, "transport", None)
        if transport is not None:
            transport.abort()

    def close(self) -> None:
        """Nobody is waited for any longer."""
        for timer in self._waiting.values():
            timer.cancel()
        self._waiting.clear()


def decode_json(body: bytes) -> Any:
    """Any JSON value. Raises Invalid, also for nesting that is deeper than a parser can follow."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as fault:
        raise Invalid(f"invalid JSON: {fault}") from fault


@contextlib.asynccontextmanager
async def streaming(
    request: web.BaseRequest,
    *,
    status: int = 200,
    content_type: str,
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[web.StreamResponse]:
    """A response of unknown length whose head goes out at once. After an error in the middle the connection is cut, so that
    the client does not take the part for the whole."""
    response = web.StreamResponse(status=status, headers=headers)
    response.content_type = content_type
    await response.prepare(request)
    try:
        yield response
        await response.write_eof()
    except ConnectionError:
        pass
    except BaseException:
        if request.transport is not None:
            request.transport.abort()
        raise


async def send_chunks(
    request: web.BaseRequest,
    chunks: AsyncIterator[bytes],
    *,
    content_type: str,
    headers: Mapping[str, str] | None = None,
) -> web.StreamResponse:
    """Send an asynchronous generator's bytes. What it raises before the first of them becomes an ordinary error answer."""
    async with contextlib.aclosing(chunks) as source:  # type: ignore[type-var]  # every source is a generator
        first = await anext(source, b"")
        async with streaming(request, content_type=content_type, headers=headers) as response:
            await response.write(first)
            async for chunk in source:
                await response.write(chunk)
    return response


class _NoTraces(logging.Filter):
    """What a client sends that is no HTTP is answered with 400; it is no error of ours and needs no stack trace."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Drop the record of a broken request."""
        fault = record.exc_info[1] if record.exc_info else None
        return not isinstance(fault, HttpProcessingError | ConnectionError)


def server_logger() -> logging.Logger:
    """The logger to give to an aiohttp runner (`logger=`)."""
    logger = logging.getLogger("insula.http")
    if not any(isinstance(each, _NoTraces) for each in logger.filters):
        logger.addFilter(_NoTraces())
    return logger


class TakenOver(web.StreamResponse):
    """What a handler returns after it took the connection over: nothing is left to be sent."""

    def __init__(self) -> None:
        super().__init__(status=101)
        self.force_close()

    async def prepare(self, request: web.BaseRequest) -> None:
        """The head went out long ago."""
        return

    async def write_eof(self, data: bytes = b"") -> None:
        """Likewise the body."""
        return


class RawConnection(asyncio.Protocol):
    """A connection after `take_over`. One task may read and one may write at a time.

    `read` answers b"" after the client's end of file or a lost connection; `lost` tells them apart."""

    def __init__(self, transport: asyncio.Transport, previous: asyncio.BaseProtocol) -> None:
        self._transport = transport
        self._previous = previous
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._readable: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._paused = False
        self._hangup: select.epoll | None = None
        self.lost = False

    # called by the transport

    def data_received(self, data: bytes) -> None:
        """Keep it; stop the transport when the reader is slow."""
        if not data:
            return
        self._chunks.append(bytes(data))
        self._size += len(data)
        if self._size >= PAUSE_AT_BYTES and not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        """The client will send no more; True keeps the other direction open, which TLS cannot do."""
        self._ended = True
        self._wake()
        self._watch_hangup()
        return self._transport.get_extra_info("sslcontext") is None

    def _watch_hangup(self) -> None:
        """Nothing is read after an end of file, so the loop would not see a client leave for good until the next write. On a
        Unix socket the kernel tells the two apart: a closed peer is EPOLLHUP, half a close is not (unix(7), epoll_ctl(2))."""
        sock = self._transport.get_extra_info("socket")
        if self.lost or self._hangup is not None or sock is None or sock.family != socket.AF_UNIX:
            return
        self._hangup = select.epoll()
        self._hangup.register(sock.fileno(), 0)  # hang-ups and errors are always told
        asyncio.get_running_loop().add_reader(self._hangup.fileno(), self._transport.abort)

    def _forget_hangup(self) -> None:
        if self._hangup is not None:
            asyncio.get_running_loop().remove_reader(self._hangup.fileno())
            self._hangup.close()
            self._hangup = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake everybody, and let aiohttp forget the connection (it cancels the handler)."""
        self.lost = self._ended = True
        self._forget_hangup()
        self._wake()
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._previous.connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads slowly."""
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """It has caught up."""
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def _wake(self) -> None:
        if self._readable is not None and not self._readable.done():
            self._readable.set_result(None)

    # called by the handler

    async def read(self) -> bytes:
        """The next bytes; b"" at the end."""
        while not self._chunks and not self._ended:
            self._readable = asyncio.get_running_loop().create_future()
            try:
                await self._readable
            finally:
                self._readable = None
        if not self._chunks:
            return b""
        data = self._chunks.popleft() if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._size = 0
        if self._paused:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()
        return data

    async def write(self, data: bytes) -> None:
        """Send; waits while the client is slow. Raises ConnectionResetError when it is gone."""
        if self.lost or self._transport.is_closing():
            raise ConnectionResetError("the client has left")
        self._transport.write(data)
        if self._writable is not None:
            await self._writable
            if self.lost:
                raise ConnectionResetError("the client has left")

    def close(self) -> None:
        """Send what is left and close. Repeatable."""
        self._forget_hangup()
        self._transport.close()


def take_over(request: web.BaseRequest, head: bytes) -> RawConnection:
    """Answer with `head` (a status line and headers, with the empty line) and own the connection from now on. The body of the
    request must have been read. What a client sent behind its request before it saw this answer is not seen (RFC 9110, 7.8: it
    must wait; the parser drops it). Raises ConnectionResetError when the client is gone already."""
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the client has left")
    connection = RawConnection(transport, request.protocol)
    transport.set_protocol(connection)
    transport.resume_reading()
    transport.write(head)
    return connection
