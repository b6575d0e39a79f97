"""Putting a running or stopped instance on one more network, and taking it off.

Both are safe against a kill at any point by one rule: an end point that the instance's config does not name is nobody's, and
`drop_strays` takes it away. So a connection is written down after it was made, and its end before it is taken apart: first
its names, then its interface.
"""

from __future__ import annotations

from contextlib import suppress

import msgspec

from insula.engine.checks import DETACHED, INSTANCE, SANDBOX, networks_of
from insula.engine.guests import guest_driver
from insula.engine.joining import connect_one, publish_all, tell_network
from insula.engine.parts import Parts
from insula.engine.resident import Resident
from insula.engine.starting import rewrite_names
from insula.engine.steps import reached
from insula.errors import Conflict, Forbidden, Invalid, NotFound, Unsupported
from insula.model.instance import Link, NetworkAttachment
from insula.networks.contract import Network

_HOST = "container cannot be disconnected from host network or connected to host network"


async def connect(parts: Parts, resident: Resident, attachment: NetworkAttachment) -> None:
    """At once when it runs, and at each later start. Raises NotFound, Forbidden (it is there), Invalid (mode, address)."""
    network = await parts.networks.get(attachment.network)
    async with resident.lock:
        config = resident.entry.config
        _refuse_modes(config.network_mode, network)
        if await _is_on(parts, resident, network):
            raise Forbidden(f"endpoint with name {config.name} already exists in network {network.name}")
        if resident.running and guest_driver(resident.driver):
            raise Unsupported(
                f"container {config.name} runs in a machine, which takes no new network card while it runs: "
                "stop it, connect it and start it again",
                field="Container",
            )
        if resident.running:
            await _join(parts, resident, network, attachment)
        mode = network.name if config.network_mode == DETACHED else config.network_mode
        joined = (*config.networks, attachment)
        more = (Link(target=target, alias=alias, network=network.name) for target, alias in attachment.links)
        links = (*config.links, *more)
        await resident.save(config=msgspec.structs.replace(config, network_mode=mode, networks=joined, links=links))
        reached("connect.saved")
        if attachment.links:
            await rewrite_names(parts, resident)
    tell_network(parts, resident.id, network, "connect")


async def _join(parts: Parts, resident: Resident, network: Network, attachment: NetworkAttachment) -> None:
    try:
        await connect_one(parts, resident.id, resident.entry.config, attachment, resident.entry.netns)
        reached("connect.interface")
        await _settle(parts, resident)
        reached("connect.names")
    except BaseException:
        await parts.networks.disconnect(resident.id, network.id)
        await _settle(parts, resident)
        raise


def _refuse_modes(mode: str, network: Network) -> None:
    """Which namespaces have no further networks. Raises Invalid with Docker's sentences."""
    if mode == "host" or mode.startswith((SANDBOX, INSTANCE)):
        raise Invalid(
            "container sharing network namespace with another container or host cannot be connected to any other network"
        )
    if network.driver == "host":
        raise Invalid(_HOST)
    if mode == "none" or network.driver == "none":
        raise Invalid(
            "container cannot be connected to multiple networks with one of the networks in private (none) mode"
        )


async def _is_on(parts: Parts, resident: Resident, network: Network) -> bool:
    if any(endpoint.network == network.id for endpoint in resident.endpoints):
        return True
    return network.id in await _wanted(parts, resident)


async def _wanted(parts: Parts, resident: Resident) -> set[str]:
    """The ids of the networks that its config names; one that was removed meanwhile has none."""
    found = set()
    for name in networks_of(resident.entry.config):
        with suppress(NotFound):
            found.add((await parts.networks.get(name)).id)
    return found


async def drop_strays(parts: Parts, resident: Resident) -> None:
    """At start, of one that runs: take it off networks that its config does not name."""
    wanted = await _wanted(parts, resident)
    strays = [endpoint for endpoint in resident.endpoints if endpoint.network not in wanted]
    for endpoint in strays:
        await parts.networks.disconnect(resident.id, endpoint.network)
    if strays:
        await _settle(parts, resident)


async def disconnect(parts: Parts, resident: Resident, reference: str, *, force: bool) -> None:
    """Now and for later starts. Raises NotFound, Conflict when it is not on it."""
    network = await parts.networks.get(reference)
    if network.driver == "host":
        raise Invalid(_HOST)
    async with resident.lock:
        config = resident.entry.config
        names = {network.id, network.name, reference}
        primary = config.network_mode in names or (
            config.network_mode in ("", "bridge", "default") and network.name == "default"
        )
        others = tuple(each for each in config.networks if each.network not in names)
        links = tuple(each for each in config.links if each.network not in names)
        live = [endpoint for endpoint in resident.endpoints if endpoint.network == network.id]
        known = primary or live or len(others) < len(config.networks)
        if not (known or (force and await _holds(parts, resident, network))):
            raise Conflict(f"container {resident.id} is not connected to network {network.name}")
        mode = config.network_mode
        if primary:
            mode = others[0].network if others else DETACHED
        await resident.save(config=msgspec.structs.replace(config, network_mode=mode, networks=others, links=links))
        reached("disconnect.saved")
        if live or force:
            resident.endpoints = tuple(each for each in resident.endpoints if each.network != network.id)
            await rewrite_names(parts, resident)
            reached("disconnect.names")
            await parts.networks.disconnect(resident.id, network.id)
            reached("disconnect.interface")
            await _settle(parts, resident)
    tell_network(parts, resident.id, network, "disconnect")


async def _holds(parts: Parts, resident: Resident, network: Network) -> bool:
    """Whether the network has an end point of it that its ledger entry does not tell of."""
    return any(each.network == network.id for each in await parts.networks.endpoints(owner=resident.id))


async def _settle(parts: Parts, resident: Resident) -> None:
    """After a change: what the instance is on now, its ports where that took them along or first gives them a way in, and
    the files that name it."""
    resident.endpoints = tuple(await parts.networks.endpoints(owner=resident.id))
    open_now = await parts.networks.published(resident.id)
    if resident.entry.config.ports and not open_now:
        open_now = await publish_all(parts, resident.id, resident.entry.config, resident.endpoints)
    resident.published = tuple(open_now)
    await rewrite_names(parts, resident)


async def unlink(parts: Parts, resident: Resident, alias: str) -> None:
    """Take a link away. Raises NotFound."""
    async with resident.lock:
        config = resident.entry.config
        kept = tuple(link for link in config.links if link.alias != alias)
        if len(kept) == len(config.links):
            raise NotFound(f"No such container: {config.name}/{alias}", kind="container", name=alias)
        await resident.save(config=msgspec.structs.replace(config, links=kept))
        if resident.running:
            await rewrite_names(parts, resident)
