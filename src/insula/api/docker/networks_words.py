"""Networks in Docker's words: the bodies that clients send, read into ours, and ours as they are shown. Pure.

What can be wrong with an address range in itself is told in the sentences that dockerd has for it since API 1.44: all of them
at once, one to a line.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import field

from insula import clock
from insula.api.docker.containers_network import docker_name
from insula.api.docker.refused import NO_SWARM
from insula.api.docker.words import EndpointWords, Words
from insula.errors import Forbidden, Invalid, NotFound, Unavailable, Unsupported
from insula.networks.contract import AddressRange, Network
from insula.networks.ranges import ranges_of

_PREDEFINED = ("bridge", "host", "none", "default")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_. -]*\Z")
_BRIDGE = "com.docker.network.bridge."
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


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


class ConfigFromWords(Words, frozen=True, kw_only=True):
    """`ConfigFrom`."""

    network: str = ""


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
    config_from: ConfigFromWords = ConfigFromWords()
    options: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)


class ConnectWords(Words, frozen=True, kw_only=True):
    """The body of connect and disconnect."""

    container: str = ""
    endpoint_config: EndpointWords = EndpointWords()
    force: bool = False


# --- showing ------------------------------------------------------------------------------------------------------


def network_words(network: Network, members: Mapping[str, Any]) -> dict[str, Any]:
    """As dockerd shows a network."""
    return {
        "Name": docker_name(network.name),
        "Id": network.id,
        "Created": network.created or "0001-01-01T00:00:00Z",
        "Scope": "local",
        "Driver": driver_name(network),
        "EnableIPv4": True,
        "EnableIPv6": network.ipv6,
        "IPAM": {
            "Driver": "default",
            "Options": network.ipam_options or None,
            "Config": [_range_words(each) for each in ranges_of(network)],
        },
        "Internal": network.internal,
        "Attachable": network.attachable and not network.builtin,
        "Ingress": False,
        "ConfigFrom": {"Network": network.config_from},
        "ConfigOnly": network.config_only,
        "Containers": members,
        "Options": _default_options(network) if network.builtin and network.bridge else network.options,
        "Labels": network.labels,
    }


def driver_name(network: Network) -> str:
    """Docker's name of the driver."""
    return "null" if network.driver == "none" else network.driver


def _range_words(each: AddressRange) -> dict[str, Any]:
    words = {
        "Subnet": each.subnet,
        "IPRange": each.ip_range,
        "Gateway": each.gateway,
        "AuxiliaryAddresses": each.reserved,
    }
    return {name: value for name, value in words.items() if value}


def _default_options(network: Network) -> dict[str, str]:
    """What dockerd shows of its own bridge: programs find the interface by it."""
    return {
        _BRIDGE + "default_bridge": "true",
        _BRIDGE + "enable_icc": "true",
        _BRIDGE + "enable_ip_masquerade": "true",
        _BRIDGE + "host_binding_ipv4": "0.0.0.0",  # noqa: S104 - shown, not bound
        _BRIDGE + "name": network.bridge,
        **network.options,
    }


# --- reading ------------------------------------------------------------------------------------------------------


def network_of(words: NetworkWords) -> Network:
    """Raises Invalid, Forbidden, NotFound, Unsupported, Unavailable."""
    if words.name in _PREDEFINED:
        raise Forbidden(f"operation is not permitted on predefined {words.name} network ")
    if not words.name.strip():
        raise Invalid(f"invalid name: {words.name}", field="Name")
    if not _NAME.match(words.name):
        raise Invalid(
            f"invalid network name: {words.name!r}, only [a-zA-Z0-9][a-zA-Z0-9_. -] are allowed", field="Name"
        )
    _refuse(words)
    ipv6 = bool(words.enable_ipv6)
    faults = [fault for each in words.ipam.config for fault in _faults(each, ipv6=ipv6)]
    if faults:
        raise Invalid("\n".join(("invalid network config:", *faults)), field="IPAM.Config")
    return Network(
        id="",
        name=words.name,
        driver=_driver(words),
        ranges=tuple(_range(each) for each in words.ipam.config if ipv6 or ":" not in each.subnet),
        ipam_options=words.ipam.options,
        ipv6=ipv6,
        internal=words.internal,
        attachable=words.attachable,
        created=clock.rfc3339_nano(clock.now()),
        labels=words.labels,
        options=words.options,
        config_only=words.config_only,
        config_from=words.config_from.network,
    )


