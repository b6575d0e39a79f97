"""Networks. The engine's network `default` is `bridge` here."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any

from aiohttp import web
from msgspec import field

from insula import clock
from insula.api.docker.containers_filter import compile_pattern, until_of
from insula.api.docker.containers_network import attachment, docker_name, engine_name
from insula.api.docker.door import Door
from insula.api.docker.events import tell
from insula.api.docker.filters import Filters, parse
from insula.api.docker.route import Call, Route
from insula.api.docker.words import EndpointWords, Words
from insula.api.web import json_response
from insula.engine.contract import Instance
from insula.errors import Conflict, Forbidden, Invalid, NotFound, Unsupported
from insula.networks.contract import Network

_PREDEFINED = ("bridge", "host", "none", "default")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*\Z")
_FILTERS = ("dangling", "driver", "id", "label", "label!", "name", "scope", "type")


class RangeWords(Words, frozen=True, kw_only=True):
    """One address range."""

    subnet: str = ""
    ip_range: str = field(default="", name="IPRange")
    gateway: str = ""
    auxiliary_addresses: dict[str, str] = field(default_factory=dict)


class IpamWords(Words, frozen=True, kw_only=True):
    """`IPAM`."""

    driver: str = ""
    config: list[RangeWords] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)


class NetworkWords(Words, frozen=True, kw_only=True):
    """The body of `POST /networks/create`."""

    name: str = ""
    driver: str = ""
    scope: str = ""
    enable_ipv4: bool | None = field(default=None, name="EnableIPv4")
    enable_ipv6: bool | None = field(default=None, name="EnableIPv6")
    ipam: IpamWords = field(default=IpamWords(), name="IPAM")
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    config_only: bool = False
    config_from: dict[str, Any] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)


class ConnectWords(Words, frozen=True, kw_only=True):
    """The body of connect and disconnect."""

    container: str = ""
    endpoint_config: EndpointWords = EndpointWords()
    force: bool = False


# --- looking ------------------------------------------------------------------------------------------------------


def network_words(network: Network, members: Mapping[str, Any]) -> dict[str, Any]:
    """As dockerd shows a network."""
    ranges = []
    if network.subnet:
        ranges = [{"Subnet": network.subnet, "Gateway": network.gateway}]
        if network.ip_range:
            ranges[0]["IPRange"] = network.ip_range
    return {
        "Name": docker_name(network.name),
        "Id": network.id,
        "Created": network.created or "0001-01-01T00:00:00Z",
        "Scope": "local",
        "Driver": "null" if network.driver == "none" else network.driver,
        "EnableIPv4": True,
        "EnableIPv6": network.ipv6,
        "IPAM": {"Driver": "default", "Options": None, "Config": ranges},
        "Internal": network.internal,
        "Attachable": network.attachable and not network.builtin,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": members,
        "Options": network.options,
        "Labels": network.labels,
    }


async def members_of(door: Door, network: Network) -> dict[str, Any]:
    """The running containers on it."""
    names = {each.id: each.config.name for each in await door.engine.list()}
    return {
        endpoint.owner: {
            "Name": names.get(endpoint.owner, endpoint.hostname or endpoint.owner),
            "EndpointID": endpoint.id,
            "MacAddress": endpoint.mac,
            "IPv4Address": f"{endpoint.address}/{endpoint.prefix}" if endpoint.address else "",
            "IPv6Address": "",
        }
        for endpoint in await door.engine.networks.endpoints(network=network.id)
    }


async def find(door: Door, reference: str) -> Network:
    """Raises NotFound with the Docker Engine's sentence."""
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
            raise Invalid(f"invalid filter 'type={value}'", field="filters")
    return (
        filters.labels(network.labels)
        and filters.any("name", lambda value: compile_pattern(value).search(name) is not None)
        and filters.any("id", lambda value: network.id.startswith(value))
        and filters.any("driver", lambda value: value == ("null" if network.driver == "none" else network.driver))
        and filters.any("scope", lambda value: value == "local")
        and filters.any("type", lambda value: kinds[value])
        and ("dangling" not in filters or filters.flag("dangling") == (not network.builtin and network.id not in used))
    )


async def inspect(call: Call) -> web.StreamResponse:
    """`GET /networks/{id}`."""
    network = await find(call.door, call.params["id"])
    return json_response(network_words(network, await members_of(call.door, network)))


