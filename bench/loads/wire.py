"""The least HTTP/1.1 client that can measure a server without becoming the bottleneck: requests are bytes made beforehand, an
answer is read only as far as needed to know its status and its end (RFC 9112, sections 6 and 7)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast


class Reader:
    """Finds the ends of answers in a stream of bytes. `feed` returns (status, body bytes) of each that is complete."""

    def __init__(self, *, keep: bool = False) -> None:
        self._keep = keep
        self._begin()
        self._buffer = b""

    def _begin(self) -> None:
        self._status = 0
        self._left = 0  # body bytes still to come, or of the present chunk with its line end
        self._chunked = False
        self._size = 0
        self._last = False
        self.body: list[bytes] = []

    def feed(self, data: bytes) -> list[tuple[int, int]]:
        """Take bytes from the wire. Raises ValueError for what is no answer."""
        self._buffer = self._buffer + data if self._buffer else data
        done = []
        while self._buffer and self._step():
            if self._status and self._left == 0 and (not self._chunked or self._last):
                done.append((self._status, self._size))
                self._begin()
        return done

    def _step(self) -> bool:
        """One step forward; False when more bytes are needed."""
        if not self._status:
            return self._head()
        if self._left:
            return self._take()
        return self._chunk()

    def _head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        head, self._buffer = self._buffer[:end].lower(), self._buffer[end + 4 :]
        lines = head.split(b"\r\n")
        if not lines[0].startswith(b"http/1.1 "):
            raise ValueError(f"not an HTTP answer: {lines[0]!r}")
        self._status = int(lines[0][9:12])
        for line in lines[1:]:
            if line.startswith(b"content-length:"):
                self._left = int(line[15:])
            elif line.startswith(b"transfer-encoding:") and b"chunked" in line:
                self._chunked = True
        return True

    def _take(self) -> bool:
        part = min(len(self._buffer), self._left)
        if self._keep:
            self.body.append(self._buffer[:part])
        self._buffer = self._buffer[part:]
        self._left -= part
        self._size += part
        return True

    def _chunk(self) -> bool:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            return False
        size = int(self._buffer[:end].split(b";")[0], 16)
        if size == 0:
            if len(self._buffer) < end + 4:
                return False
            self._buffer = self._buffer[end + 4 :]
            self._last = True
        else:
            self._buffer = self._buffer[end + 2 :]
            self._left = size + 2
        return True


class Connection(asyncio.Protocol):
    """One connection: `ask` sends a request and waits for its answer; one at a time."""

    def __init__(self) -> None:
        self._reader = Reader()
        self._waiting: asyncio.Future[tuple[int, int]] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Part of asyncio.Protocol."""
        for answer in self._reader.feed(data):
            if self._waiting is not None and not self._waiting.done():
                self._waiting.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of asyncio.Protocol."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(exc or ConnectionError("the server closed the connection"))

    async def ask(self, request: bytes) -> tuple[int, int]:
        """(status, body bytes). Raises ConnectionError."""
        assert self._transport is not None
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._waiting

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()


class Stream(asyncio.Protocol):
    """One watch: calls `seen` with how many events have come, at once when they come."""

    def __init__(self, request: bytes, seen: Callable[[int], None], mark: bytes) -> None:
        self._request, self._seen, self._mark = request, seen, mark
        self._tail = b""
        self.transport: asyncio.Transport | None = None
        self.open = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of asyncio.Protocol."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Part of asyncio.Protocol."""
        if not self.open.done():
            if data.startswith(b"HTTP/1.1 200"):
                self.open.set_result(None)
            else:
                self.open.set_exception(ConnectionError(data[:300].decode(errors="replace")))
        text = self._tail + data
        if count := text.count(self._mark):
            self._seen(count)
            text = text[text.rfind(self._mark) + len(self._mark) :]
        self._tail = text[-len(self._mark) :]

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of asyncio.Protocol."""
        if not self.open.done():
            self.open.set_exception(exc or ConnectionError("the server closed the watch"))


def request(method: str, path: str, host: str, headers: dict[str, str], body: bytes = b"") -> bytes:
    """A request as bytes."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Accept: application/json"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body:
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        lines += [f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    return "\r\n".join((*lines, "", "")).encode() + body
