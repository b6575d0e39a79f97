"""The driver options of networks and end points, as Docker names them. Pure.

Options that are not named here are kept and shown, and change nothing, as in dockerd.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from insula.errors import Invalid
from insula.networks.contract import Network
from insula.networks.ipam import parse_address

_DOCKER = "com.docker.network."
_BRIDGE = _DOCKER + "bridge."
NAME = _BRIDGE + "name"
MASQUERADE = _BRIDGE + "enable_ip_masquerade"
ICC = _BRIDGE + "enable_icc"
HOST_BINDING = _BRIDGE + "host_binding_ipv4"
INHIBIT = _BRIDGE + "inhibit_ipv4"
MTU = _DOCKER + "driver.mtu"
PREFIX = _DOCKER + "container_iface_prefix"
SYSCTLS = _DOCKER + "endpoint.sysctls"
IFNAME = _DOCKER + "endpoint.ifname"
_SOURCE = {4: _DOCKER + "host_ipv4", 6: _DOCKER + "host_ipv6"}
_MODE = {4: _BRIDGE + "gateway_mode_ipv4", 6: _BRIDGE + "gateway_mode_ipv6"}
_MODES = ("nat", "nat-unprotected", "routed", "isolated")
_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})  # what Go's strconv.ParseBool takes
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})
_INTERFACE = re.compile(r"(?!\.{1,2}\Z)[^\s/:\0]{1,15}")
_SYSCTL = re.compile(r"net\.(ipv4|ipv6|mpls)\.(conf|neigh)\.IFNAME\.[a-z0-9_]+")


def flag(options: Mapping[str, str], name: str, default: bool) -> bool:
    """A switch; empty is the default. Raises Invalid."""
    text = options.get(name, "")
    if not text:
        return default
    if text not in _TRUE | _FALSE:
        raise Invalid(f'failed to parse {name} value: "{text}" is neither true nor false', field=name)
    return text in _TRUE


def mtu(network: Network, default: int) -> int:
    """The MTU of a segment."""
    return int(network.options.get(MTU) or default)


def gateway_mode(network: Network, version: int) -> str:
    """nat: only published ports are reached from outside, behind the host's address. nat-unprotected: all ports are, at the
    end point's own address too. routed: no translation, published ports are open at the end point's own address. isolated: the
    bridge has no address."""
    return network.options.get(_MODE[version]) or "nat"


def has_gateway(network: Network, version: int) -> bool:
    """Whether the bridge has an address of its own."""
    inhibited = version == 4 and flag(network.options, INHIBIT, default=False)
    return not inhibited and gateway_mode(network, version) != "isolated"


def source_address(network: Network, version: int) -> str:
    """The address of the host that what leaves the segment comes from; empty for that of the interface it leaves by."""
    return network.options.get(_SOURCE[version], "")


def masquerades(network: Network, version: int) -> bool:
    """Whether what leaves the segment takes an address of the host's."""
    return (
        not network.internal
        and flag(network.options, MASQUERADE, default=True)
        and gateway_mode(network, version) in ("nat", "nat-unprotected")
    )


def check_bridge(wish: Network) -> None:
    """The options of a bridge network. Raises Invalid."""
    check_mtu(wish)
    for name in (ICC, MASQUERADE, INHIBIT):
        flag(wish.options, name, default=True)
    for version in (4, 6):
        mode = gateway_mode(wish, version)
        if mode not in _MODES:
            raise Invalid(
                f'invalid value for {_MODE[version]}: "{mode}" is not one of {", ".join(_MODES)}', field=_MODE[version]
            )
        if mode == "isolated" and not wish.internal:
            raise Invalid("gateway mode 'isolated' can only be used for an internal network", field=_MODE[version])
        if source := source_address(wish, version):
            parse_address(source, field=_SOURCE[version], version=version)
    if binding := wish.options.get(HOST_BINDING, ""):
        parse_address(binding, field=HOST_BINDING)
    prefix = wish.options.get(PREFIX, "")
    if prefix:
        check_interface(prefix + "0", PREFIX)


def check_mtu(wish: Network) -> None:
    """Raises Invalid."""
    text = wish.options.get(MTU, "")
    if text and not (text.isascii() and text.isdecimal() and 68 <= int(text) <= 65535):
        raise Invalid(f"{text} is not an MTU: 68 to 65535", field=MTU)


def check_interface(name: str, field: str) -> str:
    """A name that the kernel takes for an interface. Raises Invalid."""
    if not _INTERFACE.fullmatch(name):
        raise Invalid(f"{name} is not an interface name: at most 15 characters, without space, / and :", field=field)
    return name


def sysctls(options: Mapping[str, str]) -> list[tuple[str, str]]:
    """The settings of one interface that an end point asks for: names with dots, `IFNAME` in place of the interface's.
    Raises Invalid for anything that is not of one interface."""
    found = []
    for each in filter(None, options.get(SYSCTLS, "").split(",")):
        name, equals, value = each.strip().partition("=")
        if not equals or not _SYSCTL.fullmatch(name):
            raise Invalid(
                f'unable to determine driver options: "{each}" is not a setting such as net.ipv4.conf.IFNAME.log_martians=1',
                field=SYSCTLS,
            )
        found.append((name, value))
    return found
