"""Networks. The engine's network `default` is `bridge` here."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from insula import clock
from insula.api.docker.containers_filter import until_of
from insula.api.docker.containers_network import attachment, docker_name, engine_name
from insula.api.docker.door import Door
from insula.api.docker.events import tell
from insula.api.docker.filters import Filters, parse
from insula.api.docker.networks_words import ConnectWords, NetworkWords, driver_name, network_of, network_words
from insula.api.docker.route import Call, Route
from insula.api.web import json_response
from insula.errors import Conflict, Forbidden, Invalid, NotFound
from insula.model.pattern import compile_pattern
from insula.networks.contract import Network

_FILTERS = ("dangling", "driver", "id", "label", "label!", "name", "scope", "type")


# --- looking ------------------------------------------------------------------------------------------------------


async def members_of(door: Door, network: Network) -> dict[str, Any]:
    """The running containers on it."""
    names = {each.id: each.config.name for each in await door.engine.list()}
    return {
        endpoint.owner: {
            "Name": names.get(endpoint.owner, endpoint.hostname or endpoint.owner),
            "EndpointID": endpoint.id,
            "MacAddress": endpoint.mac,
            "IPv4Address": f"{endpoint.address}/{endpoint.prefix}" if endpoint.address else "",
            "IPv6Address": f"{endpoint.address6}/{endpoint.prefix6}" if endpoint.address6 else "",
        }
        for endpoint in await door.engine.networks.endpoints(network=network.id)
    }


async def find(door: Door, reference: str) -> Network:
    """Raises NotFound and Invalid (ambiguous) with the Docker Engine's sentences."""
    try:
        return await door.engine.networks.get(engine_name(reference))
    except NotFound as fault:
        raise NotFound(f"network {reference} not found", kind="network", name=reference) from fault


async def list_all(call: Call) -> web.StreamResponse:
    """`GET /networks`; who is on each is told by inspect alone."""
    filters = parse(call.text("filters"), _FILTERS)
    networks = call.door.engine.networks
    used = {endpoint.network for endpoint in await networks.endpoints()} if "dangling" in filters else set()
    return json_response([network_words(each, {}) for each in await networks.list() if passes(each, filters, used)])


def passes(network: Network, filters: Filters, used: set[str]) -> bool:
    """Whether the list shows it."""
    name = docker_name(network.name)
    kinds = {"builtin": network.builtin, "custom": not network.builtin}
    for value in filters.get("type"):
        if value not in kinds:
            raise Invalid(f"invalid filter: 'type'='{value}'", field="filters")
    return (
        filters.labels(network.labels)
        and filters.any("name", lambda value: compile_pattern(value).search(name) is not None)
        and filters.any("id", lambda value: network.id.startswith(value))
        and filters.any("driver", lambda value: value == driver_name(network))
        and filters.any("scope", lambda value: value == "local")
        and filters.any("type", lambda value: kinds[value])
        and ("dangling" not in filters or filters.flag("dangling") == (not network.builtin and network.id not in used))
    )


async def inspect(call: Call) -> web.StreamResponse:
    """`GET /networks/{id}`. With a `scope` only a network of that one is found."""
    call.flag("verbose")
    network = await find(call.door, call.params["id"])
    if call.text("scope") not in (None, "", "local"):
        raise NotFound(f"network {call.params['id']} not found", kind="network", name=call.params["id"])
    return json_response(network_words(network, await members_of(call.door, network)))


# --- making -------------------------------------------------------------------------------------------------------


async def create(call: Call) -> web.StreamResponse:
    """`POST /networks/create`."""
    network = await call.door.engine.networks.create(network_of(await call.read(NetworkWords)))
    tell(call.door, "network", "create", network.id, name=network.name, type=driver_name(network))
    return json_response({"Id": network.id, "Warning": ""}, 201)


async def remove(call: Call) -> web.StreamResponse:
    """`DELETE /networks/{id}`."""
    network = await find(call.door, call.params["id"])
    name = docker_name(network.name)
    if network.builtin:
        raise Forbidden(f"{name} is a pre-defined network and cannot be removed")
    members = await members_of(call.door, network)
    if members:
        names = ", ".join(f'name:"{each["Name"]}" id:"{id[:12]}"' for id, each in members.items())
        raise Forbidden(f"error while removing network: network {name} id {network.id} has active endpoints ({names})")
    await call.door.engine.networks.remove(network.id)
    tell(call.door, "network", "destroy", network.id, name=network.name, type=driver_name(network))
    return web.Response(status=204)


async def prune(call: Call) -> web.StreamResponse:
    """`POST /networks/prune`: user-made ones that nobody is on; those of stopped containers go too, as in dockerd."""
    filters = parse(call.text("filters"), ("until", "label", "label!"))
    until, engine = until_of(filters), call.door.engine
    removed = []
    for network in await engine.networks.list():
        if network.builtin or network.config_only or not filters.labels(network.labels):
            continue
        if until and network.created and clock.parse_rfc3339(network.created) >= until:
            continue
        try:
            await engine.networks.remove(network.id)
        except (Conflict, Forbidden, NotFound):
            continue
        removed.append(network.name)
        tell(call.door, "network", "destroy", network.id, name=network.name, type=driver_name(network))
    return json_response({"NetworksDeleted": removed or None})


# --- joining ------------------------------------------------------------------------------------------------------


async def connect(call: Call) -> web.StreamResponse:
    """`POST /networks/{id}/connect`."""
    words = await call.read(ConnectWords)
    network = await find(call.door, call.params["id"])
    await call.door.engine.connect(words.container, attachment(network.name, words.endpoint_config))
    return web.Response(status=200)


async def disconnect(call: Call) -> web.StreamResponse:
    """`POST /networks/{id}/disconnect`."""
    words = await call.read(ConnectWords)
    network = await find(call.door, call.params["id"])
    await call.door.engine.disconnect(words.container, network.name, force=words.force)
    return web.Response(status=200)


ROUTES = (
    Route("GET", "/networks", list_all),
    Route("POST", "/networks/create", create),
    Route("POST", "/networks/prune", prune),
    Route("GET", "/networks/{id}", inspect),
    Route("DELETE", "/networks/{id}", remove),
    Route("POST", "/networks/{id}/connect", connect),
    Route("POST", "/networks/{id}/disconnect", disconnect),
)
