"""An Instance as `docker inspect` and `docker ps` show it. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from insula import clock
from insula.api.docker.containers_network import docker_name
from insula.api.docker.words_out import config_words, effective, exposed_ports, host_words, labels_of, mode_words, said
from insula.engine.contract import Instance, ResolvedMount, State
from insula.networks.contract import Endpoint, Network

NEVER = "0001-01-01T00:00:00Z"
STORAGE = "overlay2"


def inspect_words(
    instance: Instance,
    networks: Mapping[str, Network],
    *,
    sizes: tuple[int, int] | None = None,
    cgroupns: str = "host",
    apparmor: bool = False,
) -> dict[str, Any]:
    """The answer of `GET /containers/{id}/json`. `networks` by id; `sizes` of the writable layer and of all."""
    entrypoint, command = effective(instance)
    path, *args = [*entrypoint, *command] or [""]
    folder = instance.folder
    words: dict[str, Any] = {
        "Id": instance.id,
        "Created": instance.created,
        "Path": path,
        "Args": args,
        "State": state_words(instance.state),
        "Image": instance.image.id if instance.image else "",
        "ResolvConfPath": f"{folder}/resolv.conf",
        "HostnamePath": f"{folder}/hostname",
        "HostsPath": f"{folder}/hosts",
        "LogPath": instance.log_path if instance.config.log_driver == "json-file" else "",
        "Name": f"/{instance.config.name}",
        "RestartCount": instance.state.restart_count,
        "Driver": STORAGE,
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": (instance.config.security.apparmor or "") if apparmor else "",
        "ExecIDs": list(instance.execs) or None,
        "HostConfig": host_words(instance, cgroupns=cgroupns),
        "GraphDriver": {"Name": STORAGE, "Data": _layers(instance)},
        "Mounts": mounts_words(instance),
        "Config": config_words(instance),
        "NetworkSettings": network_words(instance, networks),
    }
    if sizes is not None:
        words["SizeRw"], words["SizeRootFs"] = sizes
    return words


def _layers(instance: Instance) -> dict[str, str]:
    """Where the file system lies, in the words of Docker's overlay2; nothing for a machine."""
    words = {"ID": instance.id, "MergedDir": instance.rootfs}
    if instance.upper:
        work = posixpath.join(posixpath.dirname(instance.upper), "work")
        words |= {"LowerDir": ":".join(instance.lowers), "UpperDir": instance.upper, "WorkDir": work}
    return words


def state_words(state: State) -> dict[str, Any]:
    """`State`. A paused or restarting container counts as running, as in dockerd."""
    words: dict[str, Any] = {
        "Status": state.name,
        "Running": state.name in ("running", "paused", "restarting"),
        "Paused": state.name == "paused",
        "Restarting": state.name == "restarting",
        "OOMKilled": state.oom_killed,
        "Dead": state.name == "dead",
        "Pid": state.pid,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": state.started_at or NEVER,
        "FinishedAt": state.finished_at or NEVER,
    }
    if state.health:
        words["Health"] = {
            "Status": state.health,
            "FailingStreak": state.failing_streak,
            "Log": [
                {"Start": each.start, "End": each.end, "ExitCode": each.exit_code, "Output": each.output}
                for each in state.health_log
            ],
        }
    return words


def mounts_words(instance: Instance) -> list[dict[str, Any]]:
    """`Mounts`; what stands in HostConfig's `Tmpfs` is not told twice, as in dockerd."""
    host = said(instance.config).get("HostConfig", {})
    plain = [path.rstrip("/") for path in host.get("Tmpfs") or {}]
    modes = _modes(host)
    return [
        mount_words(mount, modes.get(mount.config.target, ""))
        for mount in instance.mounts
        if mount.config.kind != "tmpfs" or mount.config.target not in plain
    ]


def _modes(host: Mapping[str, Any]) -> dict[str, str]:
    """What `Mode` says by place: the third part of a bind, and z for a volume that was asked for without one."""
    modes = {}
    for text in host.get("Binds") or ():
        source, _, rest = str(text).partition(":")
        target, _, mode = rest.partition(":")
        modes[posixpath.normpath(target or source)] = mode or ("" if source.startswith("/") else "z")
    for mount in host.get("Mounts") or ():
        if isinstance(mount, dict) and mount.get("Type") == "volume":
            modes[posixpath.normpath(str(mount.get("Target", "")))] = "z"
    return modes


