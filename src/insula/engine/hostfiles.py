"""The texts of /etc/hosts, /etc/hostname and /etc/resolv.conf that an instance sees. Pure; laid out as the Docker Engine does."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

_LOCAL = (
    "127.0.0.1\tlocalhost\n"
    "::1\tlocalhost ip6-localhost ip6-loopback\n"
    "fe00::\tip6-localnet\n"
    "ff00::\tip6-mcastprefix\n"
    "ff02::1\tip6-allnodes\n"
    "ff02::2\tip6-allrouters\n"
)
HOST_GATEWAY = "host-gateway"


def hosts_text(
    *,
    hostname: str,
    domainname: str = "",
    addresses: Sequence[str] = (),
    extra_hosts: Sequence[str] = (),
    gateway: str = "",
    base: str | None = None,
) -> str:
    """`extra_hosts` are `name:address` or `name=address`; `host-gateway` stands for the host as seen from inside. `base`
    replaces the local lines (the host's own file, for an instance in the host's network)."""
    full = f"{hostname}.{domainname} {hostname}" if domainname else hostname
    lines = [f"{address}\t{full}\n" for address in addresses if address]
    return (_LOCAL if base is None else base) + "".join(_extra(extra_hosts, gateway)) + "".join(lines)


def _extra(extra_hosts: Sequence[str], gateway: str) -> list[str]:
    lines = []
    for entry in extra_hosts:
        name, _, address = entry.partition("=") if "=" in entry else entry.partition(":")
        address = address.strip("[]")
        if address == HOST_GATEWAY:
            address = gateway
        if name and address:
            lines.append(f"{address}\t{name}\n")
    return lines


def resolv_text(
    host: str,
    *,
    nameservers: Sequence[str] = (),
    search: Sequence[str] = (),
    options: Sequence[str] = (),
    fallback: Sequence[str] = (),
    keep_local: bool = False,
    embedded: bool = False,
) -> str:
    """The host's resolv.conf(5) with what was asked put in place. A host's resolver on the loopback cannot be reached from
    another network namespace: such lines go, unless `keep_local`, and `fallback` stands in when none is left. Our own server
    (`embedded`) knows names of one label, so it is asked for a name as it is before any search domain is tried."""
    found, lines_search, lines_options = _parse(host)
    if not keep_local:
        found = [server for server in found if not _is_local(server)] or list(fallback)
    servers = list(nameservers) or found
    wanted_search = [] if list(search) == ["."] else (list(search) or lines_search)
    wanted_options = list(options) or lines_options
    if embedded and not any(option.startswith("ndots:") for option in wanted_options):
        wanted_options = [*wanted_options, "ndots:0"]
    text = "".join(f"nameserver {server}\n" for server in servers)
    if wanted_search:
        text += f"search {' '.join(wanted_search)}\n"
    if wanted_options:
        text += f"options {' '.join(wanted_options)}\n"
    return text


def _parse(text: str) -> tuple[list[str], list[str], list[str]]:
    servers: list[str] = []
    search: list[str] = []
    options: list[str] = []
    for line in text.splitlines():
        words = line.split("#", 1)[0].split(";", 1)[0].split()
        if len(words) < 2:
            continue
        match words[0]:
            case "nameserver":
                servers.append(words[1])
            case "search" | "domain":
                search = words[1:]
            case "options":
                options += words[1:]
            case _:
                continue
    return servers, search, options


def _is_local(server: str) -> bool:
    try:
        return ipaddress.ip_address(server.partition("%")[0]).is_loopback
    except ValueError:
        return True
