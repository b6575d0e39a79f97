"""The parts of a container's inspection that come from what was sent: `Config` and `HostConfig` with dockerd's defaults filled.

Instances that another door made have no Docker words; theirs are made from their configuration. Pure. Defaults as dockerd 28
answers them for a container created with an image and nothing else.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from insula.api.docker.containers_create import EXTRA
from insula.api.docker.containers_network import docker_name, parse_link
from insula.engine.contract import Instance
from insula.images.contract import ImageConfig
from insula.model.instance import BlockLimit, InstanceConfig

MASKED = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def said(config: InstanceConfig) -> Mapping[str, Any]:
    """What the client sent, by part; empty for another door's instance."""
    words = config.extra.get(EXTRA)
    return words if isinstance(words, dict) else {}


def image_of(instance: Instance) -> ImageConfig:
    """The image's configuration, empty when it has none."""
    return instance.image.config if instance.image else ImageConfig()


def effective(instance: Instance) -> tuple[list[str], list[str]]:
    """Entry point and command after merging with the image's, as dockerd merges them."""
    config, image = instance.config, image_of(instance)
    entrypoint, command = config.entrypoint, config.command
    if not entrypoint and not command:
        command = image.command
    if entrypoint is None:
        entrypoint = image.entrypoint
    return ([] if entrypoint == ("",) else list(entrypoint)), list(command or ())


def labels_of(instance: Instance) -> dict[str, str]:
    """The image's labels under the instance's own."""
    return {**image_of(instance).labels, **instance.config.labels}


def config_words(instance: Instance) -> dict[str, Any]:
    """`Config`, merged with the image as dockerd keeps it."""
    config, image, sent = instance.config, image_of(instance), said(instance.config).get("Config", {})
    entrypoint, command = effective(instance)
    mine = {entry.partition("=")[0] for entry in config.env}
    raw = image.raw.get("config") or {}
    words: dict[str, Any] = {
        "Hostname": config.hostname or ("" if config.network_mode == "host" else instance.id[:12]),
        "Domainname": config.domainname,
        "User": config.user or image.user,
        "AttachStdin": bool(sent.get("AttachStdin")),
        "AttachStdout": bool(sent.get("AttachStdout")),
        "AttachStderr": bool(sent.get("AttachStderr")),
        "Tty": config.tty,
        "OpenStdin": config.open_stdin,
        "StdinOnce": config.stdin_once,
        "Env": [*config.env, *(entry for entry in image.env if entry.partition("=")[0] not in mine)],
        "Cmd": command or None,
        "Image": config.image,
        "Volumes": {**{path: {} for path in image.volumes}, **(sent.get("Volumes") or {})} or None,
        "WorkingDir": _clean(config.working_dir or image.working_dir),
        "Entrypoint": entrypoint or None,
        "OnBuild": sent.get("OnBuild"),
        "Labels": labels_of(instance),
    }
    ports = dict.fromkeys((*image.exposed_ports, *(sent.get("ExposedPorts") or ())))
    optional: dict[str, Any] = {
        "ExposedPorts": {port: {} for port in ports} or None,
        "StopSignal": config.stop_signal or image.stop_signal or None,
        "StopTimeout": None if config.stop_timeout_s is None else int(config.stop_timeout_s),
        "Healthcheck": _health_words(sent.get("Healthcheck"), image.healthcheck),
        "Shell": sent.get("Shell") or raw.get("Shell"),
        "MacAddress": sent.get("MacAddress") or None,
        "NetworkDisabled": sent.get("NetworkDisabled") or None,
    }
    return words | {name: value for name, value in optional.items() if value is not None}


