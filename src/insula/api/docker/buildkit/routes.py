"""`POST /grpc` and `POST /session`: connections that become HTTP/2 for BuildKit's clients. All that serves them is loaded when
the first one comes.

Source: Moby's `daemon/server/router/{grpc,session}`.
"""

from __future__ import annotations

import asyncio
import importlib
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from aiohttp import web

from insula.api.docker.door import Door
from insula.api.docker.route import Call, Route
from insula.api.web import RawConnection, TakenOver, take_over
from insula.errors import Invalid
from insula.tasks import in_thread

if TYPE_CHECKING:
    from insula.api.docker.buildkit.assembly import BuildKit

_HEAD = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
_services: WeakKeyDictionary[Door, asyncio.Task[BuildKit]] = WeakKeyDictionary()


async def grpc(call: Call) -> web.StreamResponse:
    """The control and gateway services; we are the server."""
    buildkit = await _buildkit(call.door)
    connection = _hijack(call)
    try:
        await buildkit.serve(connection)
    finally:
        connection.close()
    return TakenOver()


async def session(call: Call) -> web.StreamResponse:
    """A client's services; we are the client of them."""
    buildkit = await _buildkit(call.door)
    buildkit.check_session(call.request.headers)
    connection = _hijack(call)
    try:
        await buildkit.attach(call.request.headers, connection)
    finally:
        connection.close()
    return TakenOver()


async def _buildkit(door: Door) -> BuildKit:
    task = _services.get(door)
    if task is None:
        task = _services[door] = asyncio.create_task(_load(door), name="buildkit/load")
    return await asyncio.shield(task)


async def _load(door: Door) -> BuildKit:
    module = await in_thread(importlib.import_module, "insula.api.docker.buildkit.assembly")
    await in_thread(importlib.import_module, "insula.engine.building.builder")
    loaded: BuildKit = module.BuildKit(door)
    return loaded


def _hijack(call: Call) -> RawConnection:
    if call.request.headers.get("Upgrade", "").lower() != "h2c":
        raise Invalid("this endpoint speaks HTTP/2 only: the request must ask for an upgrade to h2c", field="Upgrade")
    return take_over(call.request, _HEAD)


ROUTES = (
    Route("POST", "/grpc", grpc, stream=True),
    Route("POST", "/session", session, stream=True),
)
