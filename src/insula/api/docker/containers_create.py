"""From the body of `POST /containers/create` to an `InstanceConfig`. Pure: what it needs to know of others is given to it.

Every field is honoured, refused with a sentence, or (fields of Windows) without meaning here as in dockerd on Linux. What was
sent is kept in `InstanceConfig.extra["docker"]`, from where inspect gives it back.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from msgspec import Struct

from insula.api.docker.containers_limits import (
    conflict,
    devices_of,
    resources_of,
    restart_of,
    security_of,
    ulimits_of,
)
from insula.api.docker.containers_logging import log_driver
from insula.api.docker.containers_mounts import mounts_of, source_name
from insula.api.docker.containers_network import attachments, links_of, network_mode, parse_link, ports_of
from insula.api.docker.words import ContainerWords, HealthWords
from insula.engine.contract import Instance
from insula.errors import Invalid, Unsupported
from insula.host.limits import Limits
from insula.model.instance import HealthCheck, InstanceConfig

EXTRA = "docker"


class Surroundings(Struct, frozen=True, kw_only=True):
    """What must be looked up before a body can be understood: the driver behind its runtime, the instances that it names
    (by the name it uses), the ports that its image exposes (for `--publish-all`)."""

    driver: str = "oci"
    instances: dict[str, Instance] = {}
    image_ports: tuple[str, ...] = ()


def neighbours(words: ContainerWords) -> set[str]:
    """The other instances that a body names."""
    host = words.host_config
    modes = (host.network_mode, host.pid_mode, host.ipc_mode)
    named = {mode.partition(":")[2] for mode in modes if mode.startswith("container:")}
    return named | {source_name(text)[0] for text in host.volumes_from}


def linked(words: ContainerWords) -> set[str]:
    """The instances that a body links to on the default network, which must exist."""
    host = words.host_config
    if host.network_mode not in ("", "default", "bridge"):
        return set()
    return {parse_link(text)[0] for text in host.links}


def instance_config(
    name: str, platform: str, words: ContainerWords, raw: Mapping[str, Any], around: Surroundings
) -> InstanceConfig:
    """Raises Invalid, Conflict and Unsupported, each naming the field."""
    host = words.host_config
    refuse_unsupported(words)
    mode = network_mode(words, around.instances)
    entrypoint, command = _list(words.entrypoint), _list(words.cmd)
    return InstanceConfig(
        name=name.removeprefix("/"),
        driver=around.driver,
        image=words.image,
        platform=platform,
        entrypoint=entrypoint,
        command=command or None,
        env=tuple(words.env),
        working_dir=words.working_dir,
        user=words.user,
        groups=tuple(host.group_add),
        hostname=words.hostname,
        domainname=words.domainname,
        tty=words.tty,
        open_stdin=words.open_stdin,
        stdin_once=words.stdin_once,
        mounts=mounts_of(words, around.instances),
        network_mode=mode,
        networks=attachments(words, mode),
        ports=() if mode in ("none", "host") else ports_of(words, around.image_ports),
        exposed_ports=tuple(words.exposed_ports),
        links=links_of(words, mode, around.instances),
        dns=_addresses(host.dns),
        dns_search=tuple(host.dns_search),
        dns_options=tuple(host.dns_options),
        extra_hosts=_extra_hosts(host.extra_hosts),
        pid_mode=_shared(host.pid_mode, around, "PidMode", ("", "host")),
        ipc_mode=_shared(host.ipc_mode, around, "IpcMode", ("", "none", "private", "shareable", "host")),
        uts_mode=host.uts_mode,
        cgroup_mode=cast(Literal["", "private", "host"], host.cgroupns_mode),
        cgroup_parent=host.cgroup_parent,
        shm_size_bytes=_shm(host.shm_size),
        sysctls=host.sysctls,
        ulimits=ulimits_of(host),
        devices=devices_of(host),
        init=bool(host.init),
        oom_score_adj=_oom_score(host.oom_score_adj),
        resources=resources_of(host),
        security=security_of(host),
        restart=restart_of(host.restart_policy, auto_remove=host.auto_remove),
        auto_remove=host.auto_remove,
        stop_signal=words.stop_signal,
        stop_timeout_s=None if words.stop_timeout is None else float(words.stop_timeout),
        health=_health(words.healthcheck),
        shell=tuple(words.shell),
        labels=words.labels,
        annotations=host.annotations,
        log_driver=log_driver(host.log_config),
        log_options=host.log_config.config,
        owner="docker",
        extra={EXTRA: kept(raw)},
    )


def _makes_volumes(words: ContainerWords) -> bool:
    """Whether there is anything that the volume driver would be asked for."""
    named = (text for text in words.host_config.binds if not text.startswith("/"))
    return bool(words.volumes or any(named) or any(each.type == "volume" for each in words.host_config.mounts))


def kept(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What was sent, in three parts, without nulls."""
    parts = {"HostConfig": raw.get("HostConfig") or {}, "NetworkingConfig": raw.get("NetworkingConfig") or {}}
    config = {key: value for key, value in raw.items() if key not in parts and value is not None}
    return {"Config": config, **parts}


