"""What this door refuses on purpose, each with a sentence that says what to do instead."""

from __future__ import annotations

from aiohttp import web

from insula.api.docker.route import Call, Handler, Route
from insula.errors import Unavailable, Unsupported

NO_SWARM = (
    "This node is not a swarm manager. Swarm is not supported here; use the Kubernetes API of the same machine for services, "
    "secrets and several nodes."
)
_CANCEL = "Builds end when their connection is closed; there is no other way to cancel one."
_PLUGINS = "Plugins are not supported: networks, volumes and log drivers are built in."
_CHECKPOINT = "Checkpoints of containers are not supported."


def _refusing(sentence: str) -> Handler:
    async def refuse(_: Call) -> web.StreamResponse:
        raise Unsupported(sentence)

    return refuse


async def _no_swarm(_: Call) -> web.StreamResponse:
    """503, as dockerd says it of a node outside of a swarm; clients know how to read that."""
    raise Unavailable(NO_SWARM)


async def _no_plugins(_: Call) -> web.StreamResponse:
    """The list is true: there are none."""
    return web.json_response([])


_METHODS = ("GET", "POST", "DELETE", "HEAD", "PUT")

ROUTES = (
    Route("GET", "/plugins", _no_plugins),
    *(
        Route(method, path, _no_swarm)
        for noun in ("swarm", "services", "tasks", "secrets", "configs", "nodes")
        for path in (f"/{noun}", f"/{noun}/{{rest*}}")
        for method in _METHODS
    ),
    *(
        Route(method, path, _refusing(sentence))
        for path, sentence in (
            ("/plugins/{rest*}", _PLUGINS),
            ("/build/cancel", _CANCEL),
            ("/containers/{id}/checkpoints", _CHECKPOINT),
        )
        for method in _METHODS
    ),
)
