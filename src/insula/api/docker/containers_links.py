"""Taking links away: `docker rm --link OWNER/ALIAS`. Its pattern matches much, so it stands last in the table of routes."""

from __future__ import annotations

from aiohttp import web

from insula.api.docker.route import Call, Route
from insula.errors import NotFound


async def unlink(call: Call) -> web.StreamResponse:
    """`DELETE /containers/{id}/{alias}?link=1`: takes a link away, from whom `id` names."""
    if not call.flag("link"):
        raise NotFound(f"No such container: {call.params['id']}/{call.params['alias']}", kind="container")
    await call.door.engine.unlink(call.params["id"], call.params["alias"])
    return web.Response(status=204)


ROUTES = (Route("DELETE", "/containers/{id}/{alias}", unlink),)
