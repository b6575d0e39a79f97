"""`GET /info`: the node, its choices and what it lacks."""

from __future__ import annotations

import os
import platform
from functools import cache
from typing import Any

from aiohttp import web

from insula import clock
from insula.api.docker.containers_logging import has_journal
from insula.api.docker.door import Door
from insula.api.docker.route import Call, Route
from insula.api.docker.versions import Version
from insula.api.docker.words_out import RUNTIMES
from insula.api.web import json_response
from insula.images.reference import DEFAULT_DOMAIN
from insula.images.registries import LOOPBACK, Registries, mirrors_of, without_password
from insula.tasks import in_thread


async def info(call: Call) -> web.StreamResponse:
    """`GET /info`."""
    door = call.door
    instances = await door.engine.list()
    images = await door.engine.images.list()
    host = await in_thread(host_words)
    words = _counts(instances, len(images)) | host | _node(door, await door.drivers())
    words |= registry_words(door.engine.images.registries, call.version) | _by_version(call.version)
    return json_response(words | {"Warnings": warnings(door) or None})


def registry_words(settings: Registries, version: Version) -> dict[str, Any]:
    """How registries are reached. Passwords of proxies stay out."""
    ranges = [*LOOPBACK, *(entry for entry in settings.insecure if "/" in entry)]
    hub_mirrors = mirrors_of(settings, DEFAULT_DOMAIN)
    indexes = {DEFAULT_DOMAIN: {"Name": DEFAULT_DOMAIN, "Mirrors": hub_mirrors, "Secure": True, "Official": True}}
    for host in (entry for entry in settings.insecure if "/" not in entry):
        indexes[host] = {"Name": host, "Mirrors": mirrors_of(settings, host), "Secure": False, "Official": False}
    registry: dict[str, Any] = {"IndexConfigs": indexes, "InsecureRegistryCIDRs": ranges, "Mirrors": hub_mirrors}
    if version < (1, 49):
        registry |= {"AllowNondistributableArtifactsCIDRs": None, "AllowNondistributableArtifactsHostnames": None}
    return {
        "RegistryConfig": registry,
        "HttpProxy": without_password(settings.http_proxy),
        "HttpsProxy": without_password(settings.https_proxy),
        "NoProxy": settings.no_proxy,
    }


def _by_version(version: Version) -> dict[str, Any]:
    """Fields that came or went: Docker Engine API version history."""
    words: dict[str, Any] = {}
    commits = ("ContainerdCommit", "RuncCommit", "InitCommit")
    words |= {name: {"ID": "", **({"Expected": ""} if version < (1, 49) else {})} for name in commits}
    if version < (1, 50):
        words |= {"BridgeNfIptables": False, "BridgeNfIp6tables": False}
    if version >= (1, 49):
        words["FirewallBackend"] = {"Driver": "nftables"}
    return words


def warnings(door: Door) -> list[str]:
    """What is weaker here than a Docker user takes for granted, in dockerd's words where it has them."""
    limits = door.limits
    absent = (
        (limits.memory, "memory limit"),
        (limits.swap, "swap limit"),
        (limits.cfs, "cpu cfs quota"),
        (limits.shares, "cpu shares"),
        (limits.cpuset, "cpuset"),
    )
    return [*door.info.warnings, *(f"WARNING: No {what} support" for has, what in absent if not has)]


def _counts(instances: Any, images: int) -> dict[str, Any]:
    states = [each.state.name for each in instances]
    running = states.count("running") + states.count("restarting")
    paused = states.count("paused")
    return {
        "Containers": len(states),
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": len(states) - running - paused,
        "Images": images,
    }


def _node(door: Door, drivers: frozenset[str]) -> dict[str, Any]:
    info = door.info
    security = ["name=seccomp,profile=builtin"] + (["name=cgroupns"] if door.cgroup_version == 2 else [])
    return {
        "ID": info.id,
        "Name": info.name,
        "ServerVersion": info.version,
        "DockerRootDir": info.data_root,
        "Labels": list(info.labels),
        "Driver": "overlay2",
        "DriverStatus": [["Supports d_type", "true"], ["Native Overlay Diff", "true"]],
        "Plugins": {
            "Volume": ["local"],
            "Network": ["bridge", "host", "null"],
            "Authorization": None,
            "Log": [*(["journald"] if has_journal() else []), "json-file", "local", "none"],
        },
        "MemoryLimit": door.limits.memory,
        "SwapLimit": door.limits.swap,
        "CpuCfsPeriod": door.limits.cfs,
        "CpuCfsQuota": door.limits.cfs,
        "CPUShares": door.limits.shares,
        "CPUSet": door.limits.cpuset,
        "PidsLimit": door.limits.pids,
        "IPv4Forwarding": True,
        "OomKillDisable": door.limits.oom_kill_disable,
        "Debug": False,
        "NFd": 0,
        "NGoroutines": 0,
        "NEventsListener": 0,
        "LoggingDriver": "json-file",
        "CgroupDriver": info.cgroup_driver,
        "CgroupVersion": str(door.cgroup_version),
        "OSType": "linux",
        "IndexServerAddress": "https://index.docker.io/v1/",
        "GenericResources": None,
        "ExperimentalBuild": False,
        "Runtimes": {name: {"path": name} for name in sorted({RUNTIMES.get(each, each) for each in drivers | {"oci"}})},
        "DefaultRuntime": "runc",
        "Swarm": {
            "NodeID": "",
            "NodeAddr": "",
            "LocalNodeState": "inactive",
            "ControlAvailable": False,
            "Error": "",
            "RemoteManagers": None,
        },
        "LiveRestoreEnabled": True,  # workloads outlive the daemon
        "Isolation": "",
        "InitBinary": "",
        "SecurityOptions": security,
        "CDISpecDirs": None,
    }


def host_words() -> dict[str, Any]:
    """What the machine itself says. Reads files; call it in a thread."""
    machine = os.uname()
    release = _os_release()
    return {
        "SystemTime": clock.rfc3339_nano(clock.now()),
        "KernelVersion": machine.release,
        "OperatingSystem": release.get("PRETTY_NAME", "Linux"),
        "OSVersion": release.get("VERSION_ID", ""),
        "Architecture": machine.machine,
        "NCPU": os.cpu_count() or 1,
        "MemTotal": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


@cache
def _os_release() -> dict[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


ROUTES = (Route("GET", "/info", info),)