def _health_words(sent: Mapping[str, Any] | None, image: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What was asked, and the image's value for all that it leaves out."""
    if not sent or not image:
        return dict(sent or image or {}) or None
    return {**image, **{name: value for name, value in sent.items() if value}}


def _clean(path: str) -> str:
    return posixpath.normpath(path) if path else ""


def exposed_ports(instance: Instance) -> list[str]:
    """The image's, the client's and the published ones, as `80/tcp`."""
    sent = said(instance.config).get("Config", {}).get("ExposedPorts") or {}
    published = [f"{each.container_port}/{each.protocol}" for each in instance.config.ports]
    every = (*image_of(instance).exposed_ports, *sent, *published)
    return list(dict.fromkeys(port if "/" in port else f"{port}/tcp" for port in every))


# --- HostConfig -------------------------------------------------------------------------------------------------

_DEFAULTS: dict[str, Any] = {
    "Binds": None,
    "ContainerIDFile": "",
    "LogConfig": {"Type": "json-file", "Config": {}},
    "NetworkMode": "bridge",
    "PortBindings": {},
    "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
    "AutoRemove": False,
    "VolumeDriver": "",
    "VolumesFrom": None,
    "ConsoleSize": [0, 0],
    "CapAdd": None,
    "CapDrop": None,
    "CgroupnsMode": "host",
    "Dns": None,
    "DnsOptions": None,
    "DnsSearch": None,
    "ExtraHosts": None,
    "GroupAdd": None,
    "IpcMode": "private",
    "Cgroup": "",
    "Links": None,
    "OomScoreAdj": 0,
    "PidMode": "",
    "Privileged": False,
    "PublishAllPorts": False,
    "ReadonlyRootfs": False,
    "SecurityOpt": None,
    "UTSMode": "",
    "UsernsMode": "",
    "ShmSize": 64 * 1024 * 1024,
    "Runtime": "runc",
    "Isolation": "",
    "CpuShares": 0,
    "Memory": 0,
    "NanoCpus": 0,
    "CgroupParent": "",
    "BlkioWeight": 0,
    "BlkioWeightDevice": None,
    "BlkioDeviceReadBps": None,
    "BlkioDeviceWriteBps": None,
    "BlkioDeviceReadIOps": None,
    "BlkioDeviceWriteIOps": None,
    "CpuPeriod": 0,
    "CpuQuota": 0,
    "CpuRealtimePeriod": 0,
    "CpuRealtimeRuntime": 0,
    "CpusetCpus": "",
    "CpusetMems": "",
    "Devices": None,
    "DeviceCgroupRules": None,
    "DeviceRequests": None,
    "MemoryReservation": 0,
    "MemorySwap": 0,
    "MemorySwappiness": None,
    "OomKillDisable": False,
    "PidsLimit": None,
    "Ulimits": None,
    "CpuCount": 0,
    "CpuPercent": 0,
    "IOMaximumIOps": 0,
    "IOMaximumBandwidth": 0,
    "MaskedPaths": list(MASKED),
    "ReadonlyPaths": list(READONLY),
}


# Shown only when they were sent, and those in which a zero value is a choice.
_KNOWN = frozenset(_DEFAULTS) | {"Annotations", "Init", "Mounts", "StorageOpt", "Sysctls", "Tmpfs", "ContainerIDFile"}
_MAY_BE_EMPTY = frozenset({"MaskedPaths", "ReadonlyPaths"})


RUNTIMES = {"oci": "runc", "microvm": "vm"}  # a driver's name as a runtime, where that is another


def host_words(instance: Instance, *, cgroupns: str) -> dict[str, Any]:
    """`HostConfig`: what was sent over the defaults, and over both what `update` may have changed since."""
    config = instance.config
    sent = {name: value for name, value in said(config).get("HostConfig", {}).items() if value is not None}
    # A zero value in what was sent is no choice: where the default is more than zero, the default holds.
    chosen = {
        name: value
        for name, value in sent.items()
        if (value or not _DEFAULTS.get(name) or name in _MAY_BE_EMPTY) and name in _KNOWN
    }
    words = _DEFAULTS | {"CgroupnsMode": cgroupns} | chosen
    words["NetworkMode"] = mode_words(config, sent)
    words["Runtime"] = RUNTIMES.get(config.driver, config.driver)
    words["RestartPolicy"] = {"Name": config.restart.name, "MaximumRetryCount": config.restart.max_retries}
    words["LogConfig"] = {"Type": config.log_driver, "Config": config.log_options}
    words["AutoRemove"] = config.auto_remove
    words["Privileged"] = config.security.privileged
    words["PortBindings"] = _bindings(sent.get("PortBindings") or {}) if said(config) else bindings_words(config)
    words["Links"] = _links(config, sent.get("Links") or ())
    words["SecurityOpt"] = _security_words(config, sent.get("SecurityOpt"))
    if config.security.privileged:
        words["MaskedPaths"] = words["ReadonlyPaths"] = None
    return words | _limits(config, sent)


def _links(config: InstanceConfig, sent: Sequence[str]) -> list[str] | None:
    """`/TARGET:/OWNER/ALIAS` of each that is still there."""
    there = {each.alias for each in config.links if each.network == "default"}
    pairs = [parse_link(text) for text in sent]
    return [f"/{name}:/{config.name}/{alias}" for name, alias in pairs if alias in there] or None


def _bindings(sent: Mapping[str, Any]) -> dict[str, Any]:
    """With both fields of each, as dockerd keeps them."""
    empty = {"HostIp": "", "HostPort": ""}
    return {port: None if each is None else [empty | one for one in each] for port, each in sent.items()}


def _security_words(config: InstanceConfig, sent: list[str] | None) -> list[str] | None:
    """What shares the host's processes or IPC has no SELinux label of its own, and says so."""
    shares = config.security.privileged or "host" in (config.pid_mode, config.ipc_mode)
    if not shares or any(option.partition("=")[0] == "label" for option in sent or ()):
        return sent
    return [*(sent or ()), "label=disable"]


def _throttle_words(limits: Sequence[BlockLimit], value: str = "Rate") -> list[dict[str, Any]] | None:
    return [{"Path": each.path, value: each.value} for each in limits] or None


def _limits(config: InstanceConfig, sent: Mapping[str, Any]) -> dict[str, Any]:
    limits = config.resources
    words: dict[str, Any] = {
        "CpuShares": limits.cpu_shares or 0,
        "Memory": limits.memory_bytes or 0,
        "MemoryReservation": limits.memory_reservation_bytes or 0,
        "MemorySwap": limits.memory_swap_bytes or 0,
        "PidsLimit": None if limits.pids_limit is None else max(0, limits.pids_limit),
        "CpusetCpus": limits.cpuset_cpus or "",
        "CpusetMems": limits.cpuset_mems or "",
        "BlkioWeight": limits.blkio_weight or 0,
        "OomKillDisable": limits.oom_kill_disable,
        "MemorySwappiness": limits.memory_swappiness,
        "CpuRealtimePeriod": limits.cpu_rt_period_us or 0,
        "CpuRealtimeRuntime": limits.cpu_rt_runtime_us or 0,
    }
    lists = {
        "BlkioWeightDevice": _throttle_words(limits.blkio_weight_devices, "Weight"),
        "BlkioDeviceReadBps": _throttle_words(limits.read_bps),
        "BlkioDeviceWriteBps": _throttle_words(limits.write_bps),
        "BlkioDeviceReadIOps": _throttle_words(limits.read_iops),
        "BlkioDeviceWriteIOps": _throttle_words(limits.write_iops),
    }
    words |= {name: [] if each is None and sent.get(name) == [] else each for name, each in lists.items()}
    if limits.nano_cpus:
        return words | {"CpuQuota": 0, "CpuPeriod": 0, "NanoCpus": limits.nano_cpus}
    return words | {"CpuQuota": limits.cpu_quota_us or 0, "CpuPeriod": limits.cpu_period_us or 0, "NanoCpus": 0}


def mode_words(config: InstanceConfig, sent: Mapping[str, Any]) -> str:
    """The network mode as clients know it."""
    mode = config.network_mode
    if mode.startswith("instance:"):
        return f"container:{mode.removeprefix('instance:')}"
    if mode.startswith("sandbox:"):
        return mode
    word = sent.get("NetworkMode") or ""
    return word if word not in ("", "default", "bridge") and mode == word else docker_name(mode or "default")


def bindings_words(config: InstanceConfig) -> dict[str, list[dict[str, str]]]:
    """`PortBindings` of what was asked."""
    words: dict[str, list[dict[str, str]]] = {}
    for port in config.ports:
        host_port = str(port.host_port) if port.host_port else ""
        words.setdefault(f"{port.container_port}/{port.protocol}", []).append(
            {"HostIp": port.host_ip, "HostPort": host_port}
        )
    return words
