"""Port-forwarding: pairs of SPDY streams, each pair one TCP connection into a pod's network namespace.

The bytes of the SPDY connection arrive either in WebSocket messages (`SPDY/3.1+portforward.k8s.io`) or on a bare upgraded
connection; `Session` sees only bytes in and a way to send bytes out.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

from insula.agent import spdy
from insula.errors import Invalid
from insula.tasks import Tasks

CHUNK = 32 * 1024
QUEUE = 64
Dial = Callable[[int], Awaitable[socket.socket]]
Send = Callable[[bytes], Awaitable[None]]


class Connection:
    """One forwarded connection: an error stream and a data stream of the same request id."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.error = 0
        self.data = 0
        self.inbox: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUE)


class Session:
    """One SPDY connection. Use `feed` for received bytes; `close` ends all forwarded connections."""

    def __init__(self, send: Send, dial: Dial) -> None:
        self._send_raw = send
        self._dial = dial
        self._decoder, self._encoder = spdy.Decoder(), spdy.Encoder()
        self._lock = asyncio.Lock()
        self._pairs: dict[str, Connection] = {}
        self._streams: dict[int, Connection] = {}
        self._tasks = Tasks("port-forward")

    async def feed(self, data: bytes) -> None:
        """Bytes from the client. Raises Invalid for what is not SPDY."""
        for frame in self._decoder.feed(data):
            await self._frame(frame)

    async def close(self) -> None:
        """End every connection."""
        await self._tasks.close()

    async def _send(self, data: bytes) -> None:
        async with self._lock:
            await self._send_raw(data)

    async def _frame(self, frame: spdy.Frame) -> None:
        match frame.kind:
            case 0:
                await self._data(frame)
            case spdy.SYN_STREAM:
                await self._open(frame)
            case spdy.PING:
                await self._send(self._encoder.ping(frame.data))
            case spdy.RST_STREAM:
                await self._end(frame.stream)

    async def _open(self, frame: spdy.Frame) -> None:
        headers = frame.headers or {}
        kind, port = headers.get("streamtype", ""), headers.get("port", "")
        if kind not in ("error", "data") or not port.isdigit() or not 0 < int(port) < 65536:
            raise Invalid(f"port-forward stream of type {kind!r} for port {port!r} is not valid")
        pair = self._pairs.setdefault(headers.get("requestid", port), Connection(int(port)))
        self._streams[frame.stream] = pair
        setattr(pair, kind, frame.stream)
        await self._send(self._encoder.reply(frame.stream))
        if pair.error and pair.data:
            self._pairs.pop(headers.get("requestid", port), None)
            self._tasks.spawn(self._forward(pair), f"port-{port}")

    async def _data(self, frame: spdy.Frame) -> None:
        pair = self._streams.get(frame.stream)
        if pair is None or frame.stream != pair.data:
            return
        if frame.data:
            await pair.inbox.put(frame.data)
        if frame.fin:
            await pair.inbox.put(None)

    async def _end(self, stream: int) -> None:
        pair = self._streams.get(stream)
        if pair is not None:
            await pair.inbox.put(None)

    async def _forward(self, pair: Connection) -> None:
        try:
            connected = await self._dial(pair.port)
        except OSError as fault:
            text = f"failed to connect to localhost:{pair.port} inside the pod: {fault.strerror or fault}"
            await self._finish(pair, text.encode())
            return
        reader, writer = await asyncio.open_connection(sock=connected)
        inward = asyncio.create_task(self._inward(pair, writer), name="forward-in")
        try:
            while data := await reader.read(CHUNK):
                await self._send(self._encoder.data(pair.data, data))
        except ConnectionError:
            pass
        finally:
            inward.cancel()
            await asyncio.wait((inward,))
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        await self._finish(pair, b"")

    async def _inward(self, pair: Connection, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while (data := await pair.inbox.get()) is not None:
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
            await asyncio.Future()

    async def _finish(self, pair: Connection, error: bytes) -> None:
        self._streams.pop(pair.data, None)
        self._streams.pop(pair.error, None)
        with contextlib.suppress(ConnectionError):
            await self._send(self._encoder.data(pair.data, fin=True))
            await self._send(self._encoder.data(pair.error, error, fin=True))
