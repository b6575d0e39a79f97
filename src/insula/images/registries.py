"""How registries are reached: which may do without TLS, whose certificates they show, which mirrors and proxies stand before
them, how much is moved at once. Deciding only; the client itself is `registry.py`.

Names and meanings follow dockerd's settings (`insecure-registries`, `registry-mirrors`, `max-concurrent-downloads`, ...) and
its folder `certs.d/<host>[:<port>]/` with `*.crt` (authorities) and pairs of `*.cert` and `*.key` (what we show).
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from msgspec import Struct

from insula.errors import Invalid, Unavailable
from insula.images.reference import DEFAULT_DOMAIN

if TYPE_CHECKING:  # the settings are read by commands that speak to no registry
    import ssl

    from yarl import URL

DOCKER_HUB = "registry-1.docker.io"
LOOPBACK = ("::1/128", "127.0.0.0/8")
CERTIFICATES = ("/etc/insula/certs.d", "/etc/docker/certs.d")


class Registries(Struct, frozen=True, kw_only=True):
    """The choices of one node. `insecure` are hosts, `host:port`s and address ranges. A mirror is a URL, which stands before
    Docker Hub, or `host=URL`. Proxies are URLs; empty ones take the environment's."""

    insecure: tuple[str, ...] = ()
    mirrors: tuple[str, ...] = ()
    certificates: tuple[str, ...] = CERTIFICATES
    downloads: int = 3
    uploads: int = 5
    attempts: int = 5
    http_proxy: str = ""
    https_proxy: str = ""
    no_proxy: str = ""


class Endpoint(Struct, frozen=True, kw_only=True):
    """One place that serves a repository. `url` ends with a slash; `host` names its folder of certificates."""

    url: str
    host: str
    mirror: bool = False
    insecure: bool = False


def check(registries: Registries) -> None:
    """Raises Invalid naming the setting and the value."""
    for mirror in registries.mirrors:
        _mirror(mirror)
    for name in ("http_proxy", "https_proxy"):
        text = getattr(registries, name)
        if text and (_split(text).scheme != "http" or not _split(text).hostname):
            raise Invalid(f"{name} {text!r} is not a URL such as http://proxy:3128", field=name)
    for name in ("downloads", "uploads", "attempts"):
        if not 1 <= getattr(registries, name) <= 1000:
            raise Invalid(f"{name} must be 1 to 1000, not {getattr(registries, name)}", field=name)
    for entry in registries.insecure:
        if "://" in entry or (_network(entry) is None and "/" in entry):
            raise Invalid(f"{entry!r} is neither host[:port] nor an address range", field="insecure_registries")


def _mirror(text: str) -> tuple[str, str]:
    """The domain that it mirrors and its URL. Raises Invalid."""
    domain, equals, url = text.partition("=")
    if not equals or "://" in domain:
        domain, url = DEFAULT_DOMAIN, text
    parsed = _split(url)
    if parsed.scheme not in ("http", "https") or not parsed.hostname or parsed.query or parsed.username:
        raise Invalid(
            f"the registry mirror {text!r} is not a URL such as https://mirror.example", field="registry_mirrors"
        )
    return domain, url.rstrip("/") + "/"


def _split(url: str) -> SplitResult:
    """A URL's parts; empty ones for what is none."""
    try:
        parts = urlsplit(url)
        return parts if parts.port is None or parts.port else urlsplit("")
    except ValueError:
        return urlsplit("")


def mirrors_of(registries: Registries, domain: str) -> list[str]:
    """URLs of a registry's mirrors, in the order in which they are asked."""
    return [url for known, url in map(_mirror, registries.mirrors) if known == domain]


def endpoints(registries: Registries, domain: str, *, pushing: bool = False) -> list[Endpoint]:
    """Where a repository of `domain` may be found, best first. Only the registry itself takes what is pushed."""
    found = []
    for url in [] if pushing else mirrors_of(registries, domain):
        authority = url.partition("://")[2].partition("/")[0]
        insecure = url.startswith("http://") or is_insecure(registries, authority)
        found.append(Endpoint(url=url, host=authority, mirror=True, insecure=insecure))
    host = DOCKER_HUB if domain == DEFAULT_DOMAIN else domain
    found.append(Endpoint(url=f"https://{host}/", host=domain, insecure=is_insecure(registries, domain)))
    return found


# --- which may be insecure ----------------------------------------------------------------------------------------


