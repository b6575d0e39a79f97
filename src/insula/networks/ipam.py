"""Which subnets and addresses: pure decisions over what is taken. IPv4 only at this stage.

Addresses go round (the next one after the last given), so that one just freed is not given again at once while old
connections and ARP entries still point to it. A MAC follows from its address, `02:42` before the address's four bytes, as
Docker made them: an address that does come back comes back with the MAC that its neighbours remember.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable, Iterator

from insula.errors import Conflict, Invalid, Unavailable

Subnet = ipaddress.IPv4Network
Pool = tuple[str, int]  # a block, and the prefix length of the subnets cut from it

DEFAULT_POOLS: tuple[Pool, ...] = (("10.89.0.0/16", 22), ("10.90.0.0/15", 22), ("172.30.0.0/15", 22))
_DEFAULT_FALLBACKS = (*(f"10.{n}.0.0/16" for n in range(64, 88)), *(f"172.{n}.0.0/16" for n in range(18, 30)))


def parse_subnet(text: str, *, field: str = "subnet") -> Subnet:
    """A CIDR of the smallest useful size, a /30, or larger. Raises Invalid."""
    if ":" in text:
        raise Invalid(f"{text} is an IPv6 subnet; this version makes IPv4 networks.", field=field)
    try:
        subnet = Subnet(text)
    except ValueError as fault:
        raise Invalid(f"{text} is not a subnet such as 10.1.0.0/24: {fault}.", field=field) from None
    if not 8 <= subnet.prefixlen <= 30:
        raise Invalid(f"{text} must have a prefix length from 8 to 30.", field=field)
    if subnet.is_multicast or subnet.is_loopback or subnet.is_reserved:
        raise Invalid(f"{text} is not a range for hosts.", field=field)
    return subnet


def parse_address(text: str, *, field: str = "address") -> ipaddress.IPv4Address:
    """Raises Invalid."""
    try:
        return ipaddress.IPv4Address(text)
    except ValueError:
        raise Invalid(f"{text} is not an IPv4 address.", field=field) from None


def overlapping(subnet: Subnet, taken: Iterable[str]) -> str:
    """The first of `taken` that shares an address with `subnet`, empty for none. Default routes do not count, nor the
    halves and quarters of everything that VPN clients set in their stead."""
    return next((str(other) for other in _blocks(taken) if other.overlaps(subnet)), "")


def _blocks(taken: Iterable[str]) -> list[Subnet]:
    blocks = (Subnet(text, strict=False) for text in taken)
    return [block for block in blocks if block.prefixlen >= 8]


def choose_default(wanted: str, taken: Collection[str]) -> str:
    """`wanted` when it is free, else another /16. Raises Unavailable when nothing is."""
    for text in (wanted, *_DEFAULT_FALLBACKS):
        if not overlapping(parse_subnet(text), taken):
            return text
    raise Unavailable(
        "No free subnet is left for the default network.",
        hint="set networks.default_subnet to a range that no route uses",
    )


def choose_subnet(pools: Iterable[Pool], taken: Collection[str]) -> str:
    """The first free piece of the pools. Raises Unavailable with Docker's sentence."""
    used = _blocks(taken)
    for block, prefix in pools:
        for subnet in _pieces(Subnet(block), prefix):
            if not any(other.overlaps(subnet) for other in used):
                return str(subnet)
    raise Unavailable(
        "could not find an available, non-overlapping IPv4 address pool among the defaults to assign to the network"
    )


def _pieces(block: Subnet, prefix: int) -> Iterator[Subnet]:
    return block.subnets(new_prefix=prefix) if prefix > block.prefixlen else iter((block,))


def choose_gateway(subnet: Subnet, wanted: str = "") -> str:
    """The first address of the subnet, or the wanted one. Raises Invalid."""
    if not wanted:
        return str(subnet.network_address + 1)
    gateway = parse_address(wanted, field="gateway")
    if gateway not in subnet or gateway in (subnet.network_address, subnet.broadcast_address):
        raise Invalid(f"no matching subnet for gateway {wanted}: {subnet} has no such host address.", field="gateway")
    return wanted


def choose_address(subnet: Subnet, taken: Collection[str], *, ip_range: str = "", last: str = "") -> str:
    """The next free host address after `last`, within `ip_range` when given. Raises Unavailable."""
    within = Subnet(ip_range) if ip_range else subnet
    low = max(int(within.network_address), int(subnet.network_address) + 1)
    high = min(int(within.broadcast_address), int(subnet.broadcast_address) - 1)
    used = {int(ipaddress.IPv4Address(text)) for text in taken}
    after = int(ipaddress.IPv4Address(last)) + 1 if last else low
    start = after if low <= after <= high else low
    for number in (*range(start, min(high, start + len(used)) + 1), *range(low, min(high, low + len(used)) + 1)):
        if number not in used:
            return str(ipaddress.IPv4Address(number))
    raise Unavailable(f"no available IPv4 addresses on this network's address pools: {ip_range or subnet}")


def check_address(subnet: Subnet, address: str, taken: Collection[str]) -> str:
    """An address that was asked for. Raises Invalid, Conflict."""
    parsed = parse_address(address)
    if parsed not in subnet or parsed in (subnet.network_address, subnet.broadcast_address):
        raise Invalid(
            f"invalid address {address}: It does not belong to any of this network's subnets", field="address"
        )
    if str(parsed) in taken:
        raise Conflict(f"Address already in use: {address}", field="address")
    return str(parsed)


def mac_of(address: str) -> str:
    """The MAC of an address."""
    return "02:42:" + ipaddress.IPv4Address(address).packed.hex(":")


def check_mac(text: str) -> str:
    """A MAC that was asked for, in lower case with colons. Raises Invalid."""
    mac = text.lower().replace("-", ":")
    if not re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", mac):
        raise Invalid(f"invalid MAC address: {text}", field="mac")
    if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise Invalid(f"{text} is a group address or zero and cannot belong to one interface.", field="mac")
    return mac