def refuse_unsupported(words: ContainerWords) -> None:
    """What no part of the engine does. Raises Unsupported and Invalid, with the Docker Engine's sentences where it has one."""
    host = words.host_config
    if host.volume_driver not in ("", "local") and _makes_volumes(words):
        name = host.volume_driver
        raise Invalid(f'error looking up volume plugin {name}: plugin "{name}" not found', field="VolumeDriver")
    for option in host.storage_opt:
        if option != "size":
            raise Invalid(f"Unknown option {option}", field="HostConfig.StorageOpt")
        raise Unsupported("--storage-opt is supported only for overlay over xfs with 'pquota' mount option")
    if host.isolation.lower() not in ("", "default"):
        raise Invalid(f"invalid isolation ({host.isolation}): linux only supports 'default'", field="Isolation")
    _valid(host.userns_mode, ("", "host"), "invalid user namespace mode")
    _valid(host.cgroup, ("",), "invalid cgroup")
    _valid(host.cgroupns_mode, ("", "host", "private"), "invalid cgroup namespace mode")
    _valid(host.uts_mode, ("", "host"), "invalid UTS mode")
    if host.uts_mode == "host" and words.hostname:
        raise conflict("HostConfig.UTSMode", "hostname and the UTS mode")
    for entry in words.env:
        if not entry.partition("=")[0]:
            raise Invalid(f"invalid environment variable: {entry}", field="Env")


def host_warnings(words: ContainerWords, limits: Limits) -> list[str]:
    """What is taken and has no effect."""
    host, found = words.host_config, []
    if host.network_mode == "host" and host.port_bindings:
        found.append("Published ports are discarded when using host network mode")
    profile = security_of(host).apparmor
    if profile not in (None, "", "unconfined") and not limits.apparmor:
        found.append("AppArmor is not enabled on this host. AppArmor profile discarded.")
    return found


# --- single fields ----------------------------------------------------------------------------------------------


def _health(words: HealthWords | None) -> HealthCheck | None:
    if words is None:
        return None
    return HealthCheck(
        test=tuple(words.test),
        interval_ns=words.interval,
        timeout_ns=words.timeout,
        start_period_ns=words.start_period,
        start_interval_ns=words.start_interval,
        retries=words.retries,
    )


def _list(value: list[str] | str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    return (value,) if isinstance(value, str) else tuple(value)


def _valid(value: str, allowed: Sequence[str], sentence: str) -> None:
    if value not in allowed:
        raise Invalid(f"{sentence}: {value}")


def _shared(mode: str, around: Surroundings, field: str, allowed: Sequence[str]) -> str:
    kind, colon, name = mode.partition(":")
    if kind == "container" and colon:
        return f"instance:{around.instances[name].id}"
    if mode not in allowed:
        raise Invalid(f"invalid {field.removesuffix('Mode').upper()} mode: {mode}", field=f"HostConfig.{field}")
    return mode


def _addresses(texts: Sequence[str]) -> tuple[str, ...]:
    for text in texts:
        try:
            ipaddress.ip_address(text)
        except ValueError as fault:
            raise Invalid(f"bad nameserver address: {text}", field="HostConfig.Dns") from fault
    return tuple(texts)


def _extra_hosts(texts: Sequence[str]) -> tuple[str, ...]:
    for text in texts:
        name, separator, address = text.partition(":")
        if not (name and separator):
            raise Invalid(f'bad format for add-host: "{text}"', field="HostConfig.ExtraHosts")
        if address != "host-gateway":
            try:
                ipaddress.ip_address(address.strip("[]"))
            except ValueError as fault:
                raise Invalid(f'invalid IP address in add-host: "{address}"', field="HostConfig.ExtraHosts") from fault
    return tuple(texts)


def _shm(size: int) -> int:
    if size < 0:
        raise Invalid("SHM size can not be less than 0", field="HostConfig.ShmSize")
    return size or 64 * 1024 * 1024


def _oom_score(score: int) -> int:
    if not -1000 <= score <= 1000:
        raise Invalid(
            f"Invalid value {score}, range for oom score adj is [-1000, 1000]", field="HostConfig.OomScoreAdj"
        )
    return score