# --- making -------------------------------------------------------------------------------------------------------


async def create(call: Call) -> web.StreamResponse:
    """`POST /networks/create`."""
    network = await call.door.engine.networks.create(network_of(await call.read(NetworkWords)))
    tell(call.door, "network", "create", network.id, name=network.name, type=network.driver)
    return json_response({"Id": network.id, "Warning": ""}, 201)


def network_of(words: NetworkWords) -> Network:
    """Raises Invalid, Forbidden, Unsupported. Pure."""
    if words.name in _PREDEFINED:
        raise Forbidden(f"operation is not permitted on predefined {words.name} network ")
    if not _NAME.match(words.name):
        raise Invalid(f"invalid network name: {words.name!r}, only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", field="Name")
    _refuse(words)
    first = words.ipam.config[0] if words.ipam.config else RangeWords()
    return Network(
        id="",
        name=words.name,
        driver=words.driver or "bridge",
        subnet=_checked(first.subnet, "Subnet", ipaddress.ip_network),
        gateway=_checked(first.gateway, "Gateway", ipaddress.ip_address),
        ip_range=_checked(first.ip_range, "IPRange", ipaddress.ip_network),
        internal=words.internal,
        attachable=words.attachable,
        created=clock.rfc3339_nano(clock.now()),
        labels=words.labels,
        options=words.options,
    )


def _refuse(words: NetworkWords) -> None:
    if words.driver not in ("", "bridge"):
        raise Invalid(f"could not find plugin {words.driver} in v1 plugin registry: plugin not found", field="Driver")
    if words.enable_ipv6:
        raise Unsupported("IPv6 on networks is not supported", field="EnableIPv6")
    if words.enable_ipv4 is False:
        raise Unsupported("a network without IPv4 is not supported", field="EnableIPv4")
    if words.ipam.driver not in ("", "default"):
        raise Unsupported(f"there is no address manager {words.ipam.driver!r}, only 'default'", field="IPAM.Driver")
    if len(words.ipam.config) > 1 or any(each.auxiliary_addresses for each in words.ipam.config):
        raise Unsupported("a network has one subnet, without auxiliary addresses", field="IPAM.Config")
    if words.ingress or words.config_only or words.config_from.get("Network") or words.scope not in ("", "local"):
        raise Unsupported("swarm and configuration-only networks are not supported", field="Scope")


def _checked(text: str, field_name: str, read: Any) -> str:
    if text:
        try:
            if read(text).version != 4:
                raise Unsupported(f"IPAM.{field_name}: only IPv4 is supported", field=f"IPAM.Config.{field_name}")
        except ValueError as fault:
            raise Invalid(f"invalid {field_name} {text}: {fault}", field=f"IPAM.Config.{field_name}") from fault
    return text


async def remove(call: Call) -> web.StreamResponse:
    """`DELETE /networks/{id}`."""
    network = await find(call.door, call.params["id"])
    name = docker_name(network.name)
    if network.builtin:
        raise Forbidden(f"{name} is a pre-defined network and cannot be removed")
    members = await members_of(call.door, network)
    if members:
        names = ", ".join(f'name:"{each["Name"]}" id:"{id[:12]}"' for id, each in members.items())
        raise Forbidden(f"error while removing network: network {name} has active endpoints ({names})")
    await call.door.engine.networks.remove(network.id)
    tell(call.door, "network", "destroy", network.id, name=network.name, type=network.driver)
    return web.Response(status=204)


async def prune(call: Call) -> web.StreamResponse:
    """`POST /networks/prune`: user-made ones that nobody is on, or would be on when started."""
    filters = parse(call.text("filters"), ("until", "label", "label!"))
    until, engine = until_of(filters), call.door.engine
    wanted = {name for each in await engine.list() for name in _names(each)}
    removed = []
    for network in await engine.networks.list():
        if network.builtin or wanted & {network.id, network.name} or not filters.labels(network.labels):
            continue
        if until and network.created and clock.parse_rfc3339(network.created) >= until:
            continue
        try:
            await engine.networks.remove(network.id)
        except (Conflict, NotFound):
            continue
        removed.append(network.name)
        tell(call.door, "network", "destroy", network.id, name=network.name, type=network.driver)
    return json_response({"NetworksDeleted": removed or None})


def _names(each: Instance) -> set[str]:
    return {each.config.network_mode, *(joined.network for joined in each.config.networks)}


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
