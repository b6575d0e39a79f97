"""Watches over HTTP: one JSON object a line, flushed at once; as Tables of one row where kubectl asks for rows."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

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
    lines = stream.lines() if form.shape == "object" else _shaped(call, stream, form)
    return await _pump(call.request, stream, lines)


async def _pump(request: web.Request, stream: WatchStream, lines: AsyncIterator[bytes]) -> web.StreamResponse:
    response = web.StreamResponse()
    response.headers["Content-Type"] = "application/json"
    response.enable_chunked_encoding()
    try:
        await response.prepare(request)
        try:
            async for data in lines:
                await response.write(data)
        except InsulaError as fault:
            await response.write(encode({"type": "ERROR", "object": status_of(fault)}) + b"\n")
        await response.write_eof()
    except ConnectionError:
        pass
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