def _driver(words: NetworkWords) -> str:
    """Ours. One that only lends its settings has none, which Docker calls null."""
    if words.driver == "none":
        raise NotFound('plugin "none" not found', kind="plugin", name="none")
    if words.config_only or words.driver == "null":
        return "none"
    return words.driver or "bridge"


def _refuse(words: NetworkWords) -> None:
    if words.ingress:
        raise Forbidden("Ingress network can only be global scope network", field="Ingress")
    if words.scope == "swarm":
        raise Forbidden("cannot create a swarm scoped network when swarm is not active", field="Scope")
    if words.driver == "overlay" or words.scope not in ("", "local"):
        raise Unavailable(NO_SWARM, field="Driver")
    if words.enable_ipv4 is False:
        raise Unsupported("a network without IPv4 is not supported: leave EnableIPv4 out", field="EnableIPv4")
    if words.ipam.driver not in ("", "default", "null"):
        raise NotFound(f'plugin "{words.ipam.driver}" not found', kind="plugin", name=words.ipam.driver)
    if words.ipam.driver == "null" and not words.config_only:
        raise Unsupported("a network without addresses is not supported: leave IPAM.Driver out", field="IPAM.Driver")
    if words.config_only and words.config_from.network:
        raise Forbidden("a configuration network cannot depend on another configuration network")


def _range(words: RangeWords) -> AddressRange:
    return AddressRange(
        subnet=words.subnet,
        gateway=str(ipaddress.ip_address(words.gateway)) if words.gateway else "",
        ip_range=words.ip_range,
        reserved=words.auxiliary_addresses,
    )


def _faults(words: RangeWords, *, ipv6: bool) -> Iterator[str]:
    subnet = _block(words.subnet)
    if subnet is None:
        yield f"invalid subnet {words.subnet}: invalid CIDR block notation"
        return
    if subnet.version == 6 and not ipv6:
        return
    if (clean := str(subnet)) != _canonical(words.subnet):
        yield f"invalid subnet {words.subnet}: it should be {clean}"
    if words.ip_range:
        yield from (f"invalid ip-range {words.ip_range}: {why}" for why in _range_faults(words.ip_range, subnet))
    if words.gateway and (why := _address_fault(words.gateway, subnet)):
        yield f"invalid gateway {words.gateway}: {why}"
    for name, address in words.auxiliary_addresses.items():
        if why := _address_fault(address, subnet):
            yield f"invalid auxiliary address {name}: {why}"


def _block(text: str) -> IpNetwork | None:
    address, slash, length = text.partition("/")
    whole = address and slash and length.isascii() and length.isdecimal() and "%" not in address
    try:
        return ipaddress.ip_network(text, strict=False) if whole else None
    except ValueError:
        return None


def _canonical(text: str) -> str:
    address, _, length = text.partition("/")
    return f"{ipaddress.ip_address(address)}/{int(length)}"


def _range_faults(text: str, subnet: IpNetwork) -> Iterator[str]:
    within = _block(text)
    if within is None:
        yield "invalid CIDR block notation"
    elif within.version != subnet.version:
        yield f"parent subnet is an IPv{subnet.version} block"
    elif within.prefixlen < subnet.prefixlen:
        yield f"CIDR block is bigger than its parent subnet {subnet}"
    elif str(within) != _canonical(text):
        yield f"it should be {within}"
    elif not within.overlaps(subnet):
        yield f"parent subnet {subnet} doesn't contain ip-range"


def _address_fault(text: str, subnet: IpNetwork) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return "invalid address"
    if "%" in text:
        return "invalid address"
    if address.version != subnet.version:
        return f"parent subnet is an IPv{subnet.version} block"
    return "" if address in subnet else f"parent subnet {subnet} doesn't contain this address"
