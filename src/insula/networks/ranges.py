"""The address ranges of a network: how those that a client asked for are completed, and which one an address is given from.
Pure.

What can be wrong with a range in itself (host bits set, another family, outside of its subnet) is checked where the words of
a client are read; here it is checked against the other ranges and networks.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from insula.errors import Forbidden, Invalid, Unavailable
from insula.host.netlink import Route
from insula.networks import ipam
from insula.networks.contract import AddressRange, Endpoint, Network
from insula.networks.ipam import Pool


def ranges_of(network: Network, version: int = 0) -> list[AddressRange]:
    """The subnets of a network of one IP version, 0 for all."""
    known = network.ranges
    if not known and network.subnet:
        known = (AddressRange(subnet=network.subnet, gateway=network.gateway, ip_range=network.ip_range),)
    return [each for each in known if version in (0, version_of(each.subnet))]


def version_of(subnet: str) -> int:
    """4 or 6."""
    return 6 if ":" in subnet else 4


def complete(
    wish: Network, *, others: Iterable[Network], routes: Sequence[Route], pools: Iterable[Pool], gateways: bool = True
) -> Network:
    """The network with all its ranges: the wished ones, checked, and one chosen for each family that is to be there and has
    none. Every range gets a gateway unless `gateways` is False. Raises Invalid, Forbidden, Unavailable."""
    taken = [each.subnet for network in others if not network.config_only for each in ranges_of(network)]
    wished = ranges_of(wish)
    if any(not each.subnet for each in wished) or (not wished and (wish.gateway or wish.ip_range)):
        raise Invalid("A gateway or an address range needs a subnet.", field="subnet")
    families = (4, 6) if wish.ipv6 else (4,)
    missing = [version for version in families if version not in {version_of(each.subnet) for each in wished}]
    routed = [route.destination for route in routes]
    chosen = [
        AddressRange(subnet=ipam.choose_subnet(pools, [*taken, *routed], version=version), chosen=True)
        for version in missing
    ]
    ranges: list[AddressRange] = []
    for each in (*wished, *chosen):
        _check_overlap(each, [*taken, *(done.subnet for done in ranges)], routes)
        ranges.append(_complete_one(each, gateways=gateways))
    ranges.sort(key=lambda each: version_of(each.subnet))
    return with_ranges(wish, ranges)


def with_ranges(network: Network, ranges: Sequence[AddressRange]) -> Network:
    """The network with these ranges, the first IPv4 one where everybody looks first."""
    first = next((each for each in ranges if version_of(each.subnet) == 4), AddressRange(subnet=""))
    return msgspec.structs.replace(
        network, ranges=tuple(ranges), subnet=first.subnet, gateway=first.gateway, ip_range=first.ip_range
    )


def _check_overlap(wanted: AddressRange, taken: Collection[str], routes: Sequence[Route]) -> None:
    """A subnet must not meet another network's nor one that the host is attached to."""
    subnet = ipam.parse_subnet(wanted.subnet)
    if ipam.overlapping(subnet, taken):
        raise Forbidden("Pool overlaps with other one on this address space", field="subnet")
    if on_link := ipam.overlapping(subnet, [r.destination for r in routes if not r.gateway]):
        raise Invalid(f"The subnet {subnet} overlaps {on_link}, which this host is attached to.", field="subnet")


def _complete_one(wanted: AddressRange, *, gateways: bool) -> AddressRange:
    subnet = ipam.parse_subnet(wanted.subnet)
    if wanted.ip_range:
        within = ipam.parse_range(wanted.ip_range)
        if within.version != subnet.version or not within.subnet_of(subnet):  # type: ignore[arg-type]
            raise Invalid(f"The range {wanted.ip_range} does not lie in the subnet {subnet}.", field="ip_range")
    for name, text in wanted.reserved.items():
        address = ipam.parse_address(text, field="reserved")
        if address not in subnet:
            raise Forbidden(
                f"auxiliary address: ({name}:{text}) must belong to the master pool: {subnet}", field="reserved"
            )
    reserved = {str(ipaddress.ip_address(text)) for text in wanted.reserved.values()}
    gateway = wanted.gateway
    if gateway or gateways:
        gateway = ipam.choose_gateway(subnet, gateway, taken=reserved, ip_range=wanted.ip_range)
    return msgspec.structs.replace(wanted, subnet=str(subnet), gateway=gateway)


def give(
    network: Network, version: int, asked: str, there: Iterable[Endpoint], last: Mapping[str, str]
) -> tuple[str, AddressRange] | None:
    """The address of one more end point and the range that it is from; None on a network without that version. `last` is the
    address that was given last, by subnet. Raises Invalid, Conflict (taken), Unavailable (none left)."""
    ranges = ranges_of(network, version)
    if not ranges:
        if asked:
            raise Invalid(
                f"invalid address {asked}: It does not belong to any of this network's subnets", field="address"
            )
        return None
    used = {address for endpoint in there for address in (endpoint.address, endpoint.address6) if address}
    if asked:
        address = ipam.parse_address(asked, version=version)
        each = next((each for each in ranges if address in ipam.parse_subnet(each.subnet)), ranges[0])
        return ipam.check_address(ipam.parse_subnet(each.subnet), asked, used | _kept(each)), each
    for each in ranges[:-1]:
        try:
            return _next(each, used, last), each
        except Unavailable:
            continue
    return _next(ranges[-1], used, last), ranges[-1]


def _next(each: AddressRange, used: set[str], last: Mapping[str, str]) -> str:
    of_range = {text for text in used if version_of(text) == version_of(each.subnet)}
    return ipam.choose_address(
        ipam.parse_subnet(each.subnet), of_range | _kept(each), ip_range=each.ip_range, last=last.get(each.subnet, "")
    )


def _kept(each: AddressRange) -> set[str]:
    return {str(ipaddress.ip_address(text)) for text in (each.gateway, *each.reserved.values()) if text}


def range_with(network: Network, address: str) -> AddressRange:
    """The range of a network that an address of it is from."""
    parsed = ipaddress.ip_address(address)
    return next(each for each in ranges_of(network) if parsed in ipaddress.ip_network(each.subnet))
