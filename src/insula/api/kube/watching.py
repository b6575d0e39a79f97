"""Watches over HTTP: one JSON object a line, flushed at once; as Tables of one row where kubectl asks for rows.

Objects go from the store's feed to the connection in one call, without a task that wakes for each event: one change of an object
that thousands watch costs little more than the thousand writes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import lru_cache

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter

from insula import clock
from insula.api.kube import options
from insula.api.kube.answers import encode
from insula.api.kube.context import Call
from insula.api.kube.errors import status_of
from insula.api.kube.negotiate import Form
from insula.api.kube.request import truth
from insula.api.kube.table import Layout, metadata_only, table
from insula.errors import InsulaError
from insula.verbs.watching import WatchStream

BUFFER_BYTES = 128 * 1024  # unsent, before a reader counts as slow
_SHARED_BYTES = 16 * 1024
STALLED_S = 60.0  # without any progress, before a slow reader is hung up on
DEFAULT_TIMEOUT_S = 45 * 60.0  # kube-apiserver ends watches after 30 to 60 minutes


async def watch(call: Call) -> web.StreamResponse:
    """Open a watch and write its events until it ends or the client leaves (which cancels this)."""
    query, asked = call.request.query, call.asked
    form = call.form()
    timeout = options.number(query, "timeoutSeconds")
    initial = query.get("sendInitialEvents")
    fields = query.get("fieldSelector", "")
    if asked.name:
        fields = f"metadata.name={asked.name}" + (f",{fields}" if fields else "")
    stream = await call.door.verbs.watch(
        call.ref,
        asked.namespace,
        labels=query.get("labelSelector", ""),
        fields=fields,
        revision=query.get("resourceVersion", ""),
        revision_match=query.get("resourceVersionMatch", ""),
        bookmarks=truth(query.get("allowWatchBookmarks")),
        initial=None if initial is None else truth(initial),
        timeout_s=float(timeout) if timeout else DEFAULT_TIMEOUT_S,
    )
    if form.shape == "object":
        return await _pour(call.request, stream)
    return await _pump(call.request, stream, _shaped(call, stream, form))


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


_shared_chunk = lru_cache(maxsize=8)(_chunk)  # an event goes to many


def _framed(data: bytes) -> bytes:
    return _shared_chunk(data) if len(data) < _SHARED_BYTES else _chunk(data)


class _Sink:
    """The connection of one watch, written to in chunks (RFC 9112, section 7.1)."""

    def __init__(self, request: web.Request, writer: AbstractStreamWriter) -> None:
        self._protocol, self._writer = request.protocol, writer
        self._transport = request.transport
        self._chunked = request.version >= HttpVersion11
        if self._transport is not None:
            self._transport.set_write_buffer_limits(high=BUFFER_BYTES)

    def write(self, data: bytes) -> bool:
        """Send lines; answers whether there is room for more. Never waits."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return True  # nobody reads any more: whoever serves the connection ends the watch
        transport.write(_framed(data) if self._chunked else data)
        return not self._protocol.writing_paused

    async def drained(self) -> None:
        """Until there is room again. Raises ConnectionError for a reader that has stopped reading."""
        async with _bounded():
            await self._writer.drain()


async def _pour(request: web.Request, stream: WatchStream) -> web.StreamResponse:
    response = _response(request)
    try:
        writer = await response.prepare(request)
        assert writer is not None
        try:
            sink = _Sink(request, writer)
            await stream.pour(sink.write, sink.drained)
        except InsulaError as fault:
            await response.write(encode({"type": "ERROR", "object": status_of(fault)}) + b"\n")
        await response.write_eof()
    except ConnectionError:
        _hang_up(request)
    finally:
        await stream.aclose()
    return response


def _hang_up(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()  # a polite end would wait for who does not read


@contextlib.asynccontextmanager
async def _bounded() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(STALLED_S):
            yield
    except TimeoutError:
        raise ConnectionResetError("the reader of a watch does not read") from None


def _response(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    response.headers["Content-Type"] = "application/json"
    if request.version >= HttpVersion11:
        response.enable_chunked_encoding()
    return response


async def _pump(request: web.Request, stream: WatchStream, lines: AsyncIterator[bytes]) -> web.StreamResponse:
    response = _response(request)
    try:
        await response.prepare(request)
        try:
            async for data in lines:
                async with _bounded():
                    await response.write(data)
        except InsulaError as fault:
            await response.write(encode({"type": "ERROR", "object": status_of(fault)}) + b"\n")
        await response.write_eof()
    except ConnectionError:
        _hang_up(request)
    finally:
        with contextlib.suppress(RuntimeError):
            await lines.aclose()  # type: ignore[attr-defined]
        await stream.aclose()
    return response


async def _shaped(call: Call, stream: WatchStream, form: Form) -> AsyncIterator[bytes]:
    """Events with rows or metadata in place of objects."""
    layout, first = Layout(call.kind), True
    include = call.include()
    async for event in stream.events():
        if form.shape == "metadata":
            obj = metadata_only(event.object, form.version)
        else:
            obj = table(
                layout,
                [event.object],
                clock.now(),
                version=form.version,
                include=include,
                meta={"resourceVersion": event.object["metadata"].get("resourceVersion", "")},
                headings=first,
            )
            first = False
        yield encode({"type": event.type, "object": obj}) + b"\n"
