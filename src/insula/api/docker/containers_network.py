"""A container's networks and ports in Docker's words, as ours. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import cast

import msgspec

from insula.api.docker.containers_limits import conflict, refuse
from insula.api.docker.words import ContainerWords, EndpointWords
from insula.engine.contract import Instance
from insula.errors import Invalid
from insula.model.instance import Link, NetworkAttachment, PortMapping, Protocol

BRIDGE = "bridge"  # what Docker calls the engine's network `default`


def engine_name(name: str) -> str:
    """The engine's name of a network that a client names."""
    return "default" if name in ("default", BRIDGE) else name


def docker_name(name: str) -> str:
    """And back."""
    return BRIDGE if name == "default" else name


def network_mode(words: ContainerWords, instances: Mapping[str, Instance]) -> str:
    """The engine's word for it."""
    mode = words.host_config.network_mode
    if words.network_disabled and mode in ("", "default"):
        return "none"
    if mode in ("", "default", BRIDGE):
        return "default"
    kind, colon, name = mode.partition(":")
    if kind == "container" and colon:
        _refuse_own_network(words)
        return f"instance:{instances[name].id}"
    if colon:
        raise Invalid(f"invalid network mode: {mode}", field="HostConfig.NetworkMode")
    return mode


def parse_link(text: str) -> tuple[str, str]:
    """`NAME[:ALIAS]` in two, or what inspect shows of one: `/NAME:/OWNER/ALIAS`. Raises Invalid."""
    name, _, alias = text.partition(":")
    if not name:
        raise Invalid("empty string specified for links", field="HostConfig.Links")
    if ":" in alias:
        raise Invalid(f"bad format for links: {text}", field="HostConfig.Links")
    if name.startswith("/"):
        return name[1:], alias.rpartition("/")[2] or name[1:]
    return name, alias or name


def links_of(words: ContainerWords, mode: str, instances: Mapping[str, Instance]) -> tuple[Link, ...]:
    """Links on the default network, whose targets exist, and on user-made ones. Raises Invalid."""
    given = [parse_link(text) for text in words.host_config.links]
    why = "networking can't be used with links. This would result in undefined behavior"
    if given and mode == "host":
        raise conflict("HostConfig.Links", f"host type {why}")
    found = []
    for name, alias in given if mode != "none" else ():
        if mode != "default":
            found.append(Link(target=name, alias=alias, network=mode))
            continue
        if instances[name].config.network_mode == "host":
            raise conflict("HostConfig.Links", f"host type {why}")
        found.append(Link(target=instances[name].id, alias=alias))
    for network, endpoint in words.networking_config.endpoints_config.items():
        if engine_name(network) != "default":
            pairs = (parse_link(text) for text in endpoint.links)
            found += [Link(target=name, alias=alias, network=engine_name(network)) for name, alias in pairs]
    return tuple(dict.fromkeys(found))


def _refuse_own_network(words: ContainerWords) -> None:
    host = words.host_config
    given = (
        (words.hostname, "hostname and the network mode"),
        (host.links, "container type network can't be used with links. This would result in undefined behavior"),
        (host.dns, "dns and the network mode"),
        (host.extra_hosts, "custom host-to-IP mapping and the network mode"),
        (host.port_bindings or host.publish_all_ports, "port publishing and the container type network mode"),
        (words.exposed_ports, "port exposing and the container type network mode"),
        (words.mac_address, "mac-address and the network mode"),
    )
    for value, message in given:
        if value:
            raise conflict("HostConfig.NetworkMode", message)


def attachments(words: ContainerWords, mode: str) -> tuple[NetworkAttachment, ...]:
    """What was said of each network; the primary one's MAC may stand in the old place too."""
    if mode in ("none", "host") or mode.startswith("instance:"):
        return ()
    found: dict[str, NetworkAttachment] = {}
    for name, endpoint in words.networking_config.endpoints_config.items():
        network = engine_name(name)
        found[network] = attachment(network, endpoint)
    if words.mac_address and not (found.get(mode) and found[mode].mac):
        first = found.get(mode) or NetworkAttachment(network=mode)
        found[mode] = msgspec.structs.replace(first, mac=_mac(words.mac_address))
    return tuple(found.values())


