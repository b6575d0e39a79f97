"""The node: ping, version, info, disk usage."""

from __future__ import annotations

import os
import platform
from functools import cache
from typing import Any

from aiohttp import web

from insula import clock
from insula.api.docker.containers_list import rows
from insula.api.docker.door import Door
from insula.api.docker.images_words import summary_words
from insula.api.docker.route import Call, Route
from insula.api.docker.versions import NEWEST, OLDEST, dotted
from insula.api.docker.volumes import size_of, users, volume_words
from insula.api.web import json_response
from insula.errors import Invalid
from insula.tasks import in_thread

_NO_CACHE = {"Cache-Control": "no-cache, no-store, must-revalidate", "Pragma": "no-cache"}
_KINDS = ("build-cache", "container", "image", "volume")
_GO_ARCH = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "riscv64": "riscv64", "ppc64le": "ppc64le"}


async def ping(call: Call) -> web.StreamResponse:
    """`GET /_ping`, `HEAD /_ping`. Builder-Version 1: no BuildKit behind this door."""
    headers = {**_NO_CACHE, "Builder-Version": "1", "Swarm": "inactive"}
    body = b"" if call.request.method == "HEAD" else b"OK"
    return web.Response(body=body, headers=headers, content_type="text/plain", charset="utf-8")


async def version(call: Call) -> web.StreamResponse:
    """`GET /version`."""
    info, machine = call.door.info, os.uname()
    common = {
        "Version": info.version,
        "ApiVersion": dotted(NEWEST),
        "MinAPIVersion": dotted(OLDEST),
        "GitCommit": "",
        "GoVersion": f"none (Python {platform.python_version()})",
        "Os": "linux",
        "Arch": _GO_ARCH.get(machine.machine, machine.machine),
        "KernelVersion": machine.release,
        "BuildTime": "",
    }
    details = {name: value for name, value in common.items() if name != "Version"} | {"Experimental": "false"}
    components = [{"Name": "Engine", "Version": info.version, "Details": details}]
    for name, found in (await call.door.engine.probe()).items():
        components.append({"Name": name, "Version": _version_of(found), "Details": {"GitCommit": ""}})
    return json_response({"Platform": {"Name": "Insula"}, "Components": components, **common})


def _version_of(found: Any) -> str:
    """Of a driver's probe."""
    text = getattr(found, "version", "") or "unknown"
    return str(text) if getattr(found, "available", True) else f"not available ({text})"


# --- info ---------------------------------------------------------------------------------------------------------


async def info(call: Call) -> web.StreamResponse:
    """`GET /info`."""
    door = call.door
    instances = await door.engine.list()
    images = await door.engine.images.list()
    host = await in_thread(host_words)
    return json_response(_counts(instances, len(images)) | host | _node(door, await door.drivers()))


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
            "Log": ["json-file", "local", "none"],
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
        "RegistryConfig": {
            "IndexConfigs": {"docker.io": {"Name": "docker.io", "Mirrors": [], "Secure": True, "Official": True}},
            "InsecureRegistryCIDRs": ["::1/128", "127.0.0.0/8"],
            "Mirrors": [],
        },
        "GenericResources": None,
        "HttpProxy": os.environ.get("HTTP_PROXY", ""),
        "HttpsProxy": os.environ.get("HTTPS_PROXY", ""),
        "NoProxy": os.environ.get("NO_PROXY", ""),
        "ExperimentalBuild": False,
        "Runtimes": {"runc": {"path": "runc"}, **{each: {"path": each} for each in sorted(drivers - {"oci"})}},
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
        "ContainerdCommit": {"ID": ""},
        "RuncCommit": {"ID": ""},
        "InitCommit": {"ID": ""},
        "SecurityOptions": security,
        "CDISpecDirs": None,
        "Warnings": None,
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


# --- df -----------------------------------------------------------------------------------------------------------


async def disk_usage(call: Call) -> web.StreamResponse:
    """`GET /system/df`, of some kinds only with `type`."""
    asked = call.request.query.getall("type", [])
    for kind in asked:
        if kind not in _KINDS:
            raise Invalid(f"unknown object type: {kind}", field="type")
    wanted, door = asked or _KINDS, call.door
    instances = await door.engine.list()
    words: dict[str, Any] = {"BuilderSize": 0}
    if "image" in wanted:
        words |= await _images(door)
    if "container" in wanted:
        words["Containers"] = await rows(door, instances, sizes=True)
    if "volume" in wanted:
        words["Volumes"] = await _volumes(door)
    if "build-cache" in wanted:
        words["BuildCache"] = []
    return json_response(words)


async def _images(door: Door) -> dict[str, Any]:
    images = await door.engine.images.list()
    used = [use.image for use in await door.engine.image_uses()]
    rows = [summary_words(image, containers=used.count(image.id)) | {"SharedSize": 0} for image in images]
    return {"LayersSize": sum(image.size_bytes for image in images), "Images": rows}


async def _volumes(door: Door) -> list[dict[str, Any]]:
    used = await users(door)
    found = []
    for volume in await door.engine.volumes.list():
        usage = {"Size": await in_thread(size_of, volume.path), "RefCount": len(used.get(volume.name, ()))}
        found.append(volume_words(volume) | {"UsageData": usage})
    return found


ROUTES = (
    Route("GET", "/_ping", ping),
    Route("HEAD", "/_ping", ping),
    Route("GET", "/version", version),
    Route("GET", "/info", info),
    Route("GET", "/system/df", disk_usage),
)
