"""The Kubernetes door assembled: every request goes who → what → may they → handler, and every fault becomes a Status.

app = make_app(verbs, registry, authority)          an aiohttp application, to be served over TLS
async with serve_tls(app, host, port, context)       listening; the port is in `.port`
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Self

from aiohttp import web

from insula.api.kube import documents
from insula.api.kube.answers import respond_value
from insula.api.kube.authn import Authority
from insula.api.kube.context import Agents, Authorizer, Call, Door
from insula.api.kube.customs import Customs
from insula.api.kube.discovery import Discovery
from insula.api.kube.errors import status_of
from insula.api.kube.escalation import EscalationCheck
from insula.api.kube.feed import Feed
from insula.api.kube.identity import RequestorIdentity
from insula.api.kube.impersonation import impersonated
from insula.api.kube.openapi import OpenApi
from insula.api.kube.rbac import Question, refuse
from insula.api.kube.request import Asked, read
from insula.api.kube.resources import HANDLERS
from insula.api.kube.reviews import Reviews
from insula.api.kube.streams import STREAMS, stream
from insula.api.web import Arrivals
from insula.errors import DeadlineExceeded, HostFault, InsulaError, NotFound, TooManyRequests, Unsupported
from insula.kinds import validation
from insula.kinds.registry import Registry
from insula.model.resource import Resource
from insula.tasks import finish
from insula.verbs.request import User
from insula.verbs.verbs import Verbs

log = logging.getLogger(__name__)
DOOR: web.AppKey[Door] = web.AppKey("kube-door", Door)
MAX_IN_FLIGHT = 400  # reads and writes at once, as kube-apiserver's limit for reads; watches and streams not counted
ARRIVALS: web.AppKey[Arrivals] = web.AppKey("arrivals", Arrivals)
TLS_SHUTDOWN_S = 1.0
TLS_HANDSHAKE_S = 10.0
REQUEST_TIMEOUT_S = 60.0
_TOO_SLOW = "Timeout: request did not complete within the allotted timeout"
_HEAD_LIMIT = 64 * 1024  # of the request line (exec carries its command there) and of each header
IP_FREEBIND = 15  # ip(7); the standard library does not name it
_LONG = frozenset({"watch"})
_WARM = (("v1", "Pod"), ("apps/v1", "Deployment"), ("v1", "Service"))  # the first of these should not wait

Extension = Callable[[web.Request, User, Asked], Awaitable[web.StreamResponse]]
"""Answers requests below a path prefix that another door owns; the user is known and was found to have the access."""


def _no_agents(_node: str) -> str | None:
    return None


def make_app(
    verbs: Verbs,
    registry: Registry,
    authority: Authority,
    authorizer: Authorizer | None = None,
    *,
    agents: Agents = _no_agents,
    version: str = "0",
    extensions: Mapping[str, Extension] | None = None,
) -> web.Application:
    """The application. Without an authorizer it keeps role-based access control over `verbs`. `extensions`: path prefix
    (`/apis/subresources.kubevirt.io/`) to who answers below it."""
    feed = Feed(verbs) if authorizer is None else None
    judge: Authorizer = authorizer or feed.picture  # type: ignore[union-attr]
    door = Door(verbs, registry, authority, judge, agents, version, time.monotonic())
    authority.lookup = lambda ref, namespace, name: verbs.get(ref, name, namespace)
    Reviews(authority, judge).register(verbs)
    verbs.admission = (*verbs.admission, RequestorIdentity(), EscalationCheck(judge))
    app = web.Application()
    app[DOOR], app[ARRIVALS] = door, Arrivals()
    app.router.add_route("*", r"/{tail:[\s\S]*}", _Entrance(door, extensions or {}, app[ARRIVALS]).handle)

    customs = Customs(verbs)

    async def life(_: web.Application) -> AsyncIterator[None]:
        warming = asyncio.create_task(_warm(registry))
        await customs.start()
        if feed is not None:
            await feed.start()
        yield
        await finish(warming)
        await customs.close()
        if feed is not None:
            await feed.close()
        if door.writes:
            await asyncio.wait(door.writes, timeout=10)

    app.cleanup_ctx.append(life)
    return app


async def _warm(registry: Registry) -> None:
    for _ in validation.warming([registry.by_gvk(*gvk) for gvk in _WARM]):
        await asyncio.sleep(0)


class _Entrance:
    """The one handler of the application."""

    def __init__(self, door: Door, extensions: Mapping[str, Extension], arrivals: Arrivals) -> None:
        self._door = door
        self._arrivals = arrivals
        self._discovery = Discovery(door.registry)
        self._openapi = OpenApi(door.registry, documents.version_info(door.version)["gitVersion"])
        self._extensions = tuple((f"{prefix.rstrip('/')}/", handler) for prefix, handler in extensions.items())
        self._under_way = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        self._arrivals.arrived(request.protocol)
        asked = read(request.method, request.rel_url.raw_path, request.query)
        try:
            user = await self._admitted(request, asked)
            if asked.verb in _LONG or asked.sub in STREAMS:
                return await self._answer(request, asked, user)
            if self._under_way >= MAX_IN_FLIGHT:
                raise TooManyRequests("too many requests, please try again later", retry_after_s=1)
            self._under_way += 1
            try:
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    return await self._answer(request, asked, user)
            finally:
                self._under_way -= 1
        except InsulaError as fault:
            return await _refusal(request, asked, fault)
        except TimeoutError:
            return await _refusal(request, asked, DeadlineExceeded(_TOO_SLOW, retry_after_s=1))
        except (web.HTTPException, ConnectionError, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("request failed", extra={"path": asked.path, "method": request.method})
            return await _refusal(request, asked, HostFault("an error on the server; its log has the details"))

    async def _admitted(self, request: web.Request, asked: Asked) -> User:
        """The user, if the access is allowed. Raises Unauthorized, Forbidden."""
        door = self._door
        user = impersonated(request, await door.authority.authenticate(request), door.authorizer)
        question = question_of(asked)
        if not door.authorizer.allows(user, question):
            raise refuse(user, question)
        return user

    async def _answer(self, request: web.Request, asked: Asked, user: User) -> web.StreamResponse:
        raw = (
            request.rel_url.raw_path + "/"
        )  # not decoded: an encoded slash would make another path of what was authorized
        for prefix, extension in self._extensions:
            if raw.startswith(prefix):
                return await extension(request, user, asked)
        if asked.ref is None:
            return await self._document(request, asked)
        kind = self._door.registry.find(asked.ref)
        if kind is None or (kind.namespaced and asked.name and not asked.namespace):
            raise NotFound("the server could not find the requested resource")
        if asked.namespace and not kind.namespaced and asked.ref.plural != "namespaces":
            raise NotFound("the server could not find the requested resource")
        call = Call(self._door, request, asked, user, kind)
        if asked.sub in STREAMS and asked.sub in kind.subresources:
            return await stream(call)
        if asked.rest:
            raise NotFound("the server could not find the requested resource")
        handler = HANDLERS.get(asked.verb)
        if handler is None or (asked.sub and asked.sub not in kind.subresources):
            raise NotFound("the server could not find the requested resource")
        return await handler(call)

    async def _document(self, request: web.Request, asked: Asked) -> web.StreamResponse:
        path = asked.path.rstrip("/") or "/"
        if request.method not in ("GET", "HEAD"):
            raise Unsupported("the server does not allow this method on the requested resource")
        if path == "/":
            return await documents.paths(request)
        if found := documents.DOCUMENTS.get(path):
            return await found(self._door, request)
        if path.startswith("/openapi/"):
            return await self._openapi.answer(request, path)
        if path.startswith("/api"):
            return await self._discovery.answer(request, path)
        raise NotFound("the server could not find the requested resource")


def question_of(asked: Asked) -> Question:
    """A request as access control sees it."""
    if asked.ref is None:
        return Question(verb=asked.verb, path=asked.path)
    return Question(
        verb=asked.verb,
        group=asked.ref.group,
        version=asked.ref.version,
        resource=asked.ref.plural,
        sub=asked.sub,
        namespace=asked.namespace,
        name=asked.name,
    )


async def _refusal(request: web.Request, asked: Asked, fault: InsulaError) -> web.StreamResponse:
    ref = asked.ref
    status: Resource = status_of(fault, group=ref.group if ref else "", kind=ref.plural if ref else "", name=asked.name)
    response = await respond_value(request, status, status=status["code"])
    if fault.retry_after_s:
        response.headers["Retry-After"] = str(max(1, round(fault.retry_after_s)))
    if not request.content.at_eof():
        response.force_close()  # what is left of the body is not read
    return response


class Served:
    """A listening server. `port` is the real one where 0 was asked for."""

    def __init__(self, runner: web.AppRunner, servers: Sequence[asyncio.Server]) -> None:
        self._runner = runner
        self._servers = servers
        self.port: int = servers[0].sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening, end watches and streams, let writes finish. No connection outlives this."""
        for server in self._servers:
            server.close()
        if self._runner.app is not None:
            self._runner.app[ARRIVALS].close()
        entrance = self._runner.server
        transports = [] if entrance is None else [each.transport for each in entrance.connections]
        await self._runner.cleanup()
        for transport in transports:
            if transport is not None:
                transport.abort()  # a polite TLS end would wait for clients that have gone
        await asyncio.sleep(0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def serve_tls(
    app: web.Application,
    host: str,
    port: int,
    context: ssl.SSLContext | None,
    *,
    also: Sequence[str] = (),
    **runner_options: Any,
) -> Served:
    """Listen, on the same port also at further addresses, which need not exist yet. Raises OSError where an address is taken.
    Without a context plain HTTP is served (tests, trusted sockets)."""
    options: dict[str, Any] = {
        "access_log": None,
        "handler_cancellation": True,
        "shutdown_timeout": 2.0,
        "keepalive_timeout": 300.0,
        "max_line_size": _HEAD_LIMIT,
        "max_field_size": _HEAD_LIMIT,
    }
    runner = web.AppRunner(app, **{**options, **runner_options})
    await runner.setup()
    assert runner.server is not None
    arrivals = app[ARRIVALS]
    arrivals.server = runner.server
    tls: dict[str, Any] = {}
    if context is not None:
        tls = {"ssl": context, "ssl_shutdown_timeout": TLS_SHUTDOWN_S, "ssl_handshake_timeout": TLS_HANDSHAKE_S}
    loop, servers = asyncio.get_running_loop(), []
    try:
        servers.append(await loop.create_server(arrivals.accept, host, port, backlog=1024, reuse_address=True, **tls))
        port = servers[0].sockets[0].getsockname()[1]
        for address in also:
            listener = _bound(address, port)
            servers.append(await loop.create_server(arrivals.accept, sock=listener, backlog=1024, **tls))
    except BaseException:
        for server in servers:
            server.close()
        await runner.cleanup()
        raise
    return Served(runner, servers)


def _bound(address: str, port: int) -> socket.socket:
    """A listening place at an address that this machine may be given later, such as a bridge's (IP_FREEBIND, ip(7))."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        listener.bind((address, port))
    except BaseException:
        listener.close()
        raise
    return listener