def mount_words(mount: ResolvedMount, mode: str) -> dict[str, Any]:
    """One of `Mounts`."""
    config = mount.config
    words: dict[str, Any] = {"Type": config.kind}
    if mount.volume:
        words |= {"Name": mount.volume}
    words |= {"Source": mount.source, "Destination": config.target}
    if mount.volume:
        words |= {"Driver": "local"}
    return words | {
        "Mode": mode,
        "RW": not config.readonly,
        "Propagation": config.propagation if config.kind == "bind" else "",
    }


# --- network ----------------------------------------------------------------------------------------------------


def network_words(instance: Instance, networks: Mapping[str, Network]) -> dict[str, Any]:
    """`NetworkSettings`; the old fields at its top tell of the default network."""
    joined = endpoints_words(instance, networks)
    default = joined.get("bridge") or {}
    running = instance.state.name in ("running", "paused", "restarting")
    return {
        "Bridge": "",
        "SandboxID": instance.id if running else "",
        "SandboxKey": f"/proc/{instance.state.pid}/ns/net" if instance.state.pid else "",
        "Ports": ports_words(instance) if running else {},
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None,
        "EndpointID": default.get("EndpointID", ""),
        "Gateway": default.get("Gateway", ""),
        "GlobalIPv6Address": default.get("GlobalIPv6Address", ""),
        "GlobalIPv6PrefixLen": default.get("GlobalIPv6PrefixLen", 0),
        "IPAddress": default.get("IPAddress", ""),
        "IPPrefixLen": default.get("IPPrefixLen", 0),
        "IPv6Gateway": default.get("IPv6Gateway", ""),
        "MacAddress": default.get("MacAddress", ""),
        "Networks": joined,
    }


def endpoints_words(instance: Instance, networks: Mapping[str, Network]) -> dict[str, dict[str, Any]]:
    """`Networks`: where it is, or where it will be once it runs."""
    found = {}
    for endpoint in instance.endpoints:
        network = networks.get(endpoint.network)
        name = network.name if network else endpoint.network
        found[docker_name(name)] = _endpoint(instance, name, endpoint)
    if found:
        return found
    return {docker_name(name): _waiting(instance, name, networks) for name in network_names(instance)}


def network_names(instance: Instance) -> list[str]:
    """The engine's names of the networks that it joins when it starts."""
    config = instance.config
    mode = config.network_mode or "default"
    if mode.startswith(("instance:", "sandbox:")):
        return []
    if mode in ("none", "host"):
        return [mode]
    if mode == "detached":
        return [each.network for each in config.networks]
    return list(dict.fromkeys((mode, *(each.network for each in config.networks))))


def _asked(instance: Instance, name: str) -> Mapping[str, Any]:
    """What the client said of one network: when it made the container, else when it connected it."""
    sent = said(instance.config).get("NetworkingConfig", {}).get("EndpointsConfig") or {}
    words = sent.get(docker_name(name)) or sent.get(name)
    if isinstance(words, dict):
        return words
    wish = next((each for each in instance.config.networks if each.network == name), None)
    if wish is None:
        return {}
    asked = {"IPv4Address": wish.address, "IPv6Address": wish.address6}
    return {
        "IPAMConfig": {key: value for key, value in asked.items() if value} or None,
        "Aliases": list(wish.aliases) or None,
        "DriverOpts": wish.options or None,
        "GwPriority": wish.priority,
    }


def _endpoint(instance: Instance, name: str, endpoint: Endpoint) -> dict[str, Any]:
    sent = _asked(instance, name)
    known = None if name == "default" else list(dict.fromkeys((*endpoint.aliases, endpoint.hostname))) or None
    return {
        "IPAMConfig": sent.get("IPAMConfig"),
        "Links": _links(instance, name),
        "Aliases": sent.get("Aliases") if name != "default" else None,
        "MacAddress": endpoint.mac,
        "DriverOpts": sent.get("DriverOpts"),
        "GwPriority": endpoint.priority or sent.get("GwPriority") or 0,
        "NetworkID": endpoint.network,
        "EndpointID": endpoint.id,
        "Gateway": endpoint.gateway,
        "IPAddress": endpoint.address,
        "IPPrefixLen": endpoint.prefix,
        "IPv6Gateway": endpoint.gateway6,
        "GlobalIPv6Address": endpoint.address6,
        "GlobalIPv6PrefixLen": endpoint.prefix6,
        "DNSNames": known,
    }


def _links(instance: Instance, network: str) -> list[str] | None:
    """Those of a user-made network; the default one's stand in HostConfig."""
    own = [each for each in instance.config.links if each.network == network and network != "default"]
    return [f"{each.target}:{each.alias}" for each in own] or None


