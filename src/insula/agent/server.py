"""The agent's endpoint for byte streams: HTTP on a Unix socket that only the API server's process may open.

    GET /containerLogs/NAMESPACE/POD/CONTAINER     text
    GET /exec/NAMESPACE/POD/CONTAINER?command=…    WebSocket v5 or v4 channels
    GET /attach/NAMESPACE/POD/CONTAINER            likewise
    GET /portForward/NAMESPACE/POD                 SPDY or (?ports=…) channels in a WebSocket
    ANY /podProxy/NAMESPACE/POD/SCHEME/PORT/PATH   HTTP to the pod's address
    GET /machine/NAMESPACE/NAME/console|vnc        WebSocket, raw bytes
    GET /machine/NAMESPACE/NAME/portforward/PORT   likewise
    PUT /machine/NAMESPACE/NAME/pause|unpause|…    power

Who may do what was decided by the door. Faults are answered as Status objects, so that the door passes them on as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from pathlib import Path

import msgspec
from aiohttp import WSMsgType, web
from aiohttp.typedefs import Handler

from insula.agent import channels, lookup, podlogs, podproxy, portchannels
from insula.agent.portforward import Dial, Session
from insula.agent.services import Services
from insula.agent.takeover import Claims
from insula.drivers.driver import Capability
from insula.errors import Conflict, InsulaError, Invalid, NotFound, Unavailable, Unsupported
from insula.host.netns import connect_in_netns
from insula.model.instance import Process

log = logging.getLogger(__name__)
FORWARD = "SPDY/3.1+portforward.k8s.io"
PLAIN = "plain.kubevirt.io"
CODES: tuple[tuple[type[InsulaError], int, str], ...] = (
    (NotFound, 404, "NotFound"),
    (Invalid, 400, "BadRequest"),
    (Conflict, 409, "Conflict"),
    (Unsupported, 400, "BadRequest"),
    (Unavailable, 503, "ServiceUnavailable"),
    (InsulaError, 500, "InternalError"),
)


def status_response(fault: InsulaError) -> web.Response:
    """A fault as a metav1.Status."""
    code, reason = next((code, reason) for kind, code, reason in CODES if isinstance(fault, kind))
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": str(fault),
        "reason": reason,
        "code": code,
    }
    return web.Response(status=code, body=msgspec.json.encode(body), content_type="application/json")


@web.middleware
async def _faults(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except InsulaError as fault:
        return status_response(fault)
    except (ConnectionError, asyncio.CancelledError, web.HTTPException):
        raise
    except Exception:
        log.exception("stream failed", extra={"path": request.path})
        return status_response(InsulaError("the agent failed to serve this stream; its log says why"))


class Server:
    """Serves the streams of one node."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._claims = Claims()
        self.app = web.Application(middlewares=[_faults])
        self.app.add_routes(
            [
                web.get("/containerLogs/{namespace}/{pod}/{container}", self._logs),
                web.route("*", "/exec/{namespace}/{pod}/{container}", self._exec),
                web.route("*", "/attach/{namespace}/{pod}/{container}", self._attach),
                web.get("/portForward/{namespace}/{pod}", self._port_forward),
                web.route("*", podproxy.ROUTE, self._pod_proxy),
                web.get("/machine/{namespace}/{name}/{kind:console|vnc}", self._screen),
                web.put("/machine/{namespace}/{name}/{verb:pause|unpause|reset|softreboot}", self._power),
                web.get("/machine/{namespace}/{name}/portforward/{port}", self._machine_port),
                web.get("/machine/{namespace}/{name}/portforward/{port}/{protocol}", self._machine_port),
            ]
        )
        self._runner = web.AppRunner(self.app, access_log=None, shutdown_timeout=1.0, handler_cancellation=True)

    async def start(self, path: Path) -> None:
        """Listen. A stale socket is replaced; the file is for this user alone."""
        path.unlink(missing_ok=True)
        await self._runner.setup()
        old = os.umask(0o177)
        try:
            await web.UnixSite(self._runner, str(path)).start()
        finally:
            os.umask(old)

    async def close(self) -> None:
        """End every stream."""
        await self._runner.cleanup()

    # containers

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        options = podlogs.options_of(request.query)
        found = await lookup.attempts(self._services, *_container(request))
        place = 1 if options.previous else 0
        if len(found) <= place:
            _, pod, container = _container(request)
            if options.previous:
                raise Invalid(f'previous terminated container "{container}" in pod "{pod}" not found')
            raise Invalid(f'container "{container}" in pod "{pod}" is waiting to start: ContainerCreating')
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        async for data in podlogs.read(self._services.engine, found[place].id, options):
            await response.write(data)
        await response.write_eof()
        return response

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        command = tuple(request.query.getall("command", []))
        if not command:
            raise Invalid("you must specify at least one command for the container", field="command")
        instance = await lookup.running(self._services, *_container(request))
        _only_websocket(request)
        tty, stdin = _asked(request, "tty"), _asked(request, "stdin", "input")
        engine = self._services.engine
        made = await engine.exec_create(instance.id, Process(args=command, tty=tty, open_stdin=stdin))
        socket_ = await channels.open_socket(request)
        try:
            streams = await engine.exec_start(made.id)
        except InsulaError as fault:
            await _answer(socket_, channels.failure(fault.message))
            return socket_

        async def resize(width: int, height: int) -> None:
            with contextlib.suppress(InsulaError):
                await engine.exec_resize(made.id, width, height)

        async def result() -> dict[str, object]:
            return channels.exit_status(await engine.exec_wait(made.id))

        closes = stdin and not tty
        await channels.serve(socket_, streams, stdin=stdin, resize=resize, result=result, closes_stdin=closes)
        return socket_

    async def _attach(self, request: web.Request) -> web.StreamResponse:
        instance = await lookup.running(self._services, *_container(request))
        _only_websocket(request)
        engine = self._services.engine
        streams = await engine.attach(instance.id)
        socket_ = await channels.open_socket(request)

        async def resize(width: int, height: int) -> None:
            with contextlib.suppress(InsulaError):
                await engine.resize(instance.id, width, height)

        async def result() -> dict[str, object]:
            return channels.success()

        stdin = _asked(request, "stdin", "input") and instance.config.open_stdin
        await channels.serve(socket_, streams, stdin=stdin, resize=resize, result=result)
        return socket_

    async def _port_forward(self, request: web.Request) -> web.StreamResponse:
        namespace, pod = request.match_info["namespace"], request.match_info["pod"]
        dial = await self._dialer(namespace, pod)
        offered = request.headers.get("Sec-WebSocket-Protocol", "")
        if FORWARD not in offered and portchannels.PROTOCOL in offered:
            return await portchannels.serve(request, dial)
        if FORWARD not in offered:
            raise Invalid(
                f"unable to upgrade: port-forwarding is served as {FORWARD} or {portchannels.PROTOCOL} in a WebSocket"
            )
        socket_ = web.WebSocketResponse(protocols=(FORWARD,), max_msg_size=0, compress=False, timeout=5.0)
        await socket_.prepare(request)
        session = Session(socket_.send_bytes, dial)
        try:
            async for message in socket_:
                if message.type is WSMsgType.BINARY:
                    await session.feed(message.data)
        except Invalid as fault:
            log.info("port-forward ended: %s", fault)
        finally:
            await session.close()
        return socket_

    async def _pod_proxy(self, request: web.Request) -> web.StreamResponse:
        return await podproxy.carry(self._services, request)

    async def _dialer(self, namespace: str, pod: str) -> Dial:
        """How to reach a pod's ports: inside of its network namespace; for a mirrored container by its address. Raises NotFound,
        Conflict for a pod without a network of its own now."""
        netns, address = await lookup.network(self._services, namespace, pod)

        async def dial(port: int) -> socket.socket:
            try:
                if netns:
                    return await connect_in_netns(netns, "localhost", port)
                return await _connect(address, port)
            except InsulaError as fault:
                cause = fault.__cause__
                number = cause.errno if isinstance(cause, OSError) else None
                raise OSError(os.strerror(number) if number else fault.message) from fault

        return dial

    # machines

    async def _screen(self, request: web.Request) -> web.StreamResponse:
        namespace, name, kind = (request.match_info[part] for part in ("namespace", "name", "kind"))
        instance = await lookup.machine(self._services, namespace, name)
        capability = Capability.CONSOLE if kind == "console" else Capability.VNC
        path = await self._services.engine.console(instance.id, capability)
        keep = request.query.get("preserveSession") == "true"
        async with self._claims.hold((instance.id, kind), keep=keep):
            try:
                reader, writer = await asyncio.open_unix_connection(path)
            except OSError as fault:
                raise InsulaError(f"the {kind} of {name} does not answer: {fault.strerror or fault}") from fault
            return await _pipe(request, reader, writer)

    async def _power(self, request: web.Request) -> web.StreamResponse:
        namespace, name, verb = (request.match_info[part] for part in ("namespace", "name", "verb"))
        instance = await lookup.machine(self._services, namespace, name)
        engine = self._services.engine
        match verb:
            case "pause":
                await engine.pause(instance.id)
            case "unpause":
                await engine.unpause(instance.id)
            case "reset":
                await engine.reset(instance.id)
            case _:
                raise Conflict("VMI neither have the agent connected nor the ACPI feature enabled")
        return web.Response(status=202)

    async def _machine_port(self, request: web.Request) -> web.StreamResponse:
        namespace, name, port = (request.match_info[part] for part in ("namespace", "name", "port"))
        if request.match_info.get("protocol", "tcp") != "tcp":
            raise Unsupported("only tcp ports of machines can be forwarded")
        if not port.isdigit() or not 0 < int(port) < 65536:
            raise Invalid(f"port {port!r} must be a number from 1 to 65535", field="port")
        instance = await lookup.machine(self._services, namespace, name)
        address = next((endpoint.address for endpoint in instance.endpoints if endpoint.address), "")
        try:
            connected = await _connect(address, int(port))
        except OSError as fault:
            raise InsulaError(f"cannot connect to port {port} of {name}: {fault.strerror or fault}") from fault
        reader, writer = await asyncio.open_connection(sock=connected)
        return await _pipe(request, reader, writer)


