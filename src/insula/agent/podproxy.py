"""pods/proxy: one HTTP request carried from the API server to a pod's address, and its answer back.

    /podProxy/NAMESPACE/POD/SCHEME/PORT/PATH        SCHEME http or https; PORT 0: the first that a container names, or 80

Bodies are streamed both ways. Certificates of pods are not checked, as kube-apiserver does not check them here. Upgraded
connections (WebSocket, SPDY) are refused: port-forward carries them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from insula.agent import lookup
from insula.agent.podview import all_containers
from insula.agent.probes import unverified
from insula.agent.services import Services
from insula.errors import Conflict, Invalid, Unavailable, Unsupported
from insula.model.resource import Resource

ROUTE = r"/podProxy/{namespace}/{pod}/{scheme:https?}/{port}{path:(/.*)?}"
CONNECT_S = 30.0
_CHUNK = 64 * 1024
_HOP = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "host"}
)


async def carry(services: Services, request: web.Request) -> web.StreamResponse:
    """Answer one request. Raises NotFound, Conflict, Invalid, Unsupported, Unavailable."""
    info = request.match_info
    pod = lookup.pod_here(services, info["namespace"], info["pod"])
    if "upgrade" in request.headers.get("Connection", "").lower():
        raise Unsupported("upgraded connections are not carried by pods/proxy; use port-forward")
    target = target_of(pod, info["scheme"], info["port"])
    path = request.rel_url.raw_path.split("/", 6)
    url = URL(f"{target}/{path[6] if len(path) > 6 else ''}", encoded=True)
    if request.rel_url.raw_query_string:
        url = URL(f"{url}?{request.rel_url.raw_query_string}", encoded=True)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
    connector = aiohttp.TCPConnector(ssl=unverified() if info["scheme"] == "https" else False)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        try:
            body = request.content if request.body_exists else None
            headers = kept(request.headers.items())
            async with session.request(
                request.method, url, headers=headers, data=body, allow_redirects=False, skip_auto_headers=_NOT_OURS
            ) as answer:
                return await _back(request, answer, target)
        except aiohttp.ClientError as fault:
            raise Unavailable(f"error trying to reach service: {fault}") from None


_NAME = ("scheme", "pod", "port")
_NOT_OURS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


async def _back(request: web.Request, answer: aiohttp.ClientResponse, target: str) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=kept(answer.headers.items()))
    if location := answer.headers.get("Location"):
        response.headers["Location"] = moved(location, target, prefix_of(request.match_info))
    await response.prepare(request)
    async for data in answer.content.iter_chunked(_CHUNK):
        await response.write(data)
    await response.write_eof()
    return response


def prefix_of(info: Mapping[str, str]) -> str:
    """The path under which the API server shows the pod's root."""
    name = info["pod"] if (info["scheme"], info["port"]) == ("http", "0") else ":".join(info[part] for part in _NAME)
    return f"/api/v1/namespaces/{info['namespace']}/pods/{name}/proxy"


def moved(location: str, target: str, prefix: str) -> str:
    """A Location of the pod's own as the client can follow it; others stay."""
    if location.startswith(f"{target}/") or location == target:
        location = location[len(target) :] or "/"
    return prefix + location if location.startswith("/") and not location.startswith("//") else location


def kept(headers: Iterable[tuple[str, str]]) -> CIMultiDict[str]:
    """Headers that go on: all but those of the hop."""
    return CIMultiDict((name, value) for name, value in headers if name.lower() not in _HOP)


def target_of(pod: Resource, scheme: str, port: str) -> str:
    """Where a pod is, `http://10.0.0.7:8080`. Raises Invalid, Conflict."""
    if not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise Invalid(f'port "{port}" of a pod must be a number from 1 to 65535', field="port")
    number = int(port) or _first_port(pod) or (443 if scheme == "https" else 80)
    address = (pod.get("status") or {}).get("podIP")
    if not address:
        raise Conflict(f"pod {pod['metadata']['name']} has no address yet")
    return f"{scheme}://{address}:{number}"


def _first_port(pod: Resource) -> int:
    ports = (port for container in all_containers(pod) for port in container.get("ports") or ())
    return next((int(port["containerPort"]) for port in ports), 0)
