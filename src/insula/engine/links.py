"""Links: an instance knows another by a name of its own choice, in /etc/hosts and, on the default network, in its environment.

The older way of Docker ("Legacy container links" in its documentation), kept by Compose. The file follows the other's address:
it is written again when that one starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from insula.engine.parts import Parts
from insula.engine.resident import Resident
from insula.engine.resolve import hostname_of
from insula.errors import Invalid, NotFound
from insula.images.contract import ImageConfig
from insula.model.instance import Link
from insula.networks.contract import Endpoint

DEFAULT = "default"
_NOT_PASSED = ("HOME", "PATH")
Port = tuple[int, str]


def linked(parts: Parts, resident: Resident) -> Iterator[tuple[Link, Resident]]:
    """Its links with the instances that they lead to; what is not there is left out."""
    for link in resident.entry.config.links:
        try:
            yield link, parts.find(link.target)
        except (NotFound, Invalid):
            continue


def linking(parts: Parts, target: Resident) -> list[Resident]:
    """The running instances that have a link to one."""
    candidates = [each for each in tuple(parts.residents.values()) if each.running and each.entry.config.links]
    return [each for each in candidates if any(found is target for _, found in linked(parts, each))]


# --- /etc/hosts -----------------------------------------------------------------------------------------------------


def host_lines(parts: Parts, resident: Resident) -> list[str]:
    """`NAMES=ADDRESS` for each link to an instance that has an address now."""
    lines = []
    for link, target in linked(parts, resident):
        names = dict.fromkeys((link.alias, _hostname(parts, target), target.entry.name))
        for endpoint in _shared(resident, target, link):
            addresses = (endpoint.address, endpoint.address6)
            lines += [f"{' '.join(names)}={address}" for address in addresses if address]
    return lines


def _hostname(parts: Parts, target: Resident) -> str:
    return hostname_of(target.entry.config, target.id, host=parts.hostname)


def _shared(resident: Resident, target: Resident, link: Link) -> list[Endpoint]:
    """Where the target is on the network of the link: the one that both are on."""
    mine = {each.network for each in resident.endpoints}
    return [each for each in target.endpoints if each.network in mine][:1] if target.running else []


# --- environment ----------------------------------------------------------------------------------------------------


def environment(parts: Parts, resident: Resident, *, strict: bool = False) -> tuple[str, ...]:
    """The variables of all links on the default network. With `strict` one to an instance that does not run, or that is not on
    that network, raises Invalid with the Docker Engine's sentence."""
    found: list[str] = []
    for link in resident.entry.config.links:
        if link.network != DEFAULT:
            continue
        try:
            target: Resident | None = parts.find(link.target)
        except (NotFound, Invalid):
            target = None
        full = f"/{resident.entry.name}/{link.alias}"
        if target is None or not target.running:
            if strict:
                name = target.entry.name if target else link.target
                raise Invalid(f"Cannot link to a non running container: /{name} AS {full}", field="links")
            continue
        address = next((each.address for each in target.endpoints if each.address), "")
        if strict and not address:
            raise Invalid(f"Cannot link to /{target.entry.name}, as it does not belong to the default network")
        image = target.image.config if target.image else ImageConfig()
        found += variables(link.alias, full, address, _ports(target, image), _own_variables(target, image))
    return tuple(found)


def _ports(target: Resident, image: ImageConfig) -> list[Port]:
    config = target.entry.config
    texts = (*image.exposed_ports, *config.exposed_ports)
    exposed = [(int(number), kind or "tcp") for number, _, kind in (text.partition("/") for text in texts)]
    return [*exposed, *((port.container_port, port.protocol) for port in config.ports)]


def _own_variables(target: Resident, image: ImageConfig) -> list[str]:
    mine = {entry.partition("=")[0] for entry in target.entry.config.env}
    return [
        *target.entry.config.env,
        *(entry for entry in image.env if entry.partition("=")[0] not in mine),
    ]


def variables(alias: str, name: str, address: str, ports: Sequence[Port], env: Sequence[str]) -> list[str]:
    """The environment of one link: its first port, every range and every port, its name, and the other's own variables. Pure;
    names as the Docker documentation of links lists them."""
    prefix = alias.upper().replace("-", "_")
    ordered = sorted(set(ports), key=lambda port: (port[1] != "tcp", port))
    found = []
    if ordered:
        found.append(f"{prefix}_PORT={_url(address, ordered[0])}")
    for first, last in ranges(ordered):
        start, end = (f"{prefix}_PORT_{first[0]}_{first[1].upper()}_{word}" for word in ("START", "END"))
        port_start, port_end = (f"{prefix}_PORT_{first[0]}_{first[1].upper()}_PORT_{word}" for word in ("START", "END"))
        found += [f"{start}={_url(address, first)}", f"{port_start}={first[0]}"]
        found += [f"{end}={_url(address, last)}", f"{port_end}={last[0]}"]
    for port in ordered:
        whole = f"{prefix}_PORT_{port[0]}_{port[1].upper()}"
        found += [f"{whole}={_url(address, port)}", f"{whole}_ADDR={address}"]
        found += [f"{whole}_PORT={port[0]}", f"{whole}_PROTO={port[1]}"]
    found.append(f"{prefix}_NAME={name}")
    for entry in env:
        key, equals, value = entry.partition("=")
        if equals and key not in _NOT_PASSED:
            found.append(f"{prefix}_ENV_{key}={value}")
    return found


def ranges(ports: Sequence[Port]) -> list[tuple[Port, Port]]:
    """The first and the last of ports that follow each other, where there are at least two."""
    found: list[tuple[Port, Port]] = []
    begin = 0
    for index in range(1, len(ports) + 1):
        before = ports[index - 1]
        if index < len(ports) and ports[index] == (before[0] + 1, before[1]):
            continue
        if index - begin > 1:
            found.append((ports[begin], before))
        begin = index
    return found


def _url(address: str, port: Port) -> str:
    return f"{port[1]}://{address}:{port[0]}"
