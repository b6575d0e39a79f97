"""Port-forwarding: pairs of SPDY streams, each pair one TCP connection into a pod's network namespace.

The bytes of the SPDY connection arrive in WebSocket messages (`SPDY/3.1+portforward.k8s.io`); `Session` sees only bytes in and a
way to send bytes out. The dialect has no flow control: a connection into the pod that does not take its bytes holds back the
whole session, for what cannot be buffered without bound must wait; one that is over takes its bytes and drops them.
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
HALF_CLOSED_S = 60.0  # how long a connection that the pod has ended on its side may go on in the other direction
Dial = Callable[[int], Awaitable[socket.socket]]
Send = Callable[[bytes], Awaitable[None]]


class Connection:
    """One forwarded connection: an error stream and a data stream of the same request id."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.error = 0
        self.data = 0
        self.task: asyncio.Task[None] | None = None
        self._inbox: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUE)
        self._over = False

    async def put(self, data: bytes | None) -> None:
        """Bytes from the client, None at their end."""
        if not self._over:
            await self._inbox.put(data)

    async def get(self) -> bytes | None:
        """The next bytes for the pod."""
        return await self._inbox.get()

    def end(self) -> None:
        """Nobody takes bytes any more: who waits to put some goes on."""
        self._over = True
        while not self._inbox.empty():
            self._inbox.get_nowait()


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
                self._reset(frame.stream)

    async def _open(self, frame: spdy.Frame) -> None:
        headers = frame.headers or {}
        kind, port = headers.get("streamtype", ""), headers.get("port", "")
        if kind not in ("error", "data") or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
            raise Invalid(f"port-forward stream of type {kind!r} for port {port!r} is not valid")
        request = headers.get("requestid", port)
        pair = self._pairs.setdefault(request, Connection(int(port)))
        self._streams[frame.stream] = pair
        if kind == "error":
            pair.error = frame.stream
        else:
            pair.data = frame.stream
        await self._send(self._encoder.reply(frame.stream))
        if pair.error and pair.data:
            self._pairs.pop(request, None)
            pair.task = self._tasks.spawn(self._serve(pair), f"port-{port}")

    async def _data(self, frame: spdy.Frame) -> None:
        pair = self._streams.get(frame.stream)
        if pair is None or frame.stream != pair.data:
            return
        if frame.data:
            await pair.put(frame.data)
        if frame.fin:
            await pair.put(None)

    def _reset(self, stream: int) -> None:
        """The client gives a connection up."""
        pair = self._streams.get(stream)
        if pair is not None and pair.task is not None:
            pair.task.cancel()

    # one connection

    async def _serve(self, pair: Connection) -> None:
        error = ""
        try:
            error = await self._forward(pair)
        finally:
            pair.end()
            await self._finish(pair, error)

    async def _forward(self, pair: Connection) -> str:
        """Carry bytes both ways until both directions have ended. Returns what went wrong, or nothing."""
        try:
            connected = await self._dial(pair.port)
        except OSError as fault:
            return f"failed to connect to localhost:{pair.port} inside the pod's network namespace: {fault.strerror or fault}"
        reader, writer = await asyncio.open_connection(sock=connected)
        inward = asyncio.create_task(_inward(pair, writer), name="forward-in")
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(CHUNK):
                    await self._send(self._encoder.data(pair.data, data))
                await self._send(self._encoder.data(pair.data, fin=True))
                await asyncio.wait((inward,), timeout=HALF_CLOSED_S)
        finally:
            inward.cancel()
            writer.close()  # before any wait: a session that ends cancels this task
            await asyncio.wait((inward,))
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        return ""

    async def _finish(self, pair: Connection, error: str) -> None:
        """The client forgets a connection when its error stream ends, so that always ends."""
        self._streams.pop(pair.data, None)
        self._streams.pop(pair.error, None)
        with contextlib.suppress(OSError):
            if error:
                await self._send(self._encoder.data(pair.data, fin=True))
            await self._send(self._encoder.data(pair.error, error.encode(), fin=True))


async def _inward(pair: Connection, writer: asyncio.StreamWriter) -> None:
    """From the client into the pod, until the client has said all or the pod takes no more."""
    with contextlib.suppress(OSError):
        while (data := await pair.get()) is not None:
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
