"""The bridge network: a Linux bridge with a subnet of its own, masqueraded behind the host unless it is internal."""

from __future__ import annotations

import re
import secrets

import msgspec

from insula.errors import Invalid, Unsupported
from insula.networks import ipam
from insula.networks.contract import Network
from insula.networks.type import View

_DOCKER = "com.docker.network."
NAME_OPTION = _DOCKER + "bridge.name"
MASQUERADE_OPTION = _DOCKER + "bridge.enable_ip_masquerade"
ICC_OPTION = _DOCKER + "bridge.enable_icc"
HOST_IP_OPTION = _DOCKER + "bridge.host_binding_ipv4"
MTU_OPTION = _DOCKER + "driver.mtu"


class Bridge:
    """The type."""

    driver = "bridge"
    summary = "a segment of its own on this node, behind the host's address"
    has_segment = True

    def complete(self, wish: Network, view: View) -> Network:
        """Subnet, gateway and interface name."""
        if wish.ipv6:
            raise Unsupported("IPv6 networks are not supported yet.", field="ipv6")
        _check_options(wish)
        subnet = ipam.parse_subnet(_choose_subnet(wish, view))
        if wish.ip_range and not ipam.Subnet(wish.ip_range, strict=False).subnet_of(subnet):
            raise Invalid(f"The range {wish.ip_range} does not lie in the subnet {subnet}.", field="ip_range")
        bridge = wish.bridge or wish.options.get(NAME_OPTION, "") or f"{view.prefix}b{secrets.token_hex(4)}"
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", bridge) or bridge in (".", ".."):
            raise Invalid(f"{bridge} is not an interface name: at most 15 of A-Z a-z 0-9 _ . -", field="bridge")
        gateway = ipam.choose_gateway(subnet, wish.gateway)
        return msgspec.structs.replace(wish, subnet=str(subnet), gateway=gateway, bridge=bridge)

    def refusal(self, network: Network) -> str:
        """Never asked."""
        return f"{network.name} takes no end points."


def mtu_of(network: Network, default: int) -> int:
    """The MTU of a segment."""
    return int(network.options.get(MTU_OPTION) or default)


def _check_options(wish: Network) -> None:
    mtu = wish.options.get(MTU_OPTION, "")
    if mtu and not (mtu.isdecimal() and 68 <= int(mtu) <= 65535):
        raise Invalid(f"{mtu} is not an MTU: 68 to 65535", field=MTU_OPTION)
    if wish.options.get(ICC_OPTION, "true").lower() in ("false", "0"):
        raise Unsupported(
            "Networks without traffic between their own containers are not supported; give each its own network.",
            field=ICC_OPTION,
        )
    if wish.ip_range:
        ipam.parse_subnet(wish.ip_range, field="ip_range")
    if not wish.subnet and (wish.gateway or wish.ip_range):
        raise Invalid("A gateway or an address range needs a subnet.", field="subnet")


def _choose_subnet(wish: Network, view: View) -> str:
    """A wished subnet must not meet another network's nor one that the host is attached to; a chosen one meets no route."""
    ours = [network.subnet for network in view.networks if network.subnet]
    if not wish.subnet:
        return ipam.choose_subnet(view.pools, [*ours, *(route.destination for route in view.routes)])
    subnet = ipam.parse_subnet(wish.subnet)
    if ipam.overlapping(subnet, ours):
        raise Invalid(f"Pool overlaps with other one on this address space: {subnet}", field="subnet")
    if on_link := ipam.overlapping(subnet, [r.destination for r in view.routes if not r.gateway]):
        raise Invalid(f"The subnet {subnet} overlaps {on_link}, which this host is attached to.", field="subnet")
    return wish.subnet


TYPE = Bridge()
