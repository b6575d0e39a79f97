"""Which subnets and addresses: pure decisions over what is taken, for IPv4 and IPv6 alike.

Addresses go round (the next one after the last given), so that one just freed is not given again at once while old
connections and ARP entries still point to it. A MAC follows from its IPv4 address, `02:42` before the address's four bytes,
as Docker made them: an address that does come back comes back with the MAC that its neighbours remember.

Sources: RFC 4193 (unique local addresses), Docker's documentation of `docker network create`.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import socket
from collections.abc import Collection, Iterable, Iterator

from insula.errors import Conflict, Invalid, Unavailable

Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Pool = tuple[str, int]  # a block, and the prefix length of the subnets cut from it

DEFAULT_POOLS: tuple[Pool, ...] = (("10.89.0.0/16", 22), ("10.90.0.0/15", 22), ("172.30.0.0/15", 22))
_DEFAULT_FALLBACKS = (*(f"10.{n}.0.0/16" for n in range(64, 88)), *(f"172.{n}.0.0/16" for n in range(18, 30)))
_SMALLEST = {4: 30, 6: 126}  # prefix lengths that leave a gateway and one more


def parse_subnet(text: str, *, field: str = "subnet") -> Subnet:
    """A CIDR of the smallest useful size (a /30, a /126) or larger. Raises Invalid."""
    try:
        subnet = ipaddress.ip_network(_zoneless(text))
    except ValueError as fault:
        raise Invalid(f"{text} is not a subnet such as 10.1.0.0/24: {fault}.", field=field) from None
    if not 8 <= subnet.prefixlen <= _SMALLEST[subnet.version]:
        raise Invalid(f"{text} must have a prefix length from 8 to {_SMALLEST[subnet.version]}.", field=field)
    if subnet.is_multicast or subnet.is_loopback or (subnet.version == 4 and subnet.is_reserved):
        raise Invalid(f"{text} is not a range for hosts.", field=field)
    return subnet


def _zoneless(text: str) -> str:
    if "%" in text:
        raise ValueError("a zone has no place here")
    return text


def parse_range(text: str) -> Subnet:
    """A CIDR of any size that addresses are given from. Raises Invalid."""
    try:
        return ipaddress.ip_network(_zoneless(text), strict=False)
    except ValueError as fault:
        raise Invalid(f"{text} is not a range such as 10.1.0.128/25: {fault}.", field="ip_range") from None


def parse_address(text: str, *, field: str = "address", version: int = 0) -> Address:
    """`version` 4 or 6, 0 for either. Raises Invalid."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        address = None
    if (
        address is None or version not in (0, address.version) or "%" in text
    ):  # a zone would be text in rules of the firewall
        raise Invalid(f"{text} is not an {f'IPv{version}' if version else 'IP'} address.", field=field)
    return address


def overlapping(subnet: Subnet, taken: Iterable[str]) -> str:
    """The first of `taken` that shares an address with `subnet`, empty for none. Default routes do not count, nor the
    halves and quarters of everything that VPN clients set in their stead."""
    return next((str(other) for other in _blocks(taken, subnet.version) if other.overlaps(subnet)), "")


def _blocks(taken: Iterable[str], version: int) -> list[Subnet]:
    blocks = (ipaddress.ip_network(text, strict=False) for text in taken)
    return [block for block in blocks if block.version == version and block.prefixlen >= 8]


def choose_default(wanted: str, taken: Collection[str]) -> str:
    """`wanted` when it is free, else another /16. Raises Unavailable when nothing is."""
    for text in (wanted, *_DEFAULT_FALLBACKS):
        if not overlapping(parse_subnet(text), taken):
            return text
    raise Unavailable(
        "No free subnet is left for the default network.",
        hint="set networks.default_subnet to a range that no route uses",
    )


def ula_pool(seed: str) -> Pool:
    """This node's own block of unique local IPv6 addresses, cut into /64: the global id is drawn from a seed that is the
    node's alone, so that two nodes that are joined one day do not share it."""
    digest = hashlib.sha256(b"insula/ula/" + seed.encode()).digest()
    block = ipaddress.IPv6Address(b"\xfd" + digest[:5] + bytes(10))
    return f"{block}/48", 64