def _container(request: web.Request) -> tuple[str, str, str]:
    info = request.match_info
    return info["namespace"], info["pod"], info["container"]


def _asked(request: web.Request, *names: str) -> bool:
    return any(request.query.get(name, "false") in ("true", "1") for name in names)


def _only_websocket(request: web.Request) -> None:
    """After everything else: kubectl asks a second time without WebSocket when it was refused, and shows that answer."""
    if request.headers.get("Upgrade", "").lower() != "websocket":
        raise Invalid(
            "unable to upgrade: remote commands are served over WebSocket (v5.channel.k8s.io, v4.channel.k8s.io)"
        )


async def _answer(socket_: web.WebSocketResponse, status: dict[str, object]) -> None:
    await socket_.send_bytes(bytes([channels.ERROR]) + msgspec.json.encode(status))
    await socket_.close()


async def _connect(address: str, port: int) -> socket.socket:
    connected = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        async with asyncio.timeout(5.0):
            await asyncio.get_running_loop().sock_connect(connected, (address, port))
    except BaseException:
        connected.close()
        raise
    return connected


async def _pipe(request: web.Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> web.StreamResponse:
    """Raw bytes between a WebSocket and a stream until either ends."""
    socket_ = web.WebSocketResponse(protocols=(PLAIN,), max_msg_size=0, compress=False, timeout=5.0)
    await socket_.prepare(request)

    async def outward() -> None:
        while data := await reader.read(32 * 1024):
            await socket_.send_bytes(data)
        await socket_.close()

    task = asyncio.create_task(outward(), name="pipe-out")
    try:
        async for message in socket_:
            if message.type is WSMsgType.BINARY:
                writer.write(message.data)
                await writer.drain()
    except ConnectionError:
        pass
    finally:
        task.cancel()
        writer.close()  # before any wait: a client that leaves cancels this task too
        await asyncio.wait((task,))
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return socket_
