"""The Docker door beyond this machine: what the settings say of it, its authority, and certificates for its clients.

The authority is one of its own, not that of the Kubernetes API: whoever shows a certificate of this one is root here.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import ssl
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path

from insula.api.docker.remote import Address, Remote, own_context, parse_address
from insula.cli.issuer import Issuer, write
from insula.cli.paths import Paths
from insula.cli.settings import Settings
from insula.errors import Invalid
from insula.host.netlink import Rtnl
from insula.tasks import in_thread

_ANY = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
log = logging.getLogger(__name__)
PLAIN = "the Docker door listens on {} WITHOUT encryption and asks nobody who they are: whoever reaches it is root here"


def addresses(settings: Settings) -> list[Address]:
    """Where to listen. Raises Invalid for plain TCP beyond this machine that nobody asked for by name."""
    found = [parse_address(host, tls=settings.docker_tls) for host in settings.docker_hosts]
    for address in found if not settings.docker_tls and not settings.docker_plain_tcp else ():
        if not is_loopback(address.host):
            raise Invalid(
                f"{address} would open the Docker door to the network without encryption: whoever reaches it is root here",
                hint="leave docker_tls on; or set docker_plain_tcp: true if that is really wanted",
                field="docker_tls",
            )
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def authority(paths: Paths) -> Issuer:
    """The authority of the door's clients, made when it is missing. Blocks."""
    return Issuer(paths.pki / "docker")


def names_of(settings: Settings) -> tuple[str, ...]:
    """What clients may call the server: this machine's names and addresses, and those that the settings add."""
    host = socket.gethostname()
    names = (host,) if host and host.isascii() and "_" not in host else ()
    with Rtnl() as netlink:
        own = [address.partition("/")[0] for _, address in netlink.addresses()]
    hosts = [parse_address(host).host for host in settings.docker_hosts]
    given = (host for host in hosts if host not in _ANY)
    wanted = ("localhost", "127.0.0.1", "::1", *names, *own, *given, *settings.docker_names)
    return tuple(dict.fromkeys(wanted))


def context(paths: Paths, settings: Settings) -> ssl.SSLContext:
    """TLS that asks for a certificate of our authority, or of the one in the settings. Blocks. Raises Invalid."""
    if settings.docker_tls_ca:
        return own_context(*map(Path, (settings.docker_tls_ca, settings.docker_tls_cert, settings.docker_tls_key)))
    return authority(paths).server_context("insula-docker", names_of(settings))


def warnings(settings: Settings) -> tuple[str, ...]:
    """What `docker info` has to say of it."""
    if settings.docker_tls:
        return ()
    return tuple("WARNING: " + PLAIN.format(address) for address in addresses(settings))


async def opened(paths: Paths, settings: Settings, undo: AsyncExitStack) -> list[Address]:
    """Listen wherever the settings say. Raises Invalid, Unavailable."""
    wanted = addresses(settings)
    if not wanted:
        return []
    tls = await in_thread(context, paths, settings) if settings.docker_tls else None
    found = []
    for address in wanted:
        remote = Remote(paths.docker_socket, tls)
        undo.push_async_callback(remote.close)
        found.append(await remote.listen(address))
        if tls is None:
            log.warning(PLAIN.format(found[-1]))
    return found


def issue(paths: Paths, user: str, folder: Path) -> None:
    """Write a client's `ca.pem`, `cert.pem` and `key.pem`, as DOCKER_CERT_PATH has them. Blocks. Raises HostFault."""
    issuer = authority(paths)
    made = issuer.issue(user)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, data, mode in (
        ("ca.pem", issuer.ca_pem, 0o644),
        ("cert.pem", made.certificate, 0o644),
        ("key.pem", made.key, 0o600),
    ):
        write(folder / name, data, mode)


def context_command(name: str, address: str, folder: Path, *, update: bool = False) -> list[str]:
    """The docker command that makes a context of such a folder."""
    files = {"host": address, "ca": folder / "ca.pem", "cert": folder / "cert.pem", "key": folder / "key.pem"}
    endpoint = ",".join(f"{key}={value}" for key, value in files.items())
    return ["docker", "context", "update" if update else "create", name, "--docker", endpoint]


def reachable(serving: Iterable[str], host: str) -> str:
    """The address that a client dials: the first that is served, with another host's name in place of `any address`."""
    for text in serving:
        address = parse_address(text)
        own = "127.0.0.1" if address.host in _ANY else address.host
        return str(Address(host=host or own, port=address.port))
    raise Invalid(
        "the Docker door listens on no TCP address", hint="start Insula with --docker-host tcp://0.0.0.0:2376"
    )