def is_insecure(registries: Registries, domain: str) -> bool:
    """Whether plain HTTP and certificates that nobody signed will do: on this machine, and where the settings say so."""
    host = host_of(domain)
    if host == "localhost" or domain in registries.insecure or host in registries.insecure:
        return True
    address = _address(host)
    networks = (_network(entry) for entry in (*LOOPBACK, *registries.insecure))
    return address is not None and any(
        network.version == address.version and address in network for network in networks if network
    )


def host_of(domain: str) -> str:
    """`host`, `host:port`, `[v6]:port`: without the port."""
    if domain.startswith("["):
        return domain[1:].partition("]")[0]
    return domain.partition(":")[0] if domain.count(":") == 1 else domain


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False) if "/" in text else None
    except ValueError:
        return None


# --- certificates -------------------------------------------------------------------------------------------------


def tls_context(registries: Registries, endpoint: Endpoint) -> ssl.SSLContext:
    """How to speak TLS with an endpoint. Blocks. Raises Unavailable for certificates that cannot be read."""
    import ssl

    context = ssl.create_default_context()
    for folder in registries.certificates:
        place = Path(folder) / endpoint.host
        try:
            names = sorted(each.name for each in place.iterdir())
        except OSError:
            continue
        try:
            _add_certificates(context, place, names)
        except (OSError, ssl.SSLError) as fault:
            raise Unavailable(f"the certificates in {place} cannot be used: {fault}") from None
    if endpoint.insecure:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _add_certificates(context: ssl.SSLContext, place: Path, names: Sequence[str]) -> None:
    for name in names:
        if name.endswith(".crt"):
            context.load_verify_locations(place / name)
        elif name.endswith(".cert"):
            key = name.removesuffix(".cert") + ".key"
            if key not in names:
                raise Unavailable(f"missing key {key} for client certificate {name}, which stands in {place}")
            context.load_cert_chain(place / name, place / key)
        elif name.endswith(".key") and name.removesuffix(".key") + ".cert" not in names:
            cert = name.removesuffix(".key") + ".cert"
            raise Unavailable(f"missing client certificate {cert} for key {name}, which stands in {place}")


# --- proxies ------------------------------------------------------------------------------------------------------


def with_environment(registries: Registries, environment: Mapping[str, str] = os.environ) -> Registries:
    """The proxies of the settings, or those that the environment names, in capitals or not, as curl and Go read them."""

    def pick(chosen: str, name: str) -> str:
        return chosen or environment.get(name) or environment.get(name.lower(), "")

    # Lower case is not asked for HTTP_PROXY's sake alone: a web server puts a client's `Proxy:` header there; we are none.
    return Registries(
        **{name: getattr(registries, name) for name in Registries.__struct_fields__ if not name.endswith("_proxy")},
        http_proxy=pick(registries.http_proxy, "HTTP_PROXY"),
        https_proxy=pick(registries.https_proxy, "HTTPS_PROXY"),
        no_proxy=pick(registries.no_proxy, "NO_PROXY"),
    )


def proxy_for(registries: Registries, url: URL) -> URL | None:
    """The proxy that a request goes through, None for none. Loopback never does; `no_proxy` lists hosts, domains (with all
    below them), addresses and ranges, each perhaps with a port, or `*`."""
    from yarl import URL

    text = registries.https_proxy if url.scheme == "https" else registries.http_proxy
    host = (url.host or "").lower()
    address = _address(host)
    if not text or host == "localhost" or (address is not None and address.is_loopback):
        return None
    for entry in registries.no_proxy.lower().split(","):
        if entry.strip() and _bypasses(entry.strip(), host, url.port or 0):
            return None
    return URL(text if "://" in text else f"http://{text}")


def _bypasses(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    address, network = _address(host), _network(entry)
    if network is not None:
        return address is not None and address.version == network.version and address in network
    name, colon, wanted = entry.rpartition(":") if entry.count(":") == 1 else (entry, "", "")
    if colon and wanted != str(port):
        return False
    name = name.strip("[]")
    if (only := _address(name)) is not None:
        return address == only
    exact = name.removeprefix("*").removeprefix(".")
    return host.endswith("." + exact) or (host == exact and not name.startswith((".", "*.")))


def without_password(proxy: str) -> str:
    """A proxy's URL as it may be shown."""
    parts = _split(proxy)
    if "@" not in proxy:
        return proxy
    return parts._replace(netloc=f"xxxxx:xxxxx@{parts.netloc.rpartition('@')[2]}").geturl()