def _waiting(instance: Instance, name: str, networks: Mapping[str, Network]) -> dict[str, Any]:
    network = next((each for each in networks.values() if name in (each.name, each.id)), None)
    empty = Endpoint(
        id="",
        network=network.id if network else "",
        owner=instance.id,
        interface="",
        host_interface="",
        mac=next((each.mac for each in instance.config.networks if each.network == name), ""),
        address="",
        prefix=0,
        gateway="",
    )
    return _endpoint(instance, name, empty) | {"DNSNames": None}


def ports_words(instance: Instance) -> dict[str, list[dict[str, str]] | None]:
    """`Ports`: null for an exposed port that is not published."""
    words: dict[str, list[dict[str, str]] | None] = dict.fromkeys(exposed_ports(instance))
    for each in instance.published:
        if not each.host_port:  # open at the container's own address
            continue
        key = f"{each.container_port}/{each.protocol}"
        entry = {"HostIp": each.host_ip or "0.0.0.0", "HostPort": str(each.host_port)}  # noqa: S104 - shown, not bound
        words[key] = [*(words.get(key) or []), entry]
    return words


# --- the list ---------------------------------------------------------------------------------------------------


def summary_words(
    instance: Instance,
    networks: Mapping[str, Network],
    now: datetime,
    *,
    sizes: tuple[int, int] | None = None,
    names: Sequence[str] = (),
) -> dict[str, Any]:
    """One row of `GET /containers/json`."""
    entrypoint, command = effective(instance)
    words: dict[str, Any] = {
        "Id": instance.id,
        "Names": [f"/{instance.config.name}", *names],
        "Image": instance.config.image or instance.config.driver,
        "ImageID": instance.image.id if instance.image else "",
        "Command": " ".join([*entrypoint, *command]),
        "Created": int(clock.parse_rfc3339(instance.created).timestamp()),
        "Ports": port_rows(instance),
        "Labels": labels_of(instance),
        "State": instance.state.name,
        "Status": status_text(instance.state, now),
        "HostConfig": {
            "NetworkMode": mode_words(instance.config, said(instance.config).get("HostConfig", {})),
            "Annotations": instance.config.annotations or None,
        },
        "NetworkSettings": {"Networks": endpoints_words(instance, networks)},
        "Mounts": mounts_words(instance),
    }
    if sizes is not None:
        words["SizeRw"], words["SizeRootFs"] = sizes
    return words


def port_rows(instance: Instance) -> list[dict[str, Any]]:
    """`Ports` of the list: published ones, and exposed ones while it runs."""
    if instance.state.name not in ("running", "paused", "restarting"):
        return []
    rows: list[dict[str, Any]] = []
    for key, bindings in ports_words(instance).items():
        number, _, protocol = key.partition("/")
        if not bindings:
            rows.append({"PrivatePort": int(number), "Type": protocol})
        for each in bindings or ():
            port = int(each["HostPort"])
            rows.append({"IP": each["HostIp"], "PrivatePort": int(number), "PublicPort": port, "Type": protocol})
    return rows


def status_text(state: State, now: datetime) -> str:
    """As `docker ps` prints it: `Up 5 minutes`, `Exited (0) 2 hours ago`."""
    match state.name:
        case "running" | "paused":
            health = f" ({'health: starting' if state.health == 'starting' else state.health})" if state.health else ""
            suffix = " (Paused)" if state.name == "paused" else health
            return f"Up {ago(state.started_at, now)}{suffix}"
        case "restarting":
            return f"Restarting ({state.exit_code}) {ago(state.finished_at, now)} ago"
        case "exited":
            return f"Exited ({state.exit_code}) {ago(state.finished_at, now)} ago"
        case "created":
            return "Created"
        case "removing":
            return "Removal In Progress"
        case _:
            return "Dead"


def ago(moment: str, now: datetime) -> str:
    """How long since, in one rough unit, worded as Docker's clients expect."""
    seconds = int(max(0.0, (now - clock.parse_rfc3339(moment)).total_seconds())) if moment else 0
    minutes, hours = seconds // 60, round(seconds / 3600)
    if seconds < 1:
        return "Less than a second"
    if seconds < 60:
        return "1 second" if seconds == 1 else f"{seconds} seconds"
    if minutes < 60:
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    for limit, size, unit in (
        (48, 1, "hours"),
        (24 * 14, 24, "days"),
        (24 * 60, 24 * 7, "weeks"),
        (24 * 730, 24 * 30, "months"),
    ):
        if hours < limit:
            return "About an hour" if hours == 1 else f"{hours // size} {unit}"
    return f"{hours // (24 * 365)} years"
