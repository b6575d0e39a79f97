"""Which containers a listing means. Pure; names and values as the Docker Engine API reference has them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from insula import clock
from insula.api.docker.containers_inspect import network_names
from insula.api.docker.containers_network import docker_name, parse_port
from insula.api.docker.filters import Filters
from insula.api.docker.words_out import exposed_ports, labels_of
from insula.engine.contract import Instance
from insula.errors import Invalid, NotFound
from insula.model.pattern import compile_pattern
from insula.networks.contract import Network

KNOWN = (
    "ancestor", "before", "exited", "expose", "health", "id", "is-task", "isolation", "label", "label!", "name", "network",
    "publish", "since", "status", "volume",
)  # fmt: skip
_STATES = ("created", "running", "paused", "restarting", "removing", "exited", "dead")
_HEALTH = ("none", "starting", "healthy", "unhealthy")
_ALIVE = ("running", "paused", "restarting")


def choose(
    instances: Sequence[Instance], filters: Filters, networks: Mapping[str, Network], *, everything: bool
) -> list[Instance]:
    """Those that pass, newest first. Raises Invalid for a value that no instance could have, NotFound for a reference."""
    for value in filters.get("status"):
        if value not in _STATES:
            raise Invalid(f"invalid filter 'status={value}'", field="filters")
    for value in filters.get("health"):
        if value not in _HEALTH:
            raise Invalid(f"unrecognized filter value for health: {value}", field="filters")
    for value in filters.get("exited"):
        if not re.fullmatch(r"[+-]?[0-9]{1,9}", value):
            raise Invalid(f'strconv.Atoi: parsing "{value}": invalid syntax', field="filters")
    newer, older = _edge(instances, filters, "since"), _edge(instances, filters, "before")
    tests = _patterns(filters, "name"), _patterns(filters, "id")
    return [
        each
        for each in instances
        if (everything or each.state.name in _ALIVE)
        and (not newer or each.created > newer)
        and (not older or each.created < older)
        and _named(each, *tests)
        and _passes(each, filters)
        and _connected(each, filters, networks)
    ]


def _edge(instances: Sequence[Instance], filters: Filters, name: str) -> str:
    """When the instance was made that `since` or `before` names."""
    for reference in filters.get(name):
        for each in instances:
            if each.id.startswith(reference) or each.config.name == reference.removeprefix("/"):
                return each.created
        raise NotFound(f"No such container: {reference}", kind="container")
    return ""


def _patterns(filters: Filters, name: str) -> list[re.Pattern[str]]:
    return [compile_pattern(value) for value in filters.get(name)]


def _named(each: Instance, names: Sequence[re.Pattern[str]], ids: Sequence[re.Pattern[str]]) -> bool:
    name = each.config.name
    return (not names or any(test.search(name) or test.search("/" + name) for test in names)) and (
        not ids or any(test.match(each.id) for test in ids)
    )


def _passes(each: Instance, filters: Filters) -> bool:
    ports = exposed_ports(each)
    published = [f"{port.container_port}/{port.protocol}" for port in each.config.ports]
    return (
        filters.labels(labels_of(each))
        and filters.any("status", lambda value: value == each.state.name)
        and filters.any("exited", lambda value: each.state.name == "exited" and int(value) == each.state.exit_code)
        and filters.any("health", lambda value: value == (each.state.health or "none"))
        and filters.any("ancestor", lambda value: _descends(each, value))
        and filters.any("volume", lambda value: _mounts(each, value))
        and filters.any("expose", lambda value: _port_in(value, ports))
        and filters.any("publish", lambda value: _port_in(value, published))
        and not filters.flag("is-task")
    )


def _descends(each: Instance, reference: str) -> bool:
    if each.image is None:
        return False
    wanted = reference if ":" in reference.rpartition("/")[2] or "@" in reference else f"{reference}:latest"
    bare = reference.removeprefix("sha256:")
    return (
        reference == each.config.image
        or wanted in each.image.names
        or reference in each.image.digests
        or (len(bare) >= 4 and each.image.id.removeprefix("sha256:").startswith(bare))
    )


def _mounts(each: Instance, value: str) -> bool:
    return any(value in (mount.volume, mount.source, mount.config.target) for mount in each.mounts)


def _port_in(value: str, ports: Sequence[str]) -> bool:
    first, dash, rest = value.partition("-")
    last, _, kind = rest.partition("/") if dash else first.partition("/")
    low, protocol = parse_port(f"{first.partition('/')[0]}/{kind or 'tcp'}")
    high, _ = parse_port(last)
    return any(f"{number}/{protocol}" in ports for number in range(low, high + 1))


def _connected(each: Instance, filters: Filters, networks: Mapping[str, Network]) -> bool:
    if "network" not in filters:
        return True
    joined = {endpoint.network for endpoint in each.endpoints}
    names = {docker_name(networks[id].name) for id in joined if id in networks}
    names |= {docker_name(name) for name in network_names(each)}
    return filters.any("network", lambda value: value in names or any(id.startswith(value) for id in joined))


# --- times ----------------------------------------------------------------------------------------------------------


def moment_of(text: str) -> datetime:
    """A time in a filter: RFC 3339, seconds since the epoch, or a Go duration (`10m`, `1h30m`) before now. Raises Invalid."""
    try:
        return datetime.fromtimestamp(float(text), UTC)
    except (ValueError, OverflowError, OSError):
        pass
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "us": 1e-6, "ns": 1e-9}
    if re.fullmatch(r"([0-9.]{1,12}(h|ms|m|s|us|ns)){1,6}", text):
        parts = re.findall(r"([0-9.]+)(h|ms|m|s|us|ns)", text)
        try:
            return clock.now() - timedelta(seconds=sum(float(number) * units[unit] for number, unit in parts))
        except (ValueError, OverflowError):
            pass
    try:
        return clock.parse_rfc3339(text)
    except ValueError as fault:
        raise Invalid(f"{text!r} is neither a time nor a duration", field="filters") from fault


def moment_ns(text: str) -> int | None:
    """Nanoseconds since the epoch, None for an empty text. Seconds with a fraction stay exact; other forms as in `moment_of`."""
    if not text:
        return None
    seconds, _, fraction = text.partition(".")
    if seconds.isascii() and seconds.isdigit() and len(seconds) < 12 and (not fraction or fraction.isdigit()):
        return int(seconds) * 1_000_000_000 + int(fraction[:9].ljust(9, "0") or 0)
    moment = moment_of(text)
    return int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1000


def until_of(filters: Filters) -> datetime | None:
    """The `until` filter of a prune."""
    values = filters.get("until")
    if len(values) > 1:
        raise Invalid("more than one until filter specified", field="filters")
    return moment_of(values[0]) if values else None
