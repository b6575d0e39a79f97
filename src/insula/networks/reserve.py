"""Choosing all that belongs to a new end point, from what is taken. Pure."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec import Struct, field

from insula.errors import Conflict
from insula.networks import ipam, options
from insula.networks.contract import AddressRange, Endpoint, Network
from insula.networks.ranges import give


class Wish(Struct, frozen=True, kw_only=True):
    """What is asked of a new end point; a tap for an empty `netns`."""

    owner: str
    netns: str = ""
    address: str = ""
    address6: str = ""
    mac: str = ""
    aliases: tuple[str, ...] = ()
    hostname: str = ""
    resolvers: tuple[str, ...] = ()
    priority: int = 0
    options: dict[str, str] = field(default_factory=dict)


def reserve(
    network: Network, wish: Wish, everybody: Iterable[Endpoint], last: Mapping[str, str], *, prefix: str
) -> Endpoint:
    """The end point. `last` as in `ranges.give`, `prefix` of the host's interfaces. Raises Invalid, Conflict, Unavailable."""
    everybody = list(everybody)
    there = [each for each in everybody if each.network == network.id]
    inside = [each for each in everybody if wish.netns and each.netns == wish.netns]
    options.sysctls(wish.options)
    four = give(network, 4, wish.address, there, last)
    six = give(network, 6, wish.address6, there, last)
    address = four[0] if four else ""
    mac = ipam.check_mac(wish.mac) if wish.mac else ipam.mac_of(address) if address else _random_mac()
    if any(each.mac == mac for each in there):
        raise Conflict(f"The MAC address {mac} is taken on network {network.name}.", field="mac")
    host_interface = f"{prefix}{'v' if wish.netns else 't'}{secrets.token_hex(4)}"
    return Endpoint(
        id=secrets.token_hex(32),
        network=network.id,
        owner=wish.owner,
        interface=_interface(network, wish, inside) if wish.netns else "",
        host_interface=host_interface,
        mac=mac,
        address=address,
        prefix=_prefix(four),
        gateway=_gateway(network, four),
        aliases=wish.aliases,
        tap="" if wish.netns else host_interface,
        hostname=wish.hostname,
        netns=wish.netns,
        address6=six[0] if six else "",
        prefix6=_prefix(six),
        gateway6=_gateway(network, six),
        resolvers=wish.resolvers,
        priority=wish.priority,
        metric=max((each.metric + 1 for each in inside), default=0),
        options=wish.options,
    )


Given = tuple[str, AddressRange] | None


def _prefix(given: Given) -> int:
    return int(given[1].subnet.partition("/")[2]) if given else 0


def _gateway(network: Network, given: Given) -> str:
    return given[1].gateway if given and not network.internal else ""


def _random_mac() -> str:
    return "02:42:" + secrets.token_bytes(4).hex(":")


def _interface(network: Network, wish: Wish, inside: Sequence[Endpoint]) -> str:
    """The name that was asked for, else the first free one of the network's sort. Raises Invalid, Conflict."""
    used = {each.interface for each in inside}
    if asked := wish.options.get(options.IFNAME, ""):
        if options.check_interface(asked, options.IFNAME) in used | {"lo"}:
            raise Conflict(f"an interface named {asked} is there already", field=options.IFNAME)
        return asked
    sort = network.options.get(options.PREFIX) or "eth"
    return next(name for n in range(len(used) + 1) if (name := f"{sort}{n}") not in used)


def by_rank(endpoints: Iterable[Endpoint], names: Mapping[str, str]) -> list[Endpoint]:
    """An owner's end points, the one that has the default route first: by priority, then those that lead outwards, then by
    the name of the network, as dockerd ranks them. `names` of networks by id."""
    return sorted(
        endpoints,
        key=lambda each: (-each.priority, not _leads(each), not (each.gateway and each.gateway6), names[each.network]),
    )


def with_metrics(endpoints: Iterable[Endpoint]) -> list[Endpoint]:
    """End points of a ledger from before metrics were written down: they went by the numbers of the interfaces."""
    found: list[Endpoint] = []
    seen: set[tuple[str, int]] = set()
    for each in endpoints:
        number = each.interface.removeprefix("eth")
        if each.netns and (each.netns, each.metric) in seen and number.isdecimal():
            each = msgspec.structs.replace(each, metric=int(number))
        seen.add((each.netns, each.metric))
        found.append(each)
    return found


def _leads(endpoint: Endpoint) -> bool:
    return bool(endpoint.gateway or endpoint.gateway6 or endpoint.on_link)