def choose_subnet(pools: Iterable[Pool], taken: Collection[str], *, version: int = 4) -> str:
    """The first free piece of the pools. Raises Unavailable with Docker's sentence."""
    used = _blocks(taken, version)
    for block, prefix in pools:
        whole = ipaddress.ip_network(block)
        for subnet in _pieces(whole, prefix) if whole.version == version else ():
            if not any(other.overlaps(subnet) for other in used):
                return str(subnet)
    raise Unavailable(
        f"could not find an available, non-overlapping IPv{version} address pool among the defaults to assign to the network"
    )


def _pieces(block: Subnet, prefix: int) -> Iterator[Subnet]:
    return block.subnets(new_prefix=prefix) if prefix > block.prefixlen else iter((block,))


def choose_gateway(subnet: Subnet, wanted: str = "", *, taken: Collection[str] = (), ip_range: str = "") -> str:
    """The first address of the subnet (of the range, where there is one) that is not taken, or the wanted one. Raises Invalid."""
    if not wanted:
        return choose_address(subnet, taken, ip_range=ip_range)
    gateway = parse_address(wanted, field="gateway")
    if gateway not in subnet or _is_edge(subnet, gateway):
        raise Invalid(f"no matching subnet for gateway {wanted}: {subnet} has no such host address.", field="gateway")
    if str(gateway) in taken:
        raise Invalid(f"failed to allocate gateway ({wanted}): Address already in use", field="gateway")
    return str(gateway)


def _is_edge(subnet: Subnet, address: Address) -> bool:
    """The network's own address and, for IPv4, the broadcast one; IPv6's subnet-router anycast address is the first too."""
    return address == subnet.network_address or (subnet.version == 4 and address == subnet.broadcast_address)


def choose_address(subnet: Subnet, taken: Collection[str], *, ip_range: str = "", last: str = "") -> str:
    """The next free host address after `last`, within `ip_range` when given. Raises Unavailable."""
    within = parse_range(ip_range) if ip_range else subnet
    low = max(int(within.network_address), int(subnet.network_address) + 1)
    high = min(int(within.broadcast_address), int(subnet.broadcast_address) - (subnet.version == 4))
    family = socket.AF_INET if subnet.version == 4 else socket.AF_INET6
    used = {
        int.from_bytes(socket.inet_pton(family, text), "big") for text in taken
    }  # many: ipaddress takes 20 times as long
    after = int(ipaddress.ip_address(last)) + 1 if last else low
    start = after if low <= after <= high else low
    for number in (*range(start, min(high, start + len(used)) + 1), *range(low, min(high, low + len(used)) + 1)):
        if number not in used:
            return str(_address(number, subnet.version))
    raise Unavailable(
        f"no available IPv{subnet.version} addresses on this network's address pools: {ip_range or subnet}"
    )


def _address(number: int, version: int) -> Address:
    return ipaddress.IPv4Address(number) if version == 4 else ipaddress.IPv6Address(number)


def check_address(subnet: Subnet, address: str, taken: Collection[str]) -> str:
    """An address that was asked for. Raises Invalid, Conflict."""
    parsed = parse_address(address, version=subnet.version)
    if parsed not in subnet or _is_edge(subnet, parsed):
        raise Invalid(
            f"invalid address {address}: It does not belong to any of this network's subnets", field="address"
        )
    if str(parsed) in taken:
        raise Conflict(f"Address already in use: {address}", field="address")
    return str(parsed)


def mac_of(address: str) -> str:
    """The MAC of an IPv4 address."""
    return "02:42:" + ipaddress.IPv4Address(address).packed.hex(":")


def check_mac(text: str) -> str:
    """A MAC that was asked for, in lower case with colons. Raises Invalid."""
    mac = text.lower().replace("-", ":")
    if not re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", mac):
        raise Invalid(f"invalid MAC address: {text}", field="mac")
    if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise Invalid(f"{text} is a group address or zero and cannot belong to one interface.", field="mac")
    return mac
