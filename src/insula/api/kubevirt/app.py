"""The routes of the door, served inside the Kubernetes door's application, which has authenticated and authorized the user.

`extension(verbs, agents)` makes the handler for everything below /apis/subresources.kubevirt.io. What concerns a running machine
is carried to the agent of its node, as the streams of pods are.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote, unquote

from aiohttp import web
from msgspec import Struct

from insula import __version__
from insula.api.kubevirt import documents, lifecycle
from insula.api.relay import relay
from insula.api.web import decode_json, json_response, read_body
from insula.errors import Conflict, Invalid, NotFound, Unavailable, Unsupported
from insula.model.resource import Ref, Resource
from insula.verbs.request import Request, User
from insula.verbs.verbs import Verbs

MACHINES = Ref("kubevirt.io", "v1", "virtualmachines")
INSTANCES = Ref("kubevirt.io", "v1", "virtualmachineinstances")
BODY_LIMIT = 1024 * 1024
Agents = Callable[[str], str | None]
Handler = Callable[[web.Request, User, object], Awaitable[web.StreamResponse]]


class Call(Struct, frozen=True):
    """One request on its way: the door's parts, what it is about, its body."""

    verbs: Verbs
    agents: Agents
    http: web.Request
    user: User
    namespace: str
    name: str
    rest: tuple[str, ...]
    options: Mapping[str, Any]

    @property
    def dry(self) -> bool:
        """Whether nothing is to be changed."""
        return "All" in (self.options.get("dryRun") or ())


async def _find(call: Call, ref: Ref) -> Resource:
    return await call.verbs.get(ref, call.name, call.namespace)


async def _instance(call: Call) -> Resource | None:
    try:
        return await _find(call, INSTANCES)
    except NotFound:
        return None


def _lifecycle(decide: Callable[[Resource, Resource | None, Mapping[str, Any]], lifecycle.Change]) -> Any:
    async def handle(call: Call) -> web.StreamResponse:
        machine = await _find(call, MACHINES)
        change = decide(machine, await _instance(call), call.options)
        request = Request(user=call.user, dry_run=call.dry, field_manager="virt-api")
        revision = {"metadata": {"uid": machine["metadata"]["uid"]}}
        if change.status is not None:
            patch = {**revision, "status": change.status}
            await call.verbs.patch(request, MACHINES, call.name, patch, call.namespace, type="merge", sub="status")
        if change.spec is not None:
            patch = {**revision, "spec": change.spec}
            await call.verbs.patch(request, MACHINES, call.name, patch, call.namespace, type="merge")
        return web.Response(status=202)

    return handle


def _is_paused(instance: Resource) -> bool:
    return any(
        c["type"] == "Paused" and c["status"] == "True" for c in (instance.get("status") or {}).get("conditions") or ()
    )


async def _running(call: Call) -> Resource:
    """The running instance. Raises NotFound, Conflict with KubeVirt's sentence."""
    instance = await _find(call, INSTANCES)
    if (instance.get("status") or {}).get("phase") != "Running":
        raise Conflict("VM is not running")
    return instance


async def _carry(call: Call, instance: Resource, what: str) -> web.StreamResponse:
    node = (instance.get("status") or {}).get("nodeName", "")
    endpoint = call.agents(node) if node else None
    if endpoint is None:
        raise Unavailable(f'the agent of node "{node}" is not known to this server')
    path = f"/machine/{quote(call.namespace, safe='')}/{quote(call.name, safe='')}/{what}"
    return await relay(call.http, endpoint, path)


def _power(what: str) -> Any:
    async def handle(call: Call) -> web.StreamResponse:
        instance = await _running(call)
        if what == "pause" and _is_paused(instance):
            raise Conflict("VMI is already paused")
        if what == "unpause" and not _is_paused(instance):
            raise Conflict("VMI is not paused")
        if what == "softreboot" and _is_paused(instance):
            raise Conflict("VMI is paused")
        return web.Response(status=202) if call.dry else await _carry(call, instance, what)

    return handle


def _stream(what: str) -> Any:
    async def handle(call: Call) -> web.StreamResponse:
        instance = await _find(call, INSTANCES)
        phase = (instance.get("status") or {}).get("phase", "")
        if phase in lifecycle.FINAL:
            raise Conflict(f"VMI {call.name} has ended: {phase}")
        if phase != "Running":
            raise Invalid(f"VMI {call.name} is not running yet: {phase or 'Pending'}")
        tail = "/".join(quote(part, safe="") for part in call.rest)
        return await _carry(call, instance, f"{what}/{tail}" if tail else what)

    return handle


ROUTES: dict[tuple[str, str, str], Callable[[Call], Awaitable[web.StreamResponse]]] = {
    ("PUT", "virtualmachines", "start"): _lifecycle(lifecycle.start),
    ("PUT", "virtualmachines", "stop"): _lifecycle(lifecycle.stop),
    ("PUT", "virtualmachines", "restart"): _lifecycle(lifecycle.restart),
    ("GET", "virtualmachines", "portforward"): _stream("portforward"),
    ("PUT", "virtualmachineinstances", "pause"): _power("pause"),
    ("PUT", "virtualmachineinstances", "unpause"): _power("unpause"),
    ("PUT", "virtualmachineinstances", "reset"): _power("reset"),
    ("PUT", "virtualmachineinstances", "softreboot"): _power("softreboot"),
    ("GET", "virtualmachineinstances", "console"): _stream("console"),
    ("GET", "virtualmachineinstances", "vnc"): _stream("vnc"),
    ("GET", "virtualmachineinstances", "portforward"): _stream("portforward"),
}


def extension(verbs: Verbs, agents: Agents) -> Handler:
    """The handler of the whole group."""

    async def handle(request: web.Request, user: User, _: object) -> web.StreamResponse:
        parts = [unquote(part) for part in request.rel_url.raw_path.strip("/").split("/")][2:]
        match parts:
            case [] | [_]:
                return json_response(_document(parts))
            case [version, "version"] if version in documents.VERSIONS:
                return json_response(documents.version(__version__))
            case [version, "namespaces", namespace, resource, name, sub, *rest] if version in documents.VERSIONS:
                route = ROUTES.get((request.method, resource, sub))
                if route is None:
                    raise Unsupported(f"{request.method} {resource}/{sub} is not supported by this server")
                options = await _options(request)
                return await route(Call(verbs, agents, request, user, namespace, name, tuple(rest), options))
        raise NotFound("the server could not find the requested resource")

    return handle


async def _options(request: web.Request) -> Mapping[str, Any]:
    """The body of a PUT: JSON whatever its content type says, absent or empty is fine. Raises Invalid."""
    if request.method != "PUT":
        return {}
    body = await read_body(request, BODY_LIMIT)
    options = decode_json(body) if body.strip() else {}
    if not isinstance(options, dict):
        raise Invalid(f"the body must be a JSON object, not {type(options).__name__}")
    return options


def _document(parts: list[str]) -> dict[str, Any]:
    match parts:
        case []:
            return documents.group()
        case [version] if version in documents.VERSIONS:
            verbs = {"PUT": "update", "GET": "get"}
            routes = [(f"{resource}/{sub}", verbs[method]) for method, resource, sub in ROUTES]
            return documents.resources(version, routes)
    raise NotFound("the server could not find the requested resource")
