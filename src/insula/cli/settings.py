"""The settings file: one row per setting, from which reading, checking, help and documentation follow."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from insula.errors import Invalid
from insula.images.registries import CERTIFICATES, Registries, check


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What /etc/insula/config.yaml may say. Every setting has a default; an empty file is fine."""

    node_name: str = ""
    api_address: str = "127.0.0.1"
    api_port: int = -1
    subnet: str = "10.88.0.0/16"
    subnet6: str = ""
    service_subnet: str = "10.96.0.0/16"
    socket_group: str = "insula"
    docker_hosts: tuple[str, ...] = ()
    docker_names: tuple[str, ...] = ()
    docker_tls: bool = True
    docker_tls_ca: str = ""
    docker_tls_cert: str = ""
    docker_tls_key: str = ""
    docker_plain_tcp: bool = False
    insecure_registries: tuple[str, ...] = ()
    registry_mirrors: tuple[str, ...] = ()
    registry_certificates: tuple[str, ...] = CERTIFICATES
    max_downloads: int = 3
    max_uploads: int = 5
    max_download_attempts: int = 5
    http_proxy: str = ""
    https_proxy: str = ""
    no_proxy: str = ""
    log_level: str = "info"


HELP: dict[str, str] = {
    "node_name": "this node's name in the cluster; the host name when empty",
    "api_address": "the address that the Kubernetes API listens on",
    "api_port": "its port; 0 takes any free one, -1 means 6443, or any free one with --root",
    "subnet": "IPv4 addresses of the default network; another free range is taken when the host already routes it",
    "subnet6": "IPv6 addresses of the default network, `auto` for a block of this machine's own; none when empty",
    "service_subnet": "virtual addresses of Kubernetes Services",
    "socket_group": "the group that may use the Docker socket besides root",
    "docker_hosts": "TCP addresses that the Docker door listens on besides its socket, as tcp://HOST[:PORT]",
    "docker_names": "further names and addresses that clients call this machine by, for the door's certificate",
    "docker_tls": "TLS with client certificates on those addresses; `false` works on loopback only",
    "docker_tls_ca": "the authority of clients' certificates, a file; empty takes Insula's own (`insula docker cert`)",
    "docker_tls_cert": "the certificate that the door shows, with docker_tls_ca",
    "docker_tls_key": "its key",
    "docker_plain_tcp": "lets `docker_tls: false` go beyond loopback: everybody who reaches the port is root here",
    "insecure_registries": "registries that may speak plain HTTP or show any certificate: host[:port] or an address range",
    "registry_mirrors": "asked before the registry: a URL stands before Docker Hub, HOST=URL before another registry",
    "registry_certificates": "folders with HOST[:PORT]/*.crt (authorities) and *.cert with *.key (what we show to it)",
    "max_downloads": "layers fetched at once, by all pulls together",
    "max_uploads": "layers sent at once, by all pushes together",
    "max_download_attempts": "how often a layer whose transfer breaks off is tried",
    "http_proxy": "the proxy for plain HTTP; empty takes HTTP_PROXY of the environment",
    "https_proxy": "the proxy for registries; empty takes HTTPS_PROXY of the environment",
    "no_proxy": "hosts, domains and address ranges without a proxy, with commas; empty takes NO_PROXY",
    "log_level": "debug, info, warning or error",
}


def load(path: Path) -> Settings:
    """Read the file; an absent one gives the defaults. Raises Invalid naming the file and the setting."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return Settings()
    import yaml  # slow to load, and most machines have no such file

    try:
        settings = msgspec.convert(yaml.safe_load(text) or {}, Settings)
        _check(settings)
    except (yaml.YAMLError, msgspec.ValidationError, ValueError, Invalid) as fault:
        raise Invalid(
            f"{path} is not a valid settings file: {fault}", hint="`insula explain settings` lists them"
        ) from fault
    return settings


def _check(settings: Settings) -> None:
    if settings.subnet6 not in ("", "auto"):
        ipaddress.IPv6Network(settings.subnet6)
    for name in ("subnet", "service_subnet"):
        ipaddress.IPv4Network(getattr(settings, name))
    ipaddress.ip_address(settings.api_address)
    if not -1 <= settings.api_port <= 65535:
        raise ValueError(f"api_port {settings.api_port} is not a port; it must be -1 to 65535")
    check(registries(settings))
    own = (settings.docker_tls_ca, settings.docker_tls_cert, settings.docker_tls_key)
    if any(own) and not all(own):
        raise ValueError("docker_tls_ca, docker_tls_cert and docker_tls_key go together")
    if settings.log_level not in ("debug", "info", "warning", "error"):
        raise ValueError(f"log_level {settings.log_level!r} must be debug, info, warning or error")


def registries(settings: Settings) -> Registries:
    """What the image store has to know of registries."""
    return Registries(
        insecure=settings.insecure_registries,
        mirrors=settings.registry_mirrors,
        certificates=settings.registry_certificates,
        downloads=settings.max_downloads,
        uploads=settings.max_uploads,
        attempts=settings.max_download_attempts,
        http_proxy=settings.http_proxy,
        https_proxy=settings.https_proxy,
        no_proxy=settings.no_proxy,
    )


def node_name(settings: Settings) -> str:
    """The node's name: as set, or the host's name in lower case."""
    return settings.node_name or socket.gethostname().lower()


def api_port(settings: Settings, root: str) -> int:
    """The port to ask for: 6443 for the machine's own Insula, any free one below a root."""
    if settings.api_port >= 0:
        return settings.api_port
    return 0 if root else 6443


def rows() -> list[dict[str, Any]]:
    """Name, default and meaning of every setting."""
    defaults = msgspec.to_builtins(Settings())
    return [{"name": name, "default": defaults[name], "help": text} for name, text in HELP.items()]
