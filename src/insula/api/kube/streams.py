"""Byte streams of pods and nodes: authorized here, carried to the agent of the pod's node, which terminates the protocol.

    pods/log          GET /containerLogs/NS/POD/CONTAINER?...       pods/exec        /exec/NS/POD/CONTAINER?command=...
    pods/attach       /attach/NS/POD/CONTAINER?...                   pods/portforward /portForward/NS/POD?...
    pods/proxy        /podProxy/NS/POD/SCHEME/PORT/path                     nodes/proxy      /path

These are the kubelet's paths (and one of ours). The side road of the design: the bytes never enter the store.
"""

from __future__ import annotations

from urllib.parse import quote

from aiohttp import web

from insula.api.kube.context import Call
from insula.api.relay import relay
from insula.errors import Conflict, Invalid, NotFound, Unavailable, Unsupported
from insula.kinds.printing import get
from insula.model.resource import Ref, Resource

STREAMS = frozenset({"log", "exec", "attach", "portforward", "proxy"})
_PODS = Ref("", "v1", "pods")
_NODES = Ref("", "v1", "nodes")
_DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"
_WORDS = {"log": "containerLogs", "exec": "exec", "attach": "attach"}


async def stream(call: Call) -> web.StreamResponse:
    """Carry one stream. Raises NotFound, Invalid, Conflict, Unavailable."""
    asked = call.asked
    match call.ref.plural, asked.sub:
        case "pods", "proxy":
            scheme, name, port = target_of(asked.name)
            pod = await call.door.verbs.get(_PODS, name, asked.namespace)
            where = f"{_part(asked.namespace)}/{_part(name)}/{scheme}/{_part(port)}"
            return await _to_agent(call, _node_of(pod), f"/podProxy/{where}{_beyond(call, 8)}")
        case "pods", _:
            pod = await call.door.verbs.get(_PODS, asked.name, asked.namespace)
            return await _to_agent(
                call, _node_of(pod), pod_path(asked.sub, pod, call.request.query.get("container", ""))
            )
        case "nodes", "proxy":
            await call.door.verbs.get(_NODES, asked.name)
            return await _to_agent(call, asked.name, _beyond(call, 6))
    raise Unsupported(f"{call.ref.plural}/{asked.sub} is not carried by this server")


def _beyond(call: Call, parts: int) -> str:
    """What follows the proxied resource's own path, exactly as it was sent."""
    return "/" + "/".join(call.request.rel_url.raw_path.split("/")[parts:])


def target_of(name: str) -> tuple[str, str, str]:
    """Scheme, pod and port ("0": not said) of the name in a proxied path: `NAME`, `NAME:PORT` or `SCHEME:NAME:PORT`, whose
    port may be empty. Raises Invalid."""
    match name.split(":"):
        case [pod]:
            return "http", pod, "0"
        case [pod, port]:
            return "http", pod, port or "0"
        case ["http" | "https" as scheme, pod, port]:
            return scheme, pod, port or "0"
    raise Invalid(f'invalid pod request "{name}": it must be NAME, NAME:PORT or http(s):NAME:PORT')


def _part(text: str) -> str:
    return quote(text, safe="")


def pod_path(sub: str, pod: Resource, container: str) -> str:
    """The agent's path for a stream of a pod. Raises Invalid, Conflict."""
    meta = pod["metadata"]
    where = f"{_part(meta['namespace'])}/{_part(meta['name'])}"
    if sub == "portforward":
        return f"/portForward/{where}"
    return f"/{_WORDS[sub]}/{where}/{_part(container_of(sub, pod, container))}"


def _names(pod: Resource, field: str) -> list[str]:
    return [each["name"] for each in get(pod, "spec", field, default=[])]


def container_of(sub: str, pod: Resource, asked: str) -> str:
    """The container that is meant: the one asked for, the only one, or the annotated one. Raises Invalid."""
    meta, main = pod["metadata"], _names(pod, "containers")
    init, debug = _names(pod, "initContainers"), _names(pod, "ephemeralContainers")
    if asked:
        if asked in (*main, *init, *debug):
            return asked
        raise Invalid(f"container {asked} is not valid for pod {meta['name']}")
    preferred = get(meta, "annotations", default={}).get(_DEFAULT_CONTAINER)
    if preferred in main:
        return str(preferred)
    if len(main) == 1 or sub in ("exec", "attach"):
        return main[0]
    also = f" or one of the init containers: [{' '.join(init)}]" if init else ""
    raise Invalid(f"a container name must be specified for pod {meta['name']}, choose one of: [{' '.join(main)}]{also}")


def _node_of(pod: Resource) -> str:
    node = get(pod, "spec", "nodeName", default="")
    if not node:
        raise Conflict(f"pod {pod['metadata']['name']} does not have a host assigned")
    return str(node)


async def _to_agent(call: Call, node: str, path: str) -> web.StreamResponse:
    endpoint = call.door.agents(node)
    if endpoint is None:
        raise Unavailable(f'the agent of node "{node}" is not known to this server')
    try:
        return await relay(call.request, endpoint, path)
    except NotFound:
        raise NotFound("the server could not find the requested resource") from None