def attachment(network: str, endpoint: EndpointWords) -> NetworkAttachment:
    """One network's part. Raises Invalid and Unsupported."""
    asked = endpoint.ipam_config
    if asked.link_local_ips:
        raise refuse("IPAMConfig.LinkLocalIPs", "link-local addresses are chosen by the kernel; leave them out")
    address = _address(asked.ipv4_address, 4)
    address6 = _address(asked.ipv6_address, 6)
    if network == "default" and (address or address6):
        raise Invalid("user specified IP address is supported on user defined networks only")
    return NetworkAttachment(
        network=network,
        aliases=() if network == "default" else tuple(endpoint.aliases),
        address=address,
        mac=_mac(endpoint.mac_address),
        address6=address6,
        priority=endpoint.gw_priority,
        options=endpoint.driver_opts,
        links=tuple(parse_link(text) for text in endpoint.links) if network != "default" else (),
    )


def _address(text: str, version: int) -> str:
    if not text:
        return ""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        address = None
    if address is None or address.version != version or "%" in text:
        raise Invalid(f"invalid IPv{version} address: {text}", field=f"IPAMConfig.IPv{version}Address")
    return str(address)


def _mac(text: str) -> str:
    clean = text.lower().replace("-", ":")
    parts = clean.split(":")
    if text and not (
        len(parts) == 6 and all(len(part) == 2 and set(part) <= set("0123456789abcdef") for part in parts)
    ):
        raise Invalid(f"invalid MAC address: {text}", field="MacAddress")
    return clean


def ports_of(words: ContainerWords, image_ports: Sequence[str]) -> tuple[PortMapping, ...]:
    """What is published: the bindings, and with `PublishAllPorts` every exposed port that has none."""
    host = words.host_config
    found = [
        mapping
        for port, bindings in host.port_bindings.items()
        for mapping in _published(port, [(each.host_ip, each.host_port) for each in bindings])
    ]
    for port in words.exposed_ports:
        parse_port(port)
    if host.publish_all_ports:
        bound = {(each.container_port, each.protocol) for each in found}
        exposed = dict.fromkeys(parse_port(port) for port in (*words.exposed_ports, *image_ports))
        found += [
            PortMapping(container_port=port, protocol=kind) for port, kind in exposed if (port, kind) not in bound
        ]
    return tuple(found)


def _published(port: str, bindings: Sequence[tuple[str, str]]) -> list[PortMapping]:
    number, protocol = parse_port(port)
    found = []
    for ip, text in bindings:
        first, last = _host_ports(text)
        found.append(
            PortMapping(
                container_port=number, protocol=protocol, host_ip=_host_ip(ip), host_port=first, last_host_port=last
            )
        )
    return found


def parse_port(text: str) -> tuple[int, Protocol]:
    """`80/tcp`, `80`. Raises Invalid."""
    number, _, protocol = text.partition("/")
    protocol = (protocol or "tcp").lower()
    if not (number.isascii() and number.isdecimal() and 0 < int(number) < 65536):
        raise Invalid(f'invalid port specification: "{text}"', field="ExposedPorts")
    if protocol not in ("tcp", "udp", "sctp"):
        raise Invalid(
            f"invalid protocol in the port specification {text!r}: use tcp, udp or sctp", field="ExposedPorts"
        )
    return int(number), cast(Protocol, protocol)


def _host_ports(text: str) -> tuple[int, int]:
    """One port (0: any), or the first and the last of those to choose from; the last is 0 for a single one."""
    first, dash, last = text.partition("-")
    if not text:
        return 0, 0
    numbers = [
        int(each) if each.isascii() and each.isdecimal() else -1 for each in ((first, last) if dash else (first,))
    ]
    if not all(0 <= number <= 65535 for number in numbers) or (dash and not 0 < numbers[0] <= numbers[1]):
        raise Invalid(f'invalid port specification: "{text}"', field="PortBindings.HostPort")
    if dash and numbers[0] != numbers[1]:
        return numbers[0], numbers[1]
    return numbers[0], 0


def _host_ip(text: str) -> str:
    if not text:
        return ""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        address = None
    if address is None or "%" in text:
        raise Invalid(f"invalid IP address: {text}", field="PortBindings.HostIp")
    return str(address)
