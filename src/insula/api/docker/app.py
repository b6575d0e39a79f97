"""The Docker door: every route, answered for unmodified Docker clients on a Unix socket.

A request goes: version from the path → route → handler → headers; any fault goes through `errors` on its way out. Where a
route is found is in `route`, what it does in the file of its noun.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import socket
import stat
from pathlib import Path

from aiohttp import web

from insula.api.docker import (
    archives,
    build,
    containers,
    containers_links,
    containers_list,
    containers_streams,
    errors,
    events,
    exec,
    images,
    images_transfer,
    info,
    networks,
    refused,
    stats,
    system,
    volumes,
)
from insula.api.docker.buildkit import routes as buildkit
from insula.api.docker.door import Door, NodeInfo
from insula.api.docker.route import Call, Table
from insula.api.docker.versions import NEWEST, dotted, split
from insula.api.web import Arrivals, TakenOver, server_logger
from insula.engine.contract import Engine
from insula.errors import Unavailable
from insula.tasks import in_thread

NOUNS = (
    system,
    info,
    containers,
    containers_list,
    containers_streams,
    archives,
    build,
    stats,
    exec,
    images,
    images_transfer,
    networks,
    volumes,
    events,
    buildkit,
    refused,
    containers_links,
)
ARRIVALS: web.AppKey[Arrivals] = web.AppKey("arrivals", Arrivals)
_SOCKET_MODE = 0o660
_SHUTDOWN_S = 2.0


class Dispatcher:
    """Takes every request of the application."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._table = Table(route for noun in NOUNS for route in noun.ROUTES)
        self.arrivals = Arrivals()
        self._streams: set[asyncio.Task[object]] = set()
        self._others: set[asyncio.Task[web.StreamResponse]] = set()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Never raises but for cancellation, and never shows a stack trace."""
        self.arrivals.arrived(request.protocol)
        try:
            return await self._answer(request)
        except (Exception, BaseExceptionGroup) as fault:
            gone = request.transport is None or request.transport.is_closing()
            if not (gone and isinstance(fault, ConnectionError)):
                errors.record(fault, f"{request.method} {request.path}")
            # Where nobody is there any more, or what was sent so far was cut off, nothing is left to be said.
            return TakenOver() if gone else errors.response(fault)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        version, path = split(request.path)
        route, params = self._table.find(request.method, path.rstrip("/") or "/")
        call = Call(self._door, request, version, params, request.query)
        if not route.stream:
            return await self._finish(route.handler(call))
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        try:
            return await route.handler(call)
        finally:
            self._streams.discard(task)

    async def _finish(self, work: object) -> web.StreamResponse:
        """Carry it out even when the client goes away in the middle."""
        task: asyncio.Task[web.StreamResponse] = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._others.add(task)
        task.add_done_callback(self._others.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_swallow)
            raise

    async def close(self, _: web.Application) -> None:
        """End the streams, let the rest finish."""
        self.arrivals.close()
        for task in self._streams:
            task.cancel()
        waiting = {*self._streams, *self._others}
        if waiting:
            await asyncio.wait(waiting, timeout=_SHUTDOWN_S)


def _swallow(task: asyncio.Task[web.StreamResponse]) -> None:
    """Nobody is left to hear how it ended; unforeseen faults are logged all the same."""
    if not task.cancelled() and (fault := task.exception()):
        errors.record(fault, task.get_name())


def make_app(engine: Engine, *, info: NodeInfo) -> web.Application:
    """The application. Serve it with `serve_unix`, or in any aiohttp runner with `handler_cancellation=True`."""
    server = f"Insula/{info.version} (linux)"

    async def add_headers(_: web.BaseRequest, response: web.StreamResponse) -> None:
        response.headers["Api-Version"] = dotted(NEWEST)
        response.headers["Docker-Experimental"] = "false"
        response.headers["Ostype"] = "linux"
        response.headers["Server"] = server

    dispatcher = Dispatcher(Door(engine, info))
    app = web.Application(client_max_size=0)
    app[ARRIVALS] = dispatcher.arrivals
    app.router.add_route("*", r"/{path:[\s\S]*}", dispatcher.handle)
    app.on_response_prepare.append(add_headers)
    app.on_shutdown.append(dispatcher.close)
    return app


# --- serving ------------------------------------------------------------------------------------------------------


def bind_unix(path: Path, group: str) -> socket.socket:
    """A listening socket for root and one group only; where the group does not exist, for root alone. Replaces a stale socket.
    Raises Unavailable for one that somebody answers on, or another thing at its place. Blocks for a moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        os.fchmod(
            listener.fileno(), 0o600
        )  # Linux makes the file with this mode: never open to others, not for a moment
        listener.bind(str(path))
        with contextlib.suppress(KeyError, PermissionError):
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
        path.chmod(_SOCKET_MODE)
        listener.listen(1024)
    except OSError as fault:
        listener.close()
        raise Unavailable(f"cannot listen on {path}: {fault.strerror or fault}") from fault
    return listener


def _clear(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise Unavailable(f"{path} is there already and is no socket", hint="remove it or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError as fault:
            raise Unavailable(f"cannot tell whether {path} is in use: {fault.strerror}") from fault
    raise Unavailable(f"{path} is in use by another daemon", hint="stop it or choose another path")


class Served:
    """A door that is open. Whoever opened it closes it."""

    def __init__(self, path: Path, undo: contextlib.AsyncExitStack) -> None:
        self.path = path
        self._undo = undo

    async def close(self) -> None:
        """Take no more requests, end the streams, remove the socket. Repeatable."""
        await self._undo.aclose()


async def serve_unix(app: web.Application, path: Path | str, group: str = "insula") -> Served:
    """Open the door at `path`. Raises Unavailable when somebody else answers there."""
    listener = await in_thread(bind_unix, Path(path), group)
    async with contextlib.AsyncExitStack() as undo:
        undo.callback(Path(path).unlink, missing_ok=True)
        undo.callback(listener.close)
        runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=_SHUTDOWN_S, logger=server_logger()
        )
        undo.push_async_callback(runner.cleanup)
        await runner.setup()
        arrivals = app[ARRIVALS]
        arrivals.server = runner.server
        serving = await asyncio.get_running_loop().create_unix_server(arrivals.accept, sock=listener, backlog=1024)
        undo.callback(serving.close)
        return Served(Path(path), undo.pop_all())
    raise AssertionError("unreachable")
